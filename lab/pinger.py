"""Pings one address every millisecond and notes when each ping left and its answer came.

Run as `python -m lab.pinger ADDRESS INTERVAL_NS` on a host, with a file to note it in as standard
input: 64-bit numbers in pairs. The first pair is (pings sent, 0); pair n is (sent at, answered
at) of ping n, in nanoseconds of the monotonic clock, 0 for an answer that has not come. A process
of its own, because a test that computes would make its own pings late.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

_ECHO_REQUEST = 8
_ECHO_REPLY = 0
_PACKET = struct.Struct("!BBHHHQ")  # type, code, checksum, id, sequence, the ping's number
_TIMESPEC = struct.Struct("=qq")
_SOL_RAW = 255
_ICMP_FILTER = 1
_SO_TIMESTAMPNS = 35
_LATE = 20  # intervals; who overslept that much does not send a burst to catch up


def _checksum(packet: bytes) -> int:
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _echo_request(identity: int, number: int) -> bytes:
    sequence = number & 0xFFFF
    blank = _PACKET.pack(_ECHO_REQUEST, 0, 0, identity, sequence, number)
    return _PACKET.pack(_ECHO_REQUEST, 0, _checksum(blank), identity, sequence, number)


def _open_socket(address: str) -> socket.socket:
    """Open a socket that hears only echo replies, and when the kernel got them."""
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << _ECHO_REPLY) & 0xFFFFFFFF))
    raw.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    raw.connect((address, 0))
    raw.settimeout(0)
    return raw


def _note_answers(raw: socket.socket, identity: int, notes: memoryview) -> None:
    # The kernel stamps with the wall clock, which may be set; the monotonic one may not.
    offset = time.time_ns() - time.monotonic_ns()
    while True:
        try:
            data, ancillary, _, _ = raw.recvmsg(256, 64)
        except BlockingIOError:
            return
        header = (data[0] & 0xF) * 4
        if len(data) - header != _PACKET.size:
            continue
        _, _, _, answered, _, number = _PACKET.unpack_from(data, header)
        if answered != identity or 2 * number + 1 >= len(notes):
            continue
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        if not notes[2 * number + 1]:
            notes[2 * number + 1] = seconds * 1_000_000_000 + nanoseconds - offset


def _hurry() -> None:
    """Come before the guests, which keep every CPU busy."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:  # no real-time share for this control group
        with suppress(PermissionError):
            os.nice(-20)


def main() -> None:
    """Ping until killed, or until the notes are full."""
    address, interval = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: our parent decides
    _hurry()
    raw = _open_socket(address)
    notes = memoryview(mmap.mmap(0, 0)).cast("q")
    identity = os.getpid() & 0xFFFF
    number = 0
    due = time.monotonic_ns()
    while 2 * number + 3 < len(notes):
        now = time.monotonic_ns()
        if now >= due:
            number += 1
            notes[2 * number] = now
            notes[0] = number
            with suppress(OSError):  # no carrier, a full queue: a ping that gets no answer
                raw.send(_echo_request(identity, number))
            due = due + interval if now - due < _LATE * interval else now + interval
            continue
        if select.select([raw], [], [], (due - now) / 1e9)[0]:
            _note_answers(raw, identity, notes)


if __name__ == "__main__":
    main()
