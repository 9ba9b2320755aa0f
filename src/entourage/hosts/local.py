"""Unix sockets between two processes of this host, for memory that does not leave it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from entourage.errors import HypervisorError, plain_words, what_to_do

LONGEST = 107
"""Bytes that a unix socket's path may have, by unix(7): ``sun_path`` has 108, with the NUL."""


def too_long(*paths: str) -> bool:
    """Whether one of them is longer than the path of a unix socket may be."""
    return any(len(os.fsencode(path)) > LONGEST for path in paths)


def listening_here(path: Path, owner: int = -1) -> socket.socket:
    """A unix socket at ``path`` that only this user can connect to; one that is there is replaced.

    Args:
        path: Where; its directory is made, 0700.
        owner: Who may connect beside root, by number.

    Raises:
        HypervisorError: It cannot be made.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody else gets as far as the socket, also before it has its rights.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        server.bind(str(path))
        os.chmod(path, 0o600, follow_symlinks=True)  # noqa: PTH101 - bind made no link
        if owner >= 0:
            os.chown(path, owner, -1)
        server.listen(8)
        server.settimeout(0)
    except OSError as error:
        server.close()
        raise HypervisorError(
            f"nothing can listen at {path}: {plain_words(error)}", remedy=what_to_do(error)
        ) from error
    return server


@contextlib.asynccontextmanager
async def connected_here(path: str) -> AsyncGenerator[socket.socket]:
    """A connection to a unix socket of this host's; closed here at the end.

    Raises:
        HypervisorError: Nothing listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(0)
        try:
            await asyncio.get_running_loop().sock_connect(connection, path)
        except OSError as error:
            raise HypervisorError(
                f"no connection to {path}: {plain_words(error)}", remedy=what_to_do(error)
            ) from error
        yield connection
