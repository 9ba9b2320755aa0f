"""Memory on its way between a socket and a file. The kernel moves it; no byte passes through here.

Each way is a thread in a system call that blocks: ``Flow.end`` shuts the socket down, which ends
the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

_AT_ONCE = 1 << 20  # bytes, also the most that a pipe may hold without privileges


class Flow:
    """One way, under way.

    Args:
        connection: The socket; owned by the flow.
        move: Moves everything; it is told how far it is.

    Attributes:
        done: Bytes that were moved.
    """

    def __init__(
        self,
        connection: socket.socket,
        move: Callable[[socket.socket, Callable[[int], None]], None],
    ) -> None:
        connection.setblocking(True)  # noqa: FBT003 - the name of it
        self.done = 0
        self._connection = connection
        self._task = asyncio.create_task(asyncio.to_thread(move, connection, self._moved))

    def _moved(self, count: int) -> None:
        self.done += count

    async def finished(self) -> None:
        """Wait until all is moved; raises OSError where it could not be."""
        await asyncio.shield(self._task)

    async def end(self) -> None:
        """End it wherever it is."""
        with contextlib.suppress(OSError):  # it has ended
            self._connection.shutdown(socket.SHUT_RDWR)
        await asyncio.gather(self._task, return_exceptions=True)
        self._connection.close()


def into_file(connection: socket.socket, path: Path) -> Flow:
    """Write what comes into a new file, 0600, until the other end closes; it is synced then."""

    def move(source: socket.socket, moved: Callable[[int], None]) -> None:
        out, inward = os.pipe2(os.O_CLOEXEC)
        handle = -1
        try:
            with contextlib.suppress(OSError):  # smaller, and slower
                fcntl.fcntl(inward, fcntl.F_SETPIPE_SZ, _AT_ONCE)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            while count := os.splice(source.fileno(), inward, _AT_ONCE):
                while count:
                    written = os.splice(out, handle, count)
                    count -= written
                    moved(written)
            os.fsync(handle)
        finally:
            for descriptor in (out, inward, handle):
                if descriptor >= 0:
                    os.close(descriptor)

    return Flow(connection, move)


def from_file(path: Path, connection: socket.socket) -> Flow:
    """Send a whole file, and say that it ends."""

    def move(target: socket.socket, moved: Callable[[int], None]) -> None:
        with path.open("rb") as file:
            offset = 0
            while count := os.sendfile(target.fileno(), file.fileno(), offset, _AT_ONCE):
                offset += count
                moved(count)
        target.shutdown(socket.SHUT_WR)

    return Flow(connection, move)
