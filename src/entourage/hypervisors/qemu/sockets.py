"""Unix sockets that are made here and given to QEMU, as it could not make them itself."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator
from pathlib import Path

from entourage.hosts.local import listening_here


@contextlib.contextmanager
def listening(path: Path, owner: int = -1) -> Generator[socket.socket]:
    """A socket that listens at ``path``, 0600, for as long as the process that inherits it lives.

    Here it is closed at the end, so that the death of that process is seen by who has connected.

    Args:
        path: Where.
        owner: Who may connect beside root, by number.
    """
    with listening_here(path, owner) as server:
        server.setblocking(True)  # noqa: FBT003 - as who inherits it expects
        yield server
