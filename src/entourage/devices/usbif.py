"""USB devices: the class ``usb``.

An emulated one is part of the machine, and its state travels in the stream with the rest. One of
the host's own stays in its socket: the hypervisor has no way to move it.
"""

from __future__ import annotations

from collections.abc import Sequence

from entourage.devices.base import Controller, Here
from entourage.devices.common import marked, no_way
from entourage.domain import Usb
from entourage.steps import Refusal


class UsbController(Controller):
    """A USB device's way: in the stream, or none.

    A strategy for the host's own devices (unplug here, plug the like of it in there) belongs into
    ``prepare`` and ``arrived``, and takes the place of the refusal in ``test``.
    """

    device_class = "usb"

    @property
    def usb(self) -> Usb:
        """The device, which is a USB device."""
        assert isinstance(self.device, Usb)  # noqa: S101 - the registry sees to it
        return self.device

    async def test(self, here: Here) -> Sequence[Refusal]:
        """An emulated one moves unless the hypervisor itself says no."""
        usb = self.usb
        if usb.vendor is None and usb.product is None:
            return marked(here, usb)
        name = f"{usb.vendor or 0:04x}:{usb.product or 0:04x}"
        reason = f"USB device {name} is plugged into this host, and cannot follow the guest"
        return [no_way(usb, here.source, reason, "take it out of the domain first")]
