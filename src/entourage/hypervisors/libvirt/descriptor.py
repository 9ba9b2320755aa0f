"""What libvirt's backend says of itself. Imports nothing of it before it is opened."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from entourage.hypervisors.backend import Backend
from entourage.hypervisors.libvirt import uri

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings

USUAL = "qemu:///system"
_SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")


def _is_here() -> bool:
    """Whether this host has a libvirtd, and libvirt's Python module."""
    there = any(Path(path).exists() for path in _SOCKETS)
    return there and importlib.util.find_spec("libvirt") is not None


def _open(settings: Settings, name: str) -> Hypervisor:
    if uri.elsewhere(name) is not None:
        from entourage.hypervisors.libvirt.agentless import AgentlessHypervisor  # noqa: PLC0415

        return AgentlessHypervisor(settings, name)
    from entourage.hypervisors.libvirt.hypervisor import LibvirtHypervisor  # noqa: PLC0415

    return LibvirtHypervisor(settings, name)


def _start_command(name: str, domain: str) -> str:
    tool = "entourage" if uri.elsewhere(name) is None else "virsh"
    return f"{tool} start {domain}"


BACKEND = Backend(
    kind="libvirt",
    names=f"URIs as {USUAL}",
    usual=USUAL,
    answers_to=lambda name: ":" in name,
    is_here=_is_here,
    open=_open,
    counterpart=lambda _name, wanted: wanted or USUAL,
    start_command=_start_command,
    console_command=lambda name, domain: f"virsh -c {name} console {domain}",
    destination=uri.destination,
    name_elsewhere=uri.agentless_name,
    elsewhere=uri.elsewhere,
    same_as=uri.same_as,
)
