"""PCI devices: the class ``pci``. See ``base`` beside this."""

from __future__ import annotations

from entourage.devices.host.base import HostDeviceController
from entourage.domain import Pci


class PciController(HostDeviceController[Pci]):
    """A PCI device's way."""

    device_class = "pci"
    example = "0000:BB:DD.F"

    @property
    def why_not(self) -> str:
        """Nobody can read its registers, and nobody else has it."""
        return f"PCI device {self.device.host} is this host's own, and its state cannot be read"
