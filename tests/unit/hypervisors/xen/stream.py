"""A stream as xl sends it, made of records that say nothing."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from entourage.hypervisors.xen import header

_CONFIG: Mapping[str, Any] = {"disks": [], "nics": []}


def record(kind: int, body: bytes) -> bytes:
    """One of either layer."""
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def stream(
    memory: Sequence[tuple[int, bytes]],
    more: Sequence[tuple[int, bytes]],
    config: Mapping[str, Any] = _CONFIG,
) -> bytes:
    """All of it, from xl's header to the last record.

    Args:
        memory: libxc's records, by type and body.
        more: libxl's own, after these.
        config: The domain's, in the header.
    """
    parts = [
        header.header_of(config),
        struct.pack(">8sII", b"LibxlFmt", 2, 0),
        record(1, b""),
        struct.pack(">QIIHHI", (1 << 64) - 1, 0x58454E46, 3, 0, 0, 0),
        struct.pack("<IHHII", 2, 12, 0, 4, 17),
        *(record(*each) for each in memory),
        record(0, b""),
        *(record(*each) for each in more),
        record(0, b""),
    ]
    return b"".join(parts)
