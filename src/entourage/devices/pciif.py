"""PCI devices: the class ``pci``.

An emulated one is part of the machine, and its state travels in the stream, unless the hypervisor
marks it as not migratable. One of the host's own (VFIO) holds state that nobody can read.
"""

from __future__ import annotations

from collections.abc import Sequence

from entourage.devices.base import Controller, Here
from entourage.devices.common import marked, no_way
from entourage.domain import Pci
from entourage.steps import Refusal


class PciController(Controller):
    """A PCI device's way: in the stream, or none.

    A strategy for the host's own devices (``Verb.UNPLUG`` in ``prepare``, the like of it plugged in
    on arrival, plugged back by ``recover``) takes the place of the refusal in ``test``.
    """

    device_class = "pci"

    @property
    def pci(self) -> Pci:
        """The device, which is a PCI device."""
        assert isinstance(self.device, Pci)  # noqa: S101 - the registry sees to it
        return self.device

    async def test(self, here: Here) -> Sequence[Refusal]:
        """An emulated one moves unless the hypervisor itself says no."""
        pci = self.pci
        if pci.host is None:
            return marked(here, pci)
        reason = f"PCI device {pci.host} is this host's own (VFIO), and its state cannot be read"
        return [no_way(pci, here.source, reason, "take it out of the domain first")]
