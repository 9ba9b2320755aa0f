"""Passes one stream of libxl on, record by record, and so knows where it ends.

Whoever takes a stream of ``xl migrate`` has to know that without being told: xl waits for READY
then. The form is that of docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc
(version 2 of both, 3 of the latter, Xen 4.6 to 4.19)::

    header of xl            see header.py
    libxl's stream header   ident "LibxlFmt", version, options (32 bits each, big-endian)
    records                 type and length (32 bits each), and so many bytes, filled up to 8
      LIBXC_CONTEXT         empty; what follows is a stream of libxc:
                              image header of 24 bytes, domain header of 16
                              records of the same form, to its END
      END                   that was all

Only these few bytes of each record are read here. What the records hold is moved by the kernel.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, Protocol

from entourage.errors import HypervisorError
from entourage.hypervisors.xen import header

_LIBXL = struct.Struct(">8sII")
_LIBXL_IDENT: Final = b"LibxlFmt"
_LIBXL_VERSION: Final = 2
_LIBXC = struct.Struct(">QIIHHI")
_LIBXC_MARKER: Final = (1 << 64) - 1
_LIBXC_IDENT: Final = 0x58454E46  # XENF
_LIBXC_VERSIONS: Final = frozenset({2, 3})
_DOMAIN: Final = 16  # bytes of libxc's domain header
_BIG_ENDIAN: Final = 1
_RECORD = struct.Struct("<II")
_ALIGNED: Final = 8
_LONGEST: Final = 64 << 20
"""Bytes of one record: of memory, 4 MiB and 8 KiB (1024 pages); HVM's device model, some MiB."""


class _Type(enum.IntEnum):
    END = 0
    LIBXC_CONTEXT = 1


class Way(Protocol):
    """Where the stream comes from, and where it goes to."""

    def read(self, count: int) -> bytes:
        """Read exactly so many bytes, and pass them on; raises EOFError where there are less."""
        ...

    def move(self, count: int) -> None:
        """Pass so many bytes on without reading them; raises the same."""
        ...


def pass_on(way: Way) -> None:
    """Pass a whole stream on, and nothing after its end.

    Args:
        way: From where to where.

    Raises:
        HypervisorError: It is no such stream.
        EOFError: It ended before.
        OSError: It cannot be passed on.
    """
    rest = header.more(way.read(header.SIZE))
    way.move(rest)
    ident, version, options = _LIBXL.unpack(way.read(_LIBXL.size))
    if (ident, version) != (_LIBXL_IDENT, _LIBXL_VERSION) or options & _BIG_ENDIAN:
        raise HypervisorError("libxl's stream is of a form that is not known")
    while (kind := _record(way)) != _Type.END:
        if kind == _Type.LIBXC_CONTEXT:
            _pass_libxc(way)


def _pass_libxc(way: Way) -> None:
    marker, ident, version, options, *_ = _LIBXC.unpack(way.read(_LIBXC.size))
    same = (marker, ident) == (_LIBXC_MARKER, _LIBXC_IDENT)
    if not same or version not in _LIBXC_VERSIONS or options & _BIG_ENDIAN:
        raise HypervisorError("libxc's stream is of a form that is not known")
    way.move(_DOMAIN)
    while _record(way) != _Type.END:
        pass


def _record(way: Way) -> int:
    """Pass one record on; its type."""
    kind, length = _RECORD.unpack(way.read(_RECORD.size))
    if length > _LONGEST:
        raise HypervisorError(f"a record of {length} bytes is in xl's stream")
    way.move(-(-length // _ALIGNED) * _ALIGNED)
    return int(kind)
