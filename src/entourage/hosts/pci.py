"""The PCI devices of this host, as sysfs has them, and which of them guests may be given.

A guest is given a whole IOMMU group (Linux, ``Documentation/driver-api/vfio.rst``): what is in one
with it must have no driver of the host's, and is in nobody else's guest. Xen has no groups in
sysfs; there a device is given that ``xl pci-assignable-add`` has bound to pciback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEVICES = Path("/sys/bus/pci/devices")
_ASSIGNABLE: Final = "pciback"
_BRIDGES: Final = frozenset({0x0604, 0x0609})
"""Class and subclass of what leads to other devices; a group may have it with its own driver."""


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One device of this host.

    Attributes:
        place: ``0000:3b:00.0``.
        vendor, product: Its ids.
        driver: The kernel's driver that has it; empty: none.
        group: Its IOMMU group; empty: none that the kernel knows of.
        is_bridge: Whether other devices are behind it.
    """

    place: str
    vendor: int
    product: int
    driver: str
    group: str
    is_bridge: bool

    @property
    def ids(self) -> str:
        """``8086:1572``."""
        return f"{self.vendor:04x}:{self.product:04x}"

    @property
    def is_the_hosts(self) -> bool:
        """Whether a driver has it that is not there to give it to guests."""
        return bool(self.driver) and self.driver != _ASSIGNABLE and "vfio" not in self.driver


@dataclass(frozen=True, slots=True)
class Unit:
    """What one guest is given at the least: the devices of one group, without bridges."""

    devices: tuple[PciDevice, ...]

    @property
    def key(self) -> str:
        """What equal ones are called alike by: ``pci:8086:1572``, ``pci:10de:1b80+10de:10f0``."""
        return "pci:" + "+".join(one.ids for one in self.devices)

    @property
    def can_be_given(self) -> bool:
        """Whether the host is set up to give such devices to guests at all."""
        return all(one.group or one.driver == _ASSIGNABLE for one in self.devices)


def devices() -> Iterator[PciDevice]:
    """All that are here now; one that goes away meanwhile is left out."""
    for folder in sorted(DEVICES.glob("*")):
        with contextlib.suppress(OSError, ValueError):
            yield PciDevice(
                place=folder.name,
                vendor=int((folder / "vendor").read_text(), 16),
                product=int((folder / "device").read_text(), 16),
                driver=_link(folder / "driver"),
                group=_link(folder / "iommu_group"),
                is_bridge=int((folder / "class").read_text(), 16) >> 8 in _BRIDGES,
            )


def units() -> list[Unit]:
    """All that are here now."""
    groups: dict[str, list[PciDevice]] = {}
    for one in devices():
        if not one.is_bridge:
            groups.setdefault(one.group or one.place, []).append(one)
    return [Unit(tuple(each)) for each in groups.values()]


def _link(path: Path) -> str:
    """The last part of what a link leads to; empty where there is none."""
    try:
        return path.readlink().name
    except OSError:
        return ""
