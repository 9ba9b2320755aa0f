"""Unix sockets that are made here and given to QEMU, as it could not make them itself."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def listening(path: Path, owner: int = -1) -> Generator[socket.socket]:
    """A socket that listens at ``path``, 0600, for as long as the process that inherits it lives.

    Here it is closed at the end, so that the death of that process is seen by who has connected.

    Args:
        path: Where.
        owner: Who may connect beside root, by number.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        path.chmod(0o600)
        if owner >= 0:
            os.chown(path, owner, -1)
        server.listen(8)
        yield server
