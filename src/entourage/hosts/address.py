"""Which addresses of the target memory and disks may go to: those that ssh may really have used.

The target's sshd knows one (``SSH_CONNECTION``), unless sudo has dropped it, or ssh goes through a
port that is forwarded; behind a NAT it is one that only the target knows. An alias of ssh's
configuration is no name that anybody else could resolve: ssh is asked what it stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import TypeAlias

from entourage.errors import HypervisorError
from entourage.hosts.ssh import configuration
from entourage.settings.model import Settings

_REMEDY = "name one that this host reaches it by: --data-address ADDRESS (migration.data-address)"
_MOST = 4  # addresses of one name that are tried
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


async def data_addresses(host: str, heard: str, settings: Settings) -> list[str]:
    """The numeric addresses of the target that its data may go to, the likeliest first.

    Args:
        host: What the user calls the target, as ssh knows it.
        heard: The address at which the target's sshd says that it was reached; not trusted; empty
            where it is not known.
        settings: This host's.

    Raises:
        HypervisorError: None is known that is not the loopback of one of the hosts.
    """
    if wanted := settings.migration.data_address:
        return _with_interface(await _numeric(wanted, host))
    found = [heard] if _may_be_heard(heard) else []
    try:
        found += await _configured(host, settings)
    except HypervisorError:
        if not found:
            raise
    return list(dict.fromkeys(found))


async def _configured(host: str, settings: Settings) -> list[str]:
    """The addresses that ssh's configuration has for a host.

    Raises:
        HypervisorError: It has none that data can go to.
    """
    said = await configuration(host, settings)
    name = said.get("hostname", "") or host.rpartition("@")[2]
    named = await _numeric(name, host, _FAMILIES.get(said.get("addressfamily", "")))
    found = [one for one in named if not _is_loopback(one)]
    if not found:
        raise HypervisorError(
            f"ssh reaches {host} by {named[0]}, which is this host itself (a port that is"
            " forwarded?): memory and disks cannot go there",
            remedy=_REMEDY,
        )
    return _with_interface(found)


def _may_be_heard(address: str) -> bool:
    """Whether what the target says of itself can be an address of its that is good here.

    A link-local one has the target's name of the link.
    """
    parsed = _parsed(address)
    if parsed is None or "%" in address or _is_loopback(address):
        return False
    return not (parsed.is_unspecified or parsed.is_multicast or parsed.is_link_local)


def _with_interface(addresses: list[str]) -> list[str]:
    """Those that say by which interface, where that is needed.

    Raises:
        HypervisorError: None does.
    """
    found = [one for one in addresses if "%" in one or not _is_link_local(one)]
    if not found:
        raise HypervisorError(
            f"{addresses[0]} does not say by which interface of this host the target is reached",
            remedy=f"--data-address {addresses[0]}%INTERFACE, or another address of it",
        )
    return found


async def _numeric(name: str, host: str, family: socket.AddressFamily | None = None) -> list[str]:
    """The addresses of a name, with their interfaces; an address is its own.

    Raises:
        HypervisorError: It has none.
    """
    if _parsed(name) is not None:
        return [name]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            name, None, family=family or socket.AF_UNSPEC, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name"
        raise HypervisorError(
            f"the address of {host} is not known here: {name}: {reason}", remedy=_REMEDY
        ) from error
    return [_with_scope(where) for *_, where in found[:_MOST]]


def _with_scope(where: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    """The address of what ``getaddrinfo`` has found, which keeps the interface apart."""
    address, scope = str(where[0]), where[3] if len(where) > 2 else 0  # noqa: PLR2004 - IPv6
    if scope and "%" not in address:
        with contextlib.suppress(OSError):
            return f"{address}%{socket.if_indextoname(scope)}"
    return address


def _parsed(address: str) -> _Address | None:
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
