"""USB devices: the class ``usb``. See ``base`` beside this."""

from __future__ import annotations

from entourage.devices.host.base import HostDeviceController
from entourage.domain import Usb


class UsbController(HostDeviceController[Usb]):
    """A USB device's way."""

    device_class = "usb"
    example = "VENDOR:PRODUCT"

    @property
    def why_not(self) -> str:
        """It stays in its socket."""
        usb = self.device
        name = f"{usb.vendor or 0:04x}:{usb.product or 0:04x}"
        return f"USB device {name} is plugged into this host, and cannot follow the guest"
