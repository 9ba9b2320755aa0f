"""Which controller drives a device: the built-in ones, and those that other packages bring.

A package brings a controller with an entry point of the group ``entourage.devices``. Its name is a
device class (``block``, ``net``, …), whose built-in controller it replaces, or the ``type`` of an
``[[external]]`` device. Nothing of it is imported before a domain has such a device. It must be
installed on both hosts.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from entourage.devices.base import AnyController, Controller
from entourage.devices.block.controller import BlockController
from entourage.devices.host.pci import PciController
from entourage.devices.host.usb import UsbController
from entourage.devices.net import NetController
from entourage.devices.tpm import TpmController
from entourage.domain import ADDED, Device, External, added_controller
from entourage.errors import UsageError

GROUP = "entourage.devices"
BUILT_IN: dict[str, type[AnyController]] = {
    controller.device_class: controller
    for controller in (BlockController, NetController, TpmController, UsbController, PciController)
}


def controller_class(device: Device, *, saved: bool = False) -> type[AnyController] | None:
    """The class of the device's controller; None where only an external tool can move it.

    Args:
        device: The device.
        saved: Its domain is saved in a directory, or restored from one: either half of what is
            built in does what that needs.

    Raises:
        UsageError: The package that brings it cannot be used, or two packages bring it.
    """
    name = device.type if isinstance(device, External) else device.device_class
    brought = [entry for entry in _entries() if entry.name == name]
    if not brought:
        if device.device_class in ADDED:
            return cast("type[AnyController]", added_controller(device.device_class))
        built_in = BUILT_IN.get(device.device_class)
        return _of_a_save(built_in) if saved and built_in is not None else built_in
    if len(brought) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in brought))
        raise UsageError(
            f"{packages} both bring a controller for {name!r}",
            device=device.label,
            remedy="remove one of them",
        )
    return _load(brought[0], device)


def _of_a_save(kind: type[AnyController]) -> type[AnyController]:
    from entourage.devices.saved import CONTROLLERS  # noqa: PLC0415 - a migration has no use for it

    return CONTROLLERS.get(kind, kind)


@functools.cache
def _entries() -> tuple[EntryPoint, ...]:
    """All that other packages bring; looked for once, for it reads every package's metadata."""
    return tuple(entry_points(group=GROUP))


def _load(entry: EntryPoint, device: Device) -> type[AnyController]:
    remedy = f"mend or remove {_package(entry)}"
    try:
        loaded = entry.load()
    except Exception as error:  # another package's code may raise anything while it is imported
        raise UsageError(
            f"the controller {entry.value} of {_package(entry)} cannot be loaded: {error!r}",
            device=device.label,
            remedy=remedy,
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Controller)):
        raise UsageError(
            f"{entry.value} of {_package(entry)} is no Controller",
            device=device.label,
            remedy=remedy,
        )
    return cast("type[AnyController]", loaded)


def _package(entry: EntryPoint) -> str:
    """The name of the package that an entry point is from."""
    return entry.dist.name if entry.dist is not None else entry.value
