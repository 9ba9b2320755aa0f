"""Memory on its way from or to a socket. The kernel moves it; no byte passes through here.

Each way is a thread in a system call that blocks: ``Flow.end`` shuts the socket down, which ends
the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from entourage.errors import HypervisorError

_SOON = 0.1  # seconds
_ENDS_WITHIN = 10.0  # seconds
_MAGIC = b"whole:"
_TRAILER = struct.Struct(">6sQ")
_AT_ONCE = 1 << 20  # bytes, also the most that a pipe may hold without privileges
TRAILER = _TRAILER.size
"""Bytes that a relay adds at the end, which ``end_checked`` takes away."""


class Flow:
    """One way, under way.

    Args:
        connection: The socket; owned by the flow.
        move: Moves everything; it is told how far it is.
        also: Another socket that it waits for; closed by ``move``.

    Attributes:
        done: Bytes that were moved.
    """

    def __init__(
        self,
        connection: socket.socket,
        move: Callable[[socket.socket, Callable[[int], None]], None],
        *,
        also: socket.socket | None = None,
    ) -> None:
        self._also = also
        connection.setblocking(True)  # noqa: FBT003 - the name of it
        self.done = 0
        self._patience = _ENDS_WITHIN
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
        for one in (self._connection, self._also):
            with contextlib.suppress(OSError):  # it has ended
                if one is not None:
                    one.shutdown(socket.SHUT_RDWR)
        # Not as long again each time that its end is asked for.
        patience, self._patience = self._patience, _SOON
        await asyncio.wait({self._over}, timeout=patience)
        if not self._over.done():
            raise HypervisorError(
                f"the storage has not answered for {_ENDS_WITHIN:g} s",
                remedy="see whether its server is there; `entourage recover` removes what is left",
            )
        self._over.exception()  # told by ``finished``, if anybody asked
        self._connection.close()


def into_file(
    connection: socket.socket, path: Path, written: Callable[[int], None] | None = None
) -> Flow:
    """Write what comes into a new file, 0600, until the other end closes; it is not synced.

    Args:
        connection: Where it comes from; owned by the flow.
        path: The file.
        written: Told of so many bytes more, in the flow's thread.
    """

    def move(source: socket.socket, moved: Callable[[int], None]) -> None:
        def count(more: int) -> None:
            moved(more)
            if written is not None:
                written(more)

        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _spliced(source.fileno(), handle, count)
        finally:
            os.close(handle)

    return Flow(connection, move)


def _spliced(source: int, target: int, moved: Callable[[int], None]) -> None:
    """Move all that a descriptor has into another, by a pipe of the kernel's."""
    out, inward = os.pipe2(os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # smaller, and slower
            fcntl.fcntl(inward, fcntl.F_SETPIPE_SZ, _AT_ONCE)
        while count := os.splice(source, inward, _AT_ONCE):
            while count:
                written = os.splice(out, target, count)
                count -= written
                moved(written)
    finally:
        os.close(out)
        os.close(inward)


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


def relayed(source: socket.socket, target: socket.socket) -> Flow:
    """Pass on what comes, until the source closes; then say how much it was.

    Whoever takes it at the far end of an ssh sees it end as well where that was cut off.

    Args:
        source: Where it comes from; owned by the flow.
        target: Where it goes to; the same.
    """

    def move(coming: socket.socket, moved: Callable[[int], None]) -> None:
        total = 0

        def count(more: int) -> None:
            nonlocal total
            total += more
            moved(more)

        with target:
            target.setblocking(True)  # noqa: FBT003 - the name of it
            _spliced(coming.fileno(), target.fileno(), count)
            target.sendall(_TRAILER.pack(_MAGIC, total))
            target.shutdown(socket.SHUT_WR)

    return Flow(source, move, also=target)


def end_checked(path: Path) -> None:
    """See that a file has all that was passed on to it, and leave no more than that in it. Blocks.

    Raises:
        HypervisorError: Not all of it came.
        OSError: It cannot be read, or not be cut.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END) - _TRAILER.size
        file.seek(max(size, 0))
        end = file.read()
        if size < 0 or _TRAILER.unpack(end) != (_MAGIC, size):
            raise HypervisorError(
                "memory did not come whole: it was cut off on its way",
                remedy="see whether ssh to that host stays up, then try again",
            )
        file.truncate(size)
