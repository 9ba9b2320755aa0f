"""What goes over the wire: run on a host, ``wiretap.py INTERFACE PEER TEXT``, until its input ends.

Prints as JSON how many bytes came and went between the host and its peer, an IPv4 address, at
libvirt's ports for migrations, and in how many packets of them the text could be read. What a
guest says is not counted: any of its connections may have one of these ports at its own end.
"""

from __future__ import annotations

import json
import select
import socket
import sys

_ALL = 3
_RCVBUFFORCE = 33  # of Linux, for which Python has no name
_TCP = 6
_PORTS = range(49152, 49216)
_ETHERNET = 14


def payload(frame: bytes, peer: bytes) -> bytes:
    """What a frame carries of a migration's data; empty where it is none of it."""
    if frame[12:14] != b"\x08\x00" or frame[_ETHERNET + 9] != _TCP:
        return b""
    if peer not in (frame[_ETHERNET + at : _ETHERNET + at + 4] for at in (12, 16)):
        return b""
    tcp = _ETHERNET + (frame[_ETHERNET] & 15) * 4
    ports = (int.from_bytes(frame[tcp + at : tcp + at + 2], "big") for at in (0, 2))
    if not any(port in _PORTS for port in ports):
        return b""
    return frame[tcp + (frame[tcp + 12] >> 4) * 4 :]


def main(interface: str, peer: str, text: str) -> None:
    """Listen."""
    address = socket.inet_aton(peer)
    total = readable = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 256 << 20)
        wire.bind((interface, 0))
        print("listening", flush=True)  # noqa: T201 - to who waits for it
        while True:
            ready, _, _ = select.select([wire, sys.stdin], [], [])
            if wire in ready:
                data = payload(wire.recv(1 << 17), address)
                total += len(data)
                readable += text.encode() in data
            elif sys.stdin in ready:
                break
    print(json.dumps({"bytes": total, "readable": readable}))  # noqa: T201 - as above


if __name__ == "__main__":
    main(*sys.argv[1:])
