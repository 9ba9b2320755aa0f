"""What a libvirt domain's QEMU sends as it moves, read to its end by who has no QEMU.

libvirt has QEMU listen, on the connection that it sends by, for a word of the target's
at the end; without that it does not end its stream, and its guest stands still. QEMU takes no such
word before (7.2 closes the connection by it). So the end is looked for in what it sends: a zero, a
six, a length, and as many bytes of JSON, after which QEMU says nothing more (its
``migration/savevm.c``: ``QEMU_VM_EOF``, ``QEMU_VM_VMDESCRIPTION``). A guest that has such bytes in
its memory can have its own save fail, and nothing else: that all of it has come, libvirt says.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import struct
import time
from collections.abc import Callable

from entourage.hosts.flow import Flow

_AT_ONCE = 1 << 20  # bytes
_KEPT = 4 << 20  # bytes in which the end is looked for: a description has some tens of thousands
_MARK = b"\x00\x06"
_LENGTH = struct.Struct(">I")
_LOOKS = 4  # at marks that may be part of the length itself
_TAKEN = struct.pack(">HHI", 1, 4, 0)
"""``MIG_RP_MSG_SHUT`` of ``migration/migration.h``, with four bytes: nothing is wrong."""


class QemuStream:
    """Passes one stream on.

    Args:
        source: The connection to QEMU; not the caller's any more.
        target: Where the stream goes; the same.

    Attributes:
        has_ended: Whether all of it has come.
    """

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.has_ended = False
        self._source = source
        self._waits_since = 0.0
        self._target = target
        self._flow = Flow(source, self._move, also=target)

    @property
    def passed(self) -> int:
        """Bytes that were passed on."""
        return self._flow.done

    @property
    def silent_for(self) -> float:
        """Seconds for which QEMU has sent nothing, though all that it had sent was passed on."""
        since = self._waits_since
        return time.monotonic() - since if since else 0.0

    async def finished(self) -> None:
        """Wait until QEMU has closed its end; raises OSError where it cannot be passed on."""
        await self._flow.finished()

    def cut(self) -> None:
        """Hang up on QEMU: it fails by itself, and takes its disks back."""
        with contextlib.suppress(OSError):  # it is closed
            self._source.shutdown(socket.SHUT_RDWR)

    async def end(self) -> None:
        """End it wherever it is."""
        await self._flow.end()

    def _move(self, source: socket.socket, moved: Callable[[int], None]) -> None:
        """Pass it on; in a thread of its own."""
        kept: collections.deque[bytes] = collections.deque()
        size = 0
        with self._target as target:
            target.setblocking(True)  # noqa: FBT003 - the name of it
            try:
                while data := self._more(source, kept):
                    target.sendall(data)
                    moved(len(data))
                    kept.append(data)
                    size += len(data)
                    while size - len(kept[0]) >= _KEPT:
                        size -= len(kept.popleft())
            finally:
                self.cut()  # where it cannot be passed on, QEMU is to hear of it

    def _more(self, source: socket.socket, before: collections.deque[bytes]) -> bytes:
        """What comes next; before it is waited for, QEMU hears that it has sent all, if it has."""
        try:
            with contextlib.suppress(BlockingIOError):
                return source.recv(_AT_ONCE, socket.MSG_DONTWAIT)
            if before and not self.has_ended and is_end(b"".join(before)):
                self.has_ended = True
                source.sendall(_TAKEN)
            self._waits_since = time.monotonic()
            return source.recv(_AT_ONCE)
        except ConnectionError:
            if self.has_ended:  # it has closed its end, and did not listen
                return b""
            raise
        finally:
            self._waits_since = 0.0


def is_end(tail: bytes) -> bool:
    """Whether a stream ends with these bytes."""
    if not tail.endswith(b"}"):
        return False
    at = len(tail)
    for _ in range(_LOOKS):
        at = tail.rfind(_MARK, 0, at)
        text = at + len(_MARK) + _LENGTH.size
        if at < 0:
            return False
        if text < len(tail) and tail[text : text + 1] == b"{":
            [length] = _LENGTH.unpack_from(tail, at + len(_MARK))
            if length == len(tail) - text:
                return True
    return False
