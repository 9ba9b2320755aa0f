"""The header of xl's stream: says what is in it, and has the domain's configuration (JSON).

``struct save_file_header`` of tools/xl/xl.h (Xen 4.17): 32 bytes of magic, then four numbers of 32
bits, in the order of the machine's bytes: byte order, mandatory flags, optional flags, and the
length of what follows: the configuration's length (32 bits), and the configuration.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from entourage.errors import HypervisorError

_MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
_FIXED = struct.Struct("=32sIIII")
_LENGTH = struct.Struct("=I")
_BYTE_ORDER: Final = 0x01020304
_JSON: Final = 1
_MOST: Final = 16 << 20
SIZE: Final = _FIXED.size
BRIDGE: Final = "xenbr0"
"""What xl takes where nothing is said (``vif.default.bridge`` of xl.conf may say otherwise)."""


def more(fixed: bytes) -> int:
    """How many bytes follow the first ``SIZE`` ones before the domain itself begins.

    Raises:
        HypervisorError: It is no header of xl's, or says what cannot be.
    """
    magic, order, mandatory, _, length = _FIXED.unpack(fixed)
    if magic != _MAGIC or order != _BYTE_ORDER:
        raise HypervisorError("xl sends something that does not begin as its streams do")
    if not mandatory & _JSON or not _LENGTH.size <= length <= _MOST:
        raise HypervisorError("xl sends a configuration in a form that is not known")
    return int(length)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What is otherwise on the target.

    Attributes:
        paths: Where disks are, by their virtual device (``xvda``).
        nets: Bridges, by those of the source.
        passthrough: A PCI device will be attached there. xl gives a domain the IOMMU that it takes
            only where its configuration has one, and by then that has none any more.
    """

    paths: Mapping[str, str] = field(default_factory=dict[str, str])
    nets: Mapping[str, str] = field(default_factory=dict[str, str])
    passthrough: bool = False


def rewritten(fixed: bytes, rest: bytes, changes: Changes) -> bytes:
    """The header with another configuration in it, for the target.

    Args:
        fixed: Its first ``SIZE`` bytes.
        rest: The ``more(fixed)`` bytes after them.
        changes: What is to be changed.

    Raises:
        HypervisorError: What it holds is not understood.
    """
    if changes == Changes():
        return fixed + rest
    length = _LENGTH.unpack_from(rest)[0]
    raw, after = rest[_LENGTH.size : _LENGTH.size + length], rest[_LENGTH.size + length :]
    try:
        config: dict[str, Any] = json.loads(raw.rstrip(b"\0"))
        for disk in config.get("disks", ()):
            if path := changes.paths.get(disk.get("vdev", "")):
                disk["pdev_path"] = path
        for nic in config.get("nics", ()):
            if bridge := changes.nets.get(nic.get("bridge") or BRIDGE):
                nic["bridge"] = bridge
        if changes.passthrough and config["c_info"].get("passthrough", "default") == "default":
            config["c_info"]["passthrough"] = "enabled"
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise HypervisorError(f"xl's configuration is not understood: {error}") from error
    text = json.dumps(config).encode() + b"\0"
    told = _LENGTH.pack(len(text)) + text + after
    magic, order, mandatory, optional, _ = _FIXED.unpack(fixed)
    return _FIXED.pack(magic, order, mandatory, optional, len(told)) + told
