"""What is counted as a migration's on the wire."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.e2e.libvirt.wiretap import payload

HERE, THERE, GUEST, OBSERVER = "10.77.0.2", "10.77.0.1", "10.77.0.100", "10.77.0.250"
SAID = b"what the guest has in its memory"


def frame(source: str, source_port: int, target: str, target_port: int) -> bytes:
    """An Ethernet frame with IPv4 (RFC 791) and TCP (RFC 9293) headers, 20 bytes each."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(SAID), 0, 0, 64, socket.IPPROTO_TCP, 0)
    tcp = struct.pack("!HHIIBBHHH", source_port, target_port, 0, 0, 5 << 4, 0x18, 1024, 0, 0)
    return bytes(12) + b"\x08\x00" + ip + addresses + tcp + SAID


@pytest.mark.parametrize(
    ("heard", "counted"),
    [
        (frame(THERE, 40000, HERE, 49152), SAID),
        (frame(HERE, 49215, THERE, 40000), SAID),
        (frame(THERE, 40000, HERE, 22), b""),
        # The guest's own connections have any port of those that Linux gives: these as well.
        (frame(GUEST, 49152, OBSERVER, 7700), b""),
        (frame(OBSERVER, 49215, GUEST, 7701), b""),
    ],
)
def test_only_what_the_hosts_say_to_each_other(heard: bytes, counted: bytes) -> None:
    """At libvirt's ports for migrations."""
    assert payload(heard, socket.inet_aton(THERE)) == counted
