"""What the kernel knows of a TCP connection: how far it has come, and since when it is quiet."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

# struct tcp_info of linux/tcp.h: state; unacked (segments); last_data_sent, last_data_recv and
# last_ack_recv (ms); rtt (us); bytes_received; min_rtt (us).
_FIELDS = struct.Struct("=B23xI16xI4xII8xI56xQ12xI")
_NO_MIN_RTT = 0xFFFF_FFFF
_SYN_SENT = 2
_SYN_SENT_IN_TABLE = "02"


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """How a connection stands.

    Attributes:
        connecting: The other host has not taken it yet.
        unconfirmed: The other host's system has not confirmed all that was sent.
        unanswered: The other host has sent nothing since the last that was sent to it, or nothing
            at all. It is known to the kernel's tick (some ms): of what comes and goes within one,
            what came counts as the last. So one answer counts for several questions at once.
        quiet: Seconds since anything came in: data, or word that data has arrived there.
        rtt: Seconds for a round trip, as measured so far.
        min_rtt: The shortest so far; None where none was measured.
    """

    connecting: bool
    unconfirmed: bool
    unanswered: bool
    quiet: float
    rtt: float
    min_rtt: float | None

    @property
    def answers_within(self) -> float:
        """Seconds that an answer takes at most on this way: eight round trips."""
        return 8 * self.rtt


def of(one: socket.socket) -> TcpInfo:
    """Ask of a TCP socket, of whichever process; raises OSError where it is none."""
    data = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _FIELDS.size)
    state, unconfirmed, went, came, word_came, rtt, received, min_rtt = _FIELDS.unpack(data)
    return TcpInfo(
        connecting=state == _SYN_SENT,
        unconfirmed=unconfirmed > 0,
        unanswered=received == 0 or went < came,
        quiet=min(came, word_came) / 1e3,
        rtt=rtt / 1e6,
        min_rtt=None if min_rtt == _NO_MIN_RTT else min_rtt / 1e6,
    )


def called(pid: int, inode: int) -> tuple[str, int] | None:
    """Address and port that a process connects to by this socket, which is not connected yet.

    No system call tells of them: they stand in the tables of the process's network.
    """
    for table, size in (("tcp", 8), ("tcp6", 32)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines():
                fields = line.split()
                if fields[3] == _SYN_SENT_IN_TABLE and fields[9] == str(inode):
                    digits, _, port = fields[2].partition(":")
                    return _address(digits[:size]), int(port, 16)
    return None


def _address(digits: str) -> str:
    """An address as the kernel's tables have it: words of this machine's byte order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    data = struct.pack(f"={len(words)}I", *words)
    return plain(socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, data))


def plain(address: str) -> str:
    """The same address without its scope, and an IPv4 one as such."""
    return address.partition("%")[0].removeprefix("::ffff:")
