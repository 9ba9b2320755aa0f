"""What the backend of attended migrations says of itself.

It is called ``attended:`` and the toolstack's own name, ``attended:qemu:///system`` or
``attended:proxmox``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from entourage.errors import UsageError
from entourage.hypervisors.backend import Backend

if TYPE_CHECKING:
    from entourage.hypervisors.attended.toolstack import Toolstack
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings

_SCHEME = "attended:"
LIBVIRT = "qemu:///system"
PROXMOX = "proxmox"


def attended_name(toolstack: str) -> str:
    """The name of the hypervisor that a toolstack's attended domains are."""
    return f"{_SCHEME}{toolstack}"


def toolstack_here(settings: Settings) -> str:
    """The name of the toolstack whose migrations this host's daemon attends."""
    return PROXMOX if settings.attend.toolstack == "proxmox" else LIBVIRT


def open_toolstack(settings: Settings, name: str) -> Toolstack:
    """The toolstack of that name on this host.

    Raises:
        UsageError: There is none that can be attended.
    """
    del settings  # another one may need them
    if name == PROXMOX:
        from entourage.hypervisors.attended.proxmox import ProxmoxToolstack  # noqa: PLC0415

        return ProxmoxToolstack()
    if name == LIBVIRT:
        from entourage.hypervisors.libvirt.toolstack import LibvirtToolstack  # noqa: PLC0415

        return LibvirtToolstack(name)
    raise UsageError(
        f"migrations of {name!r} cannot be attended",
        remedy=f"only those of {LIBVIRT}, and Proxmox VE's",
    )


def _open(settings: Settings, name: str) -> Hypervisor:
    from entourage.hypervisors.attended.hypervisor import AttendedHypervisor  # noqa: PLC0415

    toolstack = open_toolstack(settings, name.removeprefix(_SCHEME))
    return AttendedHypervisor(name, toolstack, settings=settings)


BACKEND = Backend(
    kind="attended migrations",
    names=f"{_SCHEME}{LIBVIRT}, {_SCHEME}{PROXMOX}",
    usual=attended_name(LIBVIRT),
    answers_to=lambda name: name.startswith(_SCHEME),
    is_here=lambda: False,  # its domains are the toolstack's
    unseen=True,
    open=_open,
    start_command=lambda _name, domain: f"entourage start {domain}",
    same_as=lambda name: name.removeprefix(_SCHEME),
)
