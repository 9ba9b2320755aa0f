"""Copies a raw disk while the guest writes to it, and what has changed once it has stopped.

Xen's back ends keep no map of what was written, so every pass reads all of the disk and sends the
blocks whose digest has changed. After the last pass the target says the digest of what it reads
back from its own disk, and that must be the source's.

A frame is ``>cQI``: kind, offset, length; and for ``B`` that many bytes::

    B  this block      Z  that block is zero      D  put all on the disk, and say its digest

Digests are BLAKE2b, of each block and then of all of these. All of it blocks, and runs in threads.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import threading
from typing import Final

from entourage.errors import HypervisorError

BLOCK: Final = 1 << 20
_FRAME: Final = struct.Struct(">cQI")
_SIZE: Final = 32
_EMPTY: Final = bytes(BLOCK)


def digest(data: bytes | memoryview) -> bytes:
    """A block's digest."""
    return hashlib.blake2b(data, digest_size=_SIZE).digest()


def all_of(digests: list[bytes]) -> bytes:
    """A disk's digest."""
    return digest(b"".join(digests))


def empty(size: int) -> list[bytes]:
    """The digests of a disk of that size that holds zeros only."""
    blocks, last = divmod(size, BLOCK)
    whole = digest(_EMPTY)
    return [whole] * blocks + ([digest(bytes(last))] if last else [])


class _Disk:
    """An image or device, read past the page cache where it is a device.

    A back end writes to a device past dom0's cache, and to a file through it.
    """

    def __init__(self, path: str, *, write: bool) -> None:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        is_device = stat.S_ISBLK(os.stat(path).st_mode)  # noqa: PTH116 - one call
        self.fd = os.open(path, flags | (os.O_DIRECT if is_device else 0))
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        self._buffer = mmap.mmap(-1, BLOCK)  # aligned, as direct reads want it

    def read(self, offset: int) -> memoryview:
        """The block there; valid until the next call."""
        length = min(BLOCK, self.size - offset)
        view = memoryview(self._buffer)[:length]
        got = 0
        while got < length:
            count = os.preadv(self.fd, [view[got:]], offset + got)
            if not count:
                raise HypervisorError("the disk has become shorter")
            got += count
        return view

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write a block; the data of a device must be aligned, so it goes by the buffer."""
        view = memoryview(self._buffer)[: len(data)]
        view[:] = data
        done = 0
        while done < len(data):
            done += os.pwritev(self.fd, [view[done:]], offset + done)

    def close(self) -> None:
        os.close(self.fd)


class Sending:
    """The source's end.

    Args:
        path: The disk.
        out, back: Descriptors to and from the target.
        blank: What is written to holds zeros only; else every block is sent.

    Raises:
        OSError: The disk cannot be read, or the target is gone; from every method.
    """

    def __init__(self, path: str, out: int, back: int, *, blank: bool) -> None:
        self._disk = _Disk(path, write=False)
        self._out, self._back = out, back
        zeros = empty(self._disk.size)
        self._digests = zeros if blank else [b""] * len(zeros)
        self.size = self._disk.size
        self.done = 0
        """Bytes that the pass under way has looked at."""

    def send_changes(self, stop: threading.Event | None = None) -> int:
        """One pass; returns the bytes that had to be sent. Ends early where ``stop`` is set."""
        sent = self.done = 0
        for number, known in enumerate(self._digests):
            if stop is not None and stop.is_set():
                break
            offset = number * BLOCK
            data = self._disk.read(offset)
            now = digest(data)
            if now != known:
                self._digests[number] = now
                sent += self._send(offset, data)
            self.done = offset + len(data)
        return sent

    def _send(self, offset: int, data: memoryview) -> int:
        if data == memoryview(_EMPTY)[: len(data)]:
            _write(self._out, _FRAME.pack(b"Z", offset, len(data)))
            return 0
        _write(self._out, _FRAME.pack(b"B", offset, len(data)))
        _write(self._out, data)
        return len(data)

    def verify(self) -> None:
        """Have the target put all on its disk and read it back.

        Raises:
            HypervisorError: It is not the same there.
        """
        _write(self._out, _FRAME.pack(b"D", 0, 0))
        if _read(self._back, _SIZE) != all_of(self._digests):
            raise HypervisorError("what the target reads back is not what was sent")

    def close(self) -> None:
        """Let go of the disk."""
        self._disk.close()


def receive(path: str, incoming: int, answers: int) -> None:
    """The target's end: write what comes until it ends.

    Args:
        path: The disk, which is there and large enough.
        incoming: Descriptor from the source.
        answers: Descriptor to it.

    Raises:
        OSError: The disk cannot be written, or the source is gone in the middle of a block.
        HypervisorError: What comes is no frame.
    """
    disk = _Disk(path, write=True)
    try:
        digests = empty(disk.size)
        while head := _read(incoming, _FRAME.size, or_end=True):
            kind, offset, length = _FRAME.unpack(head)
            fits = offset % BLOCK == 0 and length <= BLOCK and offset + length <= disk.size
            match kind:
                case b"B" if fits:
                    disk.write(offset, _read(incoming, length))
                case b"Z" if fits:
                    disk.write(offset, bytes(length))
                case b"D":
                    os.fdatasync(disk.fd)
                    _write(answers, all_of(digests))
                    continue
                case _:
                    raise HypervisorError("what arrives is no part of the disk")
            digests[offset // BLOCK] = digest(disk.read(offset))
    finally:
        disk.close()


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int, count: int, *, or_end: bool = False) -> bytes:
    """Exactly that many bytes; none at the end, where that may come."""
    parts = bytearray()
    while len(parts) < count:
        data = os.read(descriptor, count - len(parts))
        if not data:
            if or_end and not parts:
                return b""
            raise OSError("the other end of the copy is gone")
        parts += data
    return bytes(parts)
