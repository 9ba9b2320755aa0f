"""How much arriving memory waits in the kernel until QEMU takes it in: little, for the blackout.

A target takes memory in more slowly than a near source can send it, so the socket's buffers are
full, several MiB, and stay so until the guest has stopped. The source's QEMU reckons with what it
has yet to send only; what waits here is loaded within the blackout. QEMU cannot be told how large
its socket's buffer is to be, so the socket is borrowed for a moment.
"""

from __future__ import annotations

import contextlib
import socket

from entourage.hosts import tcpinfo
from entourage.hosts.borrow import listens, tcp_sockets
from entourage.hosts.process import ProcessHandle

_RCVBUFFORCE = 33  # of Linux, for which Python has no name: beyond net.core.rmem_max
_LEAST = 512 << 10
_MOST = 6 << 20  # as much as the kernel takes by itself, unless net.ipv4.tcp_rmem says otherwise
_RATE = 1.25e9  # bytes a second: 10 Gbit/s


def buffer_for(round_trip: float) -> int | None:
    """Bytes of a receive buffer that loses no speed at 10 Gbit/s; None where the kernel knows best.

    Args:
        round_trip: Seconds; half of a buffer is the window, the kernel needs the rest itself.
    """
    needed = max(_LEAST, int(2 * _RATE * round_trip))
    return needed if needed < _MOST else None


def bound(connection: socket.socket) -> int | None:
    """Bound what waits at a TCP connection that has been accepted.

    Returns:
        Bytes of the receive buffer; None where nothing was changed: the way is too long for it.

    Raises:
        OSError: It is no TCP connection.
    """
    round_trip = tcpinfo.of(connection).min_rtt
    wanted = None if round_trip is None else buffer_for(round_trip)
    if wanted is None:
        return None
    half = wanted // 2  # the kernel doubles it
    try:
        connection.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, half)
    except PermissionError:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, half)
    return wanted


def keep_short(process: ProcessHandle, port: int) -> int | None:
    """Bound what waits at a process's accepted TCP connections to a port.

    Returns:
        Bytes of the receive buffer; None where nothing was changed: the way is too long for it, no
        connection is there, or this process may not look into that one.
    """
    size = None
    with contextlib.suppress(OSError):
        for connection in tcp_sockets(process):
            if connection.getsockname()[1] == port and not listens(connection):
                size = bound(connection) or size
    return size
