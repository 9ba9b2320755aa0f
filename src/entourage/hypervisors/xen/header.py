"""The header of xl's stream: says what is in it, and has the domain's configuration (JSON).

``struct save_file_header`` of tools/xl/xl.h (Xen 4.17): 32 bytes of magic, then four numbers of 32
bits, in the order of the machine's bytes: byte order, mandatory flags, optional flags, and the
length of what follows: the configuration's length (32 bits), and the configuration.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from entourage.errors import HypervisorError

_MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
_FIXED = struct.Struct("=32sIIII")
_LENGTH = struct.Struct("=I")
_BYTE_ORDER: Final = 0x01020304
_JSON: Final = 1
_STREAM_V2: Final = 2
_MOST: Final = 512 << 10
SIZE: Final = _FIXED.size
_KEY = re.compile(r"[A-Za-z0-9_./:-]+")
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
    if not mandatory & _JSON or length < _LENGTH.size:
        raise HypervisorError("xl sends a configuration in a form that is not known")
    if length > _MOST:
        raise HypervisorError(f"xl sends a configuration of {length} bytes, more than {_MOST}")
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
    config, after = configuration(rest)
    try:
        for disk in config.get("disks", ()):
            if path := changes.paths.get(disk.get("vdev", "")):
                disk["pdev_path"] = path
        for nic in config.get("nics", ()):
            if bridge := changes.nets.get(nic.get("bridge") or BRIDGE):
                nic["bridge"] = bridge
        if changes.passthrough and config["c_info"].get("passthrough", "default") == "default":
            config["c_info"]["passthrough"] = "enabled"
    except (AttributeError, KeyError, TypeError) as error:
        raise HypervisorError(f"xl's configuration is not understood: {error}") from error
    _, _, mandatory, optional, _ = _FIXED.unpack(fixed)
    return _packed(config, after, mandatory, optional)


def configuration(rest: bytes) -> tuple[dict[str, Any], bytes]:
    """The domain's configuration, in the one way in which every parser reads it.

    Args:
        rest: The ``more(fixed)`` bytes after the first ``SIZE`` ones.

    Returns:
        The configuration, and what comes after it.

    Raises:
        HypervisorError: It is none of libxl's.
    """
    (length,) = _LENGTH.unpack_from(rest)
    raw, after = rest[_LENGTH.size : _LENGTH.size + length], rest[_LENGTH.size + length :]
    if len(raw) != length:
        raise HypervisorError("xl's configuration is not all there")
    return parsed(raw.rstrip(b"\0")), after


def parsed(text: bytes | str) -> dict[str, Any]:
    """A configuration's text (JSON of ``libxl_domain_config``).

    Raises:
        HypervisorError: It is none of libxl's.
    """
    if len(text) > _MOST:
        raise HypervisorError(f"xl's configuration has more than {_MOST} bytes")
    try:
        config = json.loads(
            text, object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise HypervisorError(f"xl's configuration is not understood: {error}") from error
    if not isinstance(config, dict):
        raise HypervisorError("xl's configuration is not understood: it is no object")
    return cast("dict[str, Any]", config)


def sent_configuration(fixed: bytes, rest: bytes) -> dict[str, Any]:
    """The configuration of a stream that comes from another host.

    Raises:
        HypervisorError: The stream is not of the only kind that xl sends.
    """
    _, _, mandatory, _, _ = _FIXED.unpack(fixed)
    if mandatory != _JSON | _STREAM_V2:
        raise HypervisorError("xl sends a domain in a form that is not known")
    return configuration(rest)[0]


def header_of(config: Mapping[str, Any]) -> bytes:
    """A header with this configuration, and nothing else, in it."""
    return _packed(config, b"", _JSON | _STREAM_V2, 0)


def _packed(config: Mapping[str, Any], after: bytes, mandatory: int, optional: int) -> bytes:
    text = json.dumps(config).encode() + b"\0"
    told = _LENGTH.pack(len(text)) + text + after
    return _FIXED.pack(_MAGIC, _BYTE_ORDER, mandatory, optional, len(told)) + told


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all parsers tell apart: none comes twice, nor ends early by a NUL."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    for key in found:
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"it has the key {key!r}")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of libxl's")
