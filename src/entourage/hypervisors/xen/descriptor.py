"""What Xen's backend says of itself. Imports nothing of it before it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from entourage.hypervisors.backend import Backend, Saves

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings

_NAME = "xen"
_CAPABILITIES = Path("/proc/xen/capabilities")


def _is_here() -> bool:
    """Whether this host is a Xen dom0 with xl."""
    if not _CAPABILITIES.exists():
        return False
    from entourage.hypervisors.xen.xl import is_dom0  # noqa: PLC0415

    return is_dom0()


def _open(settings: Settings, _name: str) -> Hypervisor:
    from entourage.hypervisors.xen.hypervisor import XenHypervisor  # noqa: PLC0415

    return XenHypervisor(settings)


BACKEND = Backend(
    kind="Xen",
    saves_by="",
    saves=Saves(
        checkpoints=True,
        live=True,
        filters=True,
        elsewhere=True,
        stays_paused=True,
        never_since="the disks' back end in the kernel keeps no record of what is written",
    ),
    names=_NAME,
    usual=_NAME,
    answers_to=lambda name: name == _NAME,
    is_here=_is_here,
    open=_open,
    # xl keeps no definition of a domain that is off: its user has the file.
    start_command=lambda _name, _domain: "xl create FILE",
    console_command=lambda _name, domain: f"xl console {domain}",
    delete_hint=lambda _name, domain: f"`xl destroy {domain}`",
    resume_hint=lambda _name, domain: f"`xl unpause {domain}`",
)
