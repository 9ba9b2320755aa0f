"""The USB devices of this host, as sysfs has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/sys/bus/usb/devices")
_HUB = 9


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """One device that is plugged in here.

    Attributes:
        place: Its port as the kernel names it, ``1-1.4``; stays the same when it is plugged anew.
        bus, address: As lsusb has them; the address changes when it is plugged anew.
        vendor, product: Its ids.
        is_hub: Whether others are plugged into it.
    """

    place: str
    bus: int
    address: int
    vendor: int
    product: int
    is_hub: bool

    @property
    def names(self) -> tuple[str, str, str]:
        """Each way to name it: by its port, by bus and address, by vendor and product."""
        return self.place, f"{self.bus}.{self.address}", f"{self.vendor:04x}:{self.product:04x}"


def devices() -> Iterator[UsbDevice]:
    """All that are here now; one that goes away meanwhile is left out."""
    for folder in sorted(DEVICES.glob("*-*")):
        with contextlib.suppress(OSError, ValueError):  # an interface (1-1:1.0) has no busnum
            yield UsbDevice(
                place=folder.name,
                bus=int((folder / "busnum").read_text()),
                address=int((folder / "devnum").read_text()),
                vendor=int((folder / "idVendor").read_text(), 16),
                product=int((folder / "idProduct").read_text(), 16),
                is_hub=int((folder / "bDeviceClass").read_text(), 16) == _HUB,
            )


def called(name: str) -> list[UsbDevice]:
    """The devices that a name means: one at most, but where it is vendor and product."""
    return [device for device in devices() if name in device.names]
