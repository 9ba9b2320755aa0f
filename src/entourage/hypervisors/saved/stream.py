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
import threading
from collections.abc import Callable
from pathlib import Path

from entourage.errors import HypervisorError

_ENDS_WITHIN = 10.0  # seconds
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
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        # Not one of the loop's: storage that does not answer would keep the process from ending.
        thread = threading.Thread(target=self._run, args=(move,), name="memory", daemon=True)
        thread.start()

    def _run(self, move: Callable[[socket.socket, Callable[[int], None]], None]) -> None:
        error: OSError | None = None
        try:
            move(self._connection, self._moved)
        except OSError as failed:
            error = failed
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._ended, error)

    def _moved(self, count: int) -> None:
        self.done += count

    def _ended(self, error: OSError | None) -> None:
        if not self._over.done():
            self._over.set_result(None) if error is None else self._over.set_exception(error)

    async def finished(self) -> None:
        """Wait until all is moved; raises OSError where it could not be."""
        await asyncio.shield(self._over)

    async def end(self) -> None:
        """End it wherever it is.

        Raises:
            HypervisorError: The storage does not answer.
        """
        with contextlib.suppress(OSError):  # it has ended
            self._connection.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({self._over}, timeout=_ENDS_WITHIN)
        if not self._over.done():
            raise HypervisorError(
                f"the storage has not answered for {_ENDS_WITHIN:g} s",
                remedy="see whether its server is there; `entourage recover` removes what is left",
            )
        self._over.exception()  # told by ``finished``, if anybody asked
        self._connection.close()


def into_file(connection: socket.socket, path: Path) -> Flow:
    """Write what comes into a new file, 0600, until the other end closes; it is not synced."""

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
