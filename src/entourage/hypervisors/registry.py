"""Which hypervisor runs here."""

from __future__ import annotations

from entourage.errors import UsageError
from entourage.hypervisors.base import Hypervisor
from entourage.settings.model import Settings


def open_hypervisor(settings: Settings, name: str = "qemu") -> Hypervisor:
    """This host's hypervisor of that name.

    Raises:
        UsageError: There is none of that name.
    """
    if name == "qemu":
        from entourage.hypervisors.qemu.hypervisor import QemuHypervisor  # noqa: PLC0415 - start-up

        return QemuHypervisor(settings)
    raise UsageError(f"no hypervisor is called {name!r}", remedy="there is: qemu")
