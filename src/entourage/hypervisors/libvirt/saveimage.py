"""libvirt's file of a domain's memory: a copy of it, with another XML in it.

::

    magic, 16 bytes; then numbers of 4, in the byte order of the host that wrote it:
    version, bytes of data, whether it ran, format of memory, where the cookie is in the data
    (0: nowhere), and more that are reserved: 92 bytes in all
    data: the XML and, where there is one, the cookie, each with a NUL; then NULs
    memory

(libvirt's ``src/qemu/qemu_saveimage.h``, version 2.)
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Final, NamedTuple

from entourage import durable
from entourage.errors import HypervisorError
from entourage.hosts.turns import Turn

_MAGIC = b"LibvirtQemudSave"
_UNFINISHED = b"LibvirtQemudPart"
_HEADER = struct.Struct("=16s5I56s")
_NUMBER = struct.Struct("=I")
_VERSION = 2
_RAW = 0  # a format of memory: QEMU's stream, as it comes out of a pipe
_SPARSE = 6  # a format of memory in which places are counted from the file's beginning
_MOST = 64 << 20  # bytes of data
_ALIGNED = 1 << 20
_AT_ONCE = 64 << 20  # bytes, before it is looked whether it is to go on


def _stays(at: int, number: int) -> Turn:
    return Turn(at, _NUMBER.pack(number), _NUMBER.pack(number))


TURNS: Final = (Turn(0, _UNFINISHED, _MAGIC), _stays(16, _VERSION), _stays(28, _RAW))
"""What a file that libvirt writes in order begins with, and what becomes of that at its end.

(``virQEMUSaveDataFinish`` in libvirt's ``src/qemu/qemu_saveimage.c``.)
"""


class _Image(NamedTuple):
    """What a file has before memory."""

    header: tuple[bytes, int, int, int, int, int, bytes]
    cookie: bytes

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.header[2]

    @property
    def sparse(self) -> bool:
        return self.header[4] == _SPARSE


def copy(file: Path, into: Path, xml: str, stop: threading.Event | None = None) -> None:
    """Copy a file that libvirt has written, with this XML in it. Blocks, for as long as that takes.

    The kernel copies memory, or shares it where the file system can.

    Args:
        file: What libvirt has written.
        into: What is made, 0600; there must be nothing.
        xml: The domain's.
        stop: Ends it where it is.

    Raises:
        HypervisorError: It was ended; it is none, or of a form that is not known.
        OSError: One of both fails.
    """
    source = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(into, flags, 0o600)
        try:
            image = _read(file, source)
            data = xml.encode() + b"\0"
            header = list(image.header)
            header[5] = len(data) if image.cookie else 0
            data += image.cookie
            header[2] = _room(file, image, len(data))
            os.pwrite(target, _HEADER.pack(*header) + data, 0)
            begin, at = _HEADER.size + image.size, _HEADER.size + int(header[2])
            _copy(source, begin, target, at, stop or threading.Event())
        finally:
            os.close(target)
    finally:
        os.close(source)
    durable.sync_directory(into.parent)


def _read(file: Path, source: int) -> _Image:
    head = os.pread(source, _HEADER.size, 0)
    if len(head) != _HEADER.size:
        raise _unknown(file)
    header = _HEADER.unpack(head)
    magic, version, size, _, _, at, _ = header
    if magic != _MAGIC or version != _VERSION or size > _MOST or at > size:
        raise _unknown(file)
    data = os.pread(source, size, _HEADER.size)
    if len(data) != size:
        raise _unknown(file)
    cookie = data[at:].partition(b"\0")[0] + b"\0" if at else b""
    return _Image(header, cookie)


def _room(file: Path, image: _Image, wanted: int) -> int:
    """Bytes of data in the copy: as before, so that the file system can share what follows."""
    if wanted <= image.size:
        return image.size
    if image.sparse:
        raise HypervisorError(f"the XML of another machine has no room in {file}")
    more = -(-(wanted - image.size) // _ALIGNED) * _ALIGNED
    return image.size + more


def _copy(source: int, begin: int, target: int, at: int, stop: threading.Event) -> None:
    # In sight of its beginning: what is before it is written, and a sparse one keeps its holes.
    end = os.fstat(source).st_size
    os.ftruncate(target, at + end - begin)
    while begin < end:
        if stop.is_set():
            raise HypervisorError("it was given up while memory was copied")
        moved = os.copy_file_range(source, target, min(_AT_ONCE, end - begin), begin, at)
        if not moved:
            raise OSError("it has become shorter meanwhile")
        begin, at = begin + moved, at + moved


def _unknown(file: Path) -> HypervisorError:
    return HypervisorError(
        f"{file} is none of libvirt's, or of a version that is not known",
        remedy="restore the machine itself; another one cannot be made of it",
    )
