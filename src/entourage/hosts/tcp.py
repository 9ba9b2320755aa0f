"""TCP sockets for memory and disks: made here, within a deadline, and given to a hypervisor.

QEMU connects in its main loop, and holds up the guest until the other end has answered; it waits
for memory at one port only, and cannot be told to try another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import AsyncGenerator, Generator, Iterable
from pathlib import Path

from entourage.errors import HypervisorError
from entourage.hosts import tcpinfo

_CONNECTED_WITHIN = 5.0
_ADDRESSES = Path("/proc/net/if_inet6")


def listening_at_once(host: str, ports: Iterable[int]) -> socket.socket | None:
    """A TCP socket that listens at the first port that is free; None where none is.

    What it accepts inherits TCP_NODELAY, which QEMU's NBD server does not set: with it, a client
    waits up to 40 ms for each answer in several parts, because its kernel delays the ACK for which
    the server's kernel holds the next part back. QEMU's client waits so in its main loop, where
    the guest waits too: twice at every connection, and whenever an answer meets another one.

    Args:
        host: A numeric address of this host.
        ports: In the order in which they are tried.

    Raises:
        OSError: The address is none of this host's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # A scope is looked up here: bind takes it as a number.
    name, _, scope = host.partition("%")
    index = socket.if_nametoindex(scope) if scope else 0
    for port in ports:
        server = socket.socket(family, socket.SOCK_STREAM)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.bind((name, port, 0, index) if scope else (name, port))
            server.listen()
        except OSError as error:
            server.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return server
    return None


async def bindable(address: str) -> str:
    """What to listen at so that the address is reached: itself, or, behind a NAT, everything.

    The scope of an IPv6 address that is good on one link only is the source's: here it has another.

    Raises:
        HypervisorError: It is no address, and no name of one.
    """
    loop = asyncio.get_running_loop()
    plain, _, scope = address.partition("%")
    if scope:
        return _scoped_here(plain)
    try:
        found = await loop.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HypervisorError(
            f"the data address {address} is none: {error.strerror}",
            remedy="set data-address to one of this host's",
        ) from error
    for family, kind, protocol, _, where in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as trial:
            trial.bind(where)
            return str(where[0])
    return "::" if found[0][0] == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - meant


def _scoped_here(address: str) -> str:
    """A link-local address of this host's with the interface that has it; else everything."""
    with contextlib.suppress(OSError, ValueError):
        wanted = ipaddress.IPv6Address(address)
        for line in _ADDRESSES.read_text(encoding="ascii").splitlines():
            digits, _index, _length, _scope, _flags, interface = line.split()
            if int(digits, 16) == int(wanted):
                return f"{wanted}%{interface}"
    return "::"


def listening_in_range(host: str, ports: tuple[int, int]) -> socket.socket:
    """A socket that listens at the first free port of those that are allowed.

    Args:
        host: A numeric address of this host.
        ports: The first and the last.

    Raises:
        HypervisorError: Nothing can listen there, or none is free.
    """
    first, last = ports
    try:
        server = listening_at_once(host, range(first, last + 1))
    except OSError as error:
        raise HypervisorError(
            f"nothing can listen at {bracketed(host)}:{first}: {error.strerror}",
            remedy="set migration.ports, or data-address, to what this host allows",
        ) from error
    if server is None:
        raise HypervisorError(
            f"no port from {first} to {last} is free", remedy="set migration.ports to a wider range"
        )
    return server


class FellSilentError(HypervisorError):
    """The other end took a connection, and then said nothing for too long."""


@contextlib.asynccontextmanager
async def connected(host: str, port: int, *, device: str = "") -> AsyncGenerator[socket.socket]:
    """A TCP connection to the target's QEMU, with TCP_NODELAY; closed here at the end.

    Args:
        host: A name or an address, an IPv6 one without brackets and perhaps with a scope.
        port: The TCP port there.
        device: The label of the device that an error is about.

    Raises:
        HypervisorError: There is no way to that port; it says what to do.
    """
    where = f"{bracketed(host)}:{port}"
    loop = asyncio.get_running_loop()
    reason = ""
    try:
        async with asyncio.timeout(_CONNECTED_WITHIN):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in found:
                connection = socket.socket(family, kind, protocol)
                connection.settimeout(0)
                try:
                    await loop.sock_connect(connection, address)
                except OSError as error:
                    connection.close()
                    reason = os.strerror(error.errno or errno.EIO).lower()
                    continue
                except BaseException:
                    connection.close()
                    raise
                break
            else:
                raise _no_way(where, reason, device)
    except TimeoutError as error:
        reason = f"no answer within {_CONNECTED_WITHIN:g} s"
        raise _no_way(where, reason, device) from error
    except OSError as error:
        raise _no_way(where, error.strerror or str(error), device) from error
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


@contextlib.contextmanager
def answered_within(connection: socket.socket, patience: float) -> Generator[None]:
    """Shut a connection down, whoever else has a copy of it, if this is not left in time.

    Args:
        connection: Of this process's event loop, to a host or a process that may fall silent.
        patience: Seconds for what takes no time on the way; over TCP eight round trips come on top.

    Raises:
        FellSilentError: What was done with the connection failed after it had been shut down.
    """
    if connection.family == socket.AF_UNIX:
        peer = str(connection.getpeername())
    else:
        host, port = connection.getpeername()[:2]
        peer = f"{bracketed(host)}:{port}"
        patience += tcpinfo.of(connection).answers_within
    late = False

    def shut() -> None:
        nonlocal late
        late = True
        with contextlib.suppress(OSError):  # the other end was faster
            connection.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(patience, shut)
    try:
        yield
    except HypervisorError as error:
        if late:
            raise FellSilentError(
                f"{peer} took the connection and fell silent",
                device=error.device,
                remedy="see whether the target is alive and what filters the way to it",
            ) from error
        raise
    finally:
        timer.cancel()


def bracketed(host: str) -> str:
    """A host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _no_way(where: str, reason: str, device: str) -> HypervisorError:
    return HypervisorError(
        f"no connection to {where}: {reason}",
        device=device,
        remedy="open the ports of migration.ports on the target, or set data-address",
    )
