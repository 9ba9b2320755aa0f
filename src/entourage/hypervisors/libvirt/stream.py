"""What a libvirt domain's QEMU sends as it moves, read to its end by who has no QEMU.

libvirt has QEMU listen, on the connection that it sends by, for a word of the target's
at the end; without that it does not end its stream, and its guest stands still. QEMU takes no such
word before (7.2 closes the connection by it). So the end is looked for in what it sends: a zero, a
six, a length, and as many bytes of JSON, after which QEMU says nothing more (its
``migration/savevm.c``: ``QEMU_VM_EOF``, ``QEMU_VM_VMDESCRIPTION``). A guest that has such bytes in
its memory can have its own save fail, and nothing else: that all of it has come, libvirt says.

The kernel moves it, and keeps the end of what it has moved (``Tail``). This process copies of that
the last byte where QEMU is silent, and more only where that byte is the last one of such a text.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from entourage.hosts.flow import Flow
from entourage.hosts.tail import Pipe, Tail

_AT_ONCE = 256 << 10  # bytes: fewer than a tail can refer to
_LOOKED_AT = (128 << 10, 1 << 20)
"""Bytes in which the end is looked for: a description has some tens of thousands, or more."""
_SILENT = 1  # ms; within the guest's blackout
_MARK = b"\x00\x06"
_CLOSES = b"}"
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
        with self._target as target:
            target.setblocking(True)  # noqa: FBT003 - the name of it
            try:
                coming = select.poll()
                coming.register(source, select.POLLIN)
                with contextlib.closing(Pipe(_AT_ONCE)) as pipe, contextlib.closing(Tail()) as tail:
                    while count := self._more(source, coming, pipe, tail):
                        while count:
                            taken = tail.take(pipe, count)
                            count -= taken
                            while taken:
                                written = os.splice(pipe.out, target.fileno(), taken)
                                taken -= written
                                moved(written)
            finally:
                self.cut()  # where it cannot be passed on, QEMU is to hear of it

    def _more(self, source: socket.socket, coming: select.poll, pipe: Pipe, tail: Tail) -> int:
        """How much has come into the pipe; before it waits, QEMU hears of its end, if that was."""
        try:
            if not coming.poll(_SILENT):
                if not self.has_ended and _has_end(tail):
                    self.has_ended = True
                    source.sendall(_TAKEN)
                self._waits_since = time.monotonic()
            return os.splice(source.fileno(), pipe.inward, _AT_ONCE)
        except ConnectionError:
            if self.has_ended:  # it has closed its end, and did not listen
                return 0
            raise
        finally:
            self._waits_since = 0.0


def _has_end(tail: Tail) -> bool:
    """Whether what has come ends with the end; as little as can be is copied for that."""
    return tail.last(len(_CLOSES)) == _CLOSES and any(
        is_end(tail.last(count)) for count in _LOOKED_AT
    )


def is_end(tail: bytes) -> bool:
    """Whether a stream ends with these bytes."""
    if not tail.endswith(_CLOSES):
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
