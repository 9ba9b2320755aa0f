"""Tells the network where a guest's MACs are: RARP requests, as QEMU sends for its own guests.

The guest's netfront does the like when it has reconnected; this does not wait for it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence

from entourage.domain import Net

_RARP = 0x8035
_REQUEST_REVERSE = 3
_TO_ALL = b"\xff" * 6
_SHORTEST = 60


def frame(mac: str) -> bytes:
    """The Ethernet frame that announces a MAC (RFC 903, request reverse about oneself)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _REQUEST_REVERSE)
    body = _TO_ALL + raw + struct.pack("!H", _RARP) + arp + raw + bytes(4) + raw + bytes(4)
    return body.ljust(_SHORTEST, b"\0")


def announce(nets: Sequence[Net]) -> None:
    """Send one frame a NIC out of its bridge; a bridge that is gone is no error."""
    for net in nets:
        if net.attach != "bridge" or net.mac is None:
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((net.bridge, _RARP))
            out.send(frame(net.mac))
