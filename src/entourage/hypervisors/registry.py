"""Which hypervisors there are on this host."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from entourage.domain import Domain
from entourage.errors import ConfigError, EntourageError, UsageError
from entourage.hosts.proxy_agent import is_agentless
from entourage.hypervisors.base import DomainState, Hypervisor
from entourage.settings.model import Settings

# A backend is imported when it is opened: `--help` and a shell's TAB must not wait for it.
# ruff: noqa: PLC0415

_PATIENCE = 5.0
"""Seconds for a libvirtd that nobody has named to say what domains it has."""
LIBVIRT_URI = "qemu:///system"
_XEN_CAPABILITIES = Path("/proc/xen/capabilities")
_LIBVIRT_SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")


def open_hypervisor(settings: Settings, name: str = "qemu") -> Hypervisor:
    """This host's hypervisor of that name.

    Args:
        settings: This host's.
        name: ``qemu``, ``xen``; or the URI of a libvirtd as virsh has it; or, for one on a host
            without Entourage, see ``hosts.proxy_agent.agentless_name``.

    Raises:
        UsageError: There is none of that name.
    """
    if name == "qemu":
        from entourage.hypervisors.qemu.hypervisor import QemuHypervisor

        return QemuHypervisor(settings)
    if is_agentless(name):
        from entourage.hypervisors.libvirt.agentless import AgentlessHypervisor

        return AgentlessHypervisor(settings, name)
    if name == "xen":
        from entourage.hypervisors.xen.hypervisor import XenHypervisor

        return XenHypervisor(settings)
    if ":" in name:
        from entourage.hypervisors.libvirt.hypervisor import LibvirtHypervisor

        return LibvirtHypervisor(settings, name)
    raise UsageError(
        f"no hypervisor is called {name!r}",
        remedy=f"there are: qemu, xen, and URIs as {LIBVIRT_URI}",
    )


def counterpart(name: str, wanted: str | None = None) -> str:
    """The hypervisor on the target that takes a domain of this one here.

    Args:
        name: This host's.
        wanted: The libvirtd there that was asked for.
    """
    return wanted or LIBVIRT_URI if ":" in name else name


def has_libvirt() -> bool:
    """Whether this host has a libvirtd, and what it takes to speak with it."""
    from entourage.hypervisors.libvirt.connection import installed

    return any(Path(path).exists() for path in _LIBVIRT_SOCKETS) and installed()


def has_xen() -> bool:
    """Whether this host is a Xen dom0 with xl."""
    if not _XEN_CAPABILITIES.exists():
        return False
    from entourage.hypervisors.xen.xl import is_dom0

    return is_dom0()


def hypervisors(settings: Settings, connect: str | None = None) -> list[Hypervisor]:
    """Those of this host.

    Args:
        settings: This host's.
        connect: Only the one of this name.
    """
    if connect:
        return [open_hypervisor(settings, connect)]
    names = ["qemu", *(["xen"] if has_xen() else []), *([LIBVIRT_URI] if has_libvirt() else [])]
    return [open_hypervisor(settings, name) for name in names]


async def all_domains(settings: Settings, connect: str | None = None) -> list[DomainState]:
    """The domains of all of them; a libvirtd that cannot be asked has none, unless it is named."""
    found: list[DomainState] = []
    for hypervisor in hypervisors(settings, connect):
        named = connect is not None or hypervisor.name == "qemu"
        try:
            async with asyncio.timeout(None if named else _PATIENCE):
                found += await hypervisor.domains()
        except (EntourageError, TimeoutError):
            if named:
                raise
    return found


async def find_domain(
    settings: Settings, name: str, connect: str | None = None
) -> tuple[Hypervisor, Domain]:
    """A domain of this host, and whose it is.

    Raises:
        UsageError: There is none of that name, or two hypervisors have one.
    """
    asked = hypervisors(settings, connect)
    found: list[tuple[Hypervisor, Domain]] = []
    problem: EntourageError | None = None
    unasked = ""
    for hypervisor in asked:
        try:
            async with asyncio.timeout(None if len(asked) == 1 else _PATIENCE):
                found.append((hypervisor, await hypervisor.find(name)))
        except ConfigError:  # it is there, and what was written about it is wrong
            raise
        except UsageError as error:
            problem = problem or error
        except (EntourageError, TimeoutError) as error:
            if len(asked) == 1 or hypervisor.name == "qemu":
                raise
            unasked = f"; and {hypervisor.name} does not answer: {error or 'it hangs'}"
    if len(found) > 1:
        owners = " and ".join(f"one of {hypervisor.name}" for hypervisor, _ in found)
        raise UsageError(
            f"there are two domains {name!r} on this host: {owners}",
            remedy="--connect with one of these names says which is meant",
        )
    if not found:
        if unasked and problem:
            problem.message += unasked
        raise problem or UsageError(f"there is no domain {name!r} on this host")
    return found[0]


__all__: Sequence[str] = (
    "LIBVIRT_URI",
    "all_domains",
    "counterpart",
    "find_domain",
    "has_libvirt",
    "has_xen",
    "hypervisors",
    "open_hypervisor",
)
