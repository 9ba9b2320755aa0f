"""Which address of the target memory and disks go to: the one that ssh really used.

The target's sshd knows it (``SSH_CONNECTION``), unless sudo has dropped it, or ssh goes through a
port that is forwarded. An alias of ssh's configuration is no name that anybody else could resolve.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from entourage.errors import HypervisorError
from entourage.hosts.ssh import configured_host
from entourage.settings.model import Settings

_REMEDY = "name one that this host reaches it by: --data-address ADDRESS (migration.data-address)"


async def data_address(host: str, heard: str, settings: Settings) -> str:
    """The numeric address of the target that its data goes to.

    Args:
        host: What the user calls the target, as ssh knows it.
        heard: The address at which the target's sshd says that it was reached; empty: unknown.
        settings: This host's.

    Raises:
        HypervisorError: None is known that is not the loopback of one of the hosts.
    """
    if wanted := settings.migration.data_address:
        return await _numeric(wanted, host)
    if heard and not (_is_loopback(heard) or _is_link_local(heard)):
        return heard
    named = await configured_host(host, settings)
    address = await _numeric(named, host)
    if _is_loopback(address):
        raise HypervisorError(
            f"ssh reaches {host} by {address}, which is this host itself (a port that is"
            " forwarded?): memory and disks cannot go there",
            remedy=_REMEDY,
        )
    if _is_link_local(address) and "%" not in address:
        raise HypervisorError(
            f"{address} says by no interface of this host where {host} is",
            remedy=f"--data-address {address}%INTERFACE, or another address of it",
        )
    return address


async def _numeric(name: str, host: str) -> str:
    """The first address of a name; an address is its own.

    Raises:
        HypervisorError: It is none.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return name
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name"
        raise HypervisorError(
            f"the address of {host} is not known here: {name}: {reason}", remedy=_REMEDY
        ) from error
    return str(found[0][4][0])


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None


def _is_loopback(address: str) -> bool:
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed is not None and parsed.is_loopback


def _is_link_local(address: str) -> bool:
    parsed = _parsed(address)
    return isinstance(parsed, ipaddress.IPv6Address) and parsed.is_link_local
