"""The host's own USB and PCI devices in a domain of xl's (tools/xl/xl_pci.c, xl_usb.c; Xen 4.17).

xl is asked before and after what is attached: its exit status alone says too little.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Container, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from entourage.domain import Pci, Usb, whole_bdf
from entourage.errors import HypervisorError
from entourage.hosts.usb import UsbDevice, called
from entourage.hypervisors.seams import HostDevice, Objection
from entourage.hypervisors.xen.configuration import (
    Config,
    domain_type,
    entries,
    pci_of,
    usb_of,
)
from entourage.hypervisors.xen.xl import info, xl

PCI_DEVICES = Path("/sys/bus/pci/devices")
_BDF = re.compile(r"\b[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\b")
_OPTIONS = re.compile(r"(?:msitranslate|power_mgmt|permissive)=[01]|rdm_policy=[a-z]+")
"""What may be said of a PCI device; other words of xl's name another device, or who has it now."""
_IN_USE = "end what uses it in the guest, or unload its driver there"
_CONTROLLER = re.compile(r"([0-9]+)\s")
_PORT = re.compile(r"\s*Port ([0-9]+): Bus ([0-9a-f]+) Device ([0-9a-f]+)")


class HostDevices:
    """Takes devices of this host out of one domain, and plugs them in: one xl at a time.

    Args:
        domid: Its number here.
        name: What the user calls it.
    """

    def __init__(self, domid: int, name: str) -> None:
        self._domid = str(domid)
        self._name = name
        self._turn = asyncio.Lock()

    async def unplug(self, device: HostDevice) -> None:
        """Take it out; out already is no error.

        Raises:
            HypervisorError: xl fails, or the guest does not let go.
        """
        await self._uninterrupted(self._unplug(device))

    async def plug(self, device: HostDevice) -> None:
        """Plug in ``device.plug``, or else what it is here; there already is no error.

        Raises:
            HypervisorError: It is not there, or xl fails; with the command to type.
        """
        await self._uninterrupted(self._plug(device))

    async def _uninterrupted(self, work: Coroutine[Any, Any, None]) -> None:
        """To its end, also where nobody wants it any more: an xl that is killed leaves halves."""

        async def in_turn() -> None:
            async with self._turn:
                await work

        task = asyncio.ensure_future(in_turn())
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    async def _unplug(self, device: HostDevice) -> None:
        if isinstance(device, Pci):
            here = whole_bdf(str(device.host))
            detach = ["pci-detach", self._domid, here]
        else:
            found = _the_one(device.place)
            here = found.names[1]
            port = (await _attached_usbs(self._domid)).get(here, ())
            detach = ["usbdev-detach", self._domid, *port]
        if here not in await self._attached(device):
            return
        try:
            await xl(*detach)
        except HypervisorError as error:
            raise HypervisorError(error.message, remedy=_IN_USE) from error
        if here in await self._attached(device):
            raise HypervisorError(f"the guest does not let go of {here}", remedy=_IN_USE)

    async def _plug(self, device: HostDevice) -> None:
        if isinstance(device, Pci):
            there = whole_bdf(device.plug or str(device.host))
            slot = f"vslot={device.address.partition('.')[0]}" if device.address else None
            for option in filter(None, (device.options or "").split(",")):
                if _OPTIONS.fullmatch(option) is None:
                    raise HypervisorError(f"{option} is no option of a device that moves")
            attach = ["pci-attach", ",".join(filter(None, (there, slot, device.options)))]
        else:
            found = _the_one(device.plug or device.place)
            there = found.names[1]
            at = zip(("controller", "port"), (device.port or "").split(":"), strict=False)
            attach = ["usbdev-attach", "type=hostdev"]
            attach += [f"hostbus={found.bus}", f"hostaddr={found.address}"]
            attach += [f"{key}={value}" for key, value in at if value]
        try:
            await self._attach(device, there, attach)
        except HypervisorError as error:
            by_hand = shlex.join(["xl", attach[0], self._name, *attach[1:]])
            raise HypervisorError(error.message, remedy=f"`{by_hand}`") from error

    async def _attach(self, device: HostDevice, there: str, attach: Sequence[str]) -> None:
        if there in await self._attached(device):
            return
        await xl(attach[0], self._domid, *attach[1:])
        if there not in await self._attached(device):
            raise HypervisorError("xl says that it has, and does not list it")

    async def _attached(self, device: HostDevice) -> Container[str]:
        """What of that kind the domain has now."""
        if isinstance(device, Pci):
            return await attached_pcis(self._domid)
        return await _attached_usbs(self._domid)


def _the_one(name: str | None) -> UsbDevice:
    """The only USB device here that is called so."""
    found = called(name or "")
    if len(found) != 1:
        which = name or "it"
        what = (
            f"{len(found)} USB devices are {which}" if found else f"there is no USB device {which}"
        )
        raise HypervisorError(what, remedy="`lsusb -t` shows what there is")
    return found[0]


async def attached_pcis(domid: int | str) -> set[str]:
    """The PCI devices that a domain has."""
    return set(_BDF.findall(await xl("pci-list", str(domid))))


async def _attached_usbs(domid: str) -> Mapping[str, tuple[str, str]]:
    """The USB devices that a domain has: controller and port there, by bus and address here."""
    found: dict[str, tuple[str, str]] = {}
    controller = ""
    for line in (await xl("usb-list", domid)).splitlines():
        if match := _PORT.match(line):
            found[f"{int(match[2], 16)}.{int(match[3], 16)}"] = (controller, match[1])
        elif match := _CONTROLLER.match(line):
            controller = match[1]
    return found


def test_unplug(device: HostDevice, config: Config) -> list[Objection]:
    """Why a device cannot be taken out of a domain here, or no other one be plugged in there.

    Args:
        device: The device.
        config: xl's of the domain.
    """
    if isinstance(device, Usb):
        gone = ("it is not plugged into this host any more", "`xl usbdev-detach` it")
        return [gone] if device.place is None else []
    kind, built = domain_type(config), config.get("b_info", {})
    if kind == "pvh":
        return [("a PVH guest has no PCI devices of the host", "make it an HVM guest")]
    # libxl_create.c: what it then takes for populate-on-demand goes with no IOMMU.
    if kind == "hvm" and int(built.get("target_memkb", 0)) < int(built.get("max_memkb", 0)):
        reason = "the guest has less memory than it may have, and xl gives such a one no IOMMU"
        return [(reason, f"`xl mem-set` it to {int(built['max_memkb']) >> 10} MiB")]
    return []


async def test_plug(device: HostDevice) -> Sequence[Objection]:
    """Why ``device.plug`` of this host cannot be plugged into a domain."""
    domains = [(entry.name, entry.config) for entry in entries(await xl("list", "-l"))]
    if isinstance(device, Pci):
        return await _test_plug_pci(whole_bdf(str(device.plug)), domains)
    return _test_plug_usb(str(device.plug), domains)


async def _test_plug_pci(bdf: str, domains: Sequence[tuple[str, Config]]) -> list[Objection]:
    if "directio" not in (await info("virt_caps")).get("virt_caps", ""):
        return [
            ("it has no IOMMU, or that is off", "switch it on in the firmware, and boot Xen so")
        ]
    if bdf in _BDF.findall(await xl("pci-assignable-list")):
        return []
    for name, config in domains:
        if bdf in map(pci_of, config.get("pcidevs", ())):
            return [(f"PCI device {bdf} is {name}'s", f"`xl pci-detach {name} {bdf}`")]
    if not (PCI_DEVICES / bdf).exists():
        return [(f"there is no PCI device {bdf}", "`lspci -D` there shows what there is")]
    return [(f"PCI device {bdf} is not assignable", f"there: `xl pci-assignable-add {bdf}`")]


def _test_plug_usb(name: str, domains: Sequence[tuple[str, Config]]) -> list[Objection]:
    try:
        device = _the_one(name)
    except HypervisorError as error:
        return [(error.message, error.remedy)]
    if device.is_hub:
        return [(f"USB device {name} is a hub", "name what is plugged into it")]
    for owner, config in domains:
        if f"{device.bus}.{device.address}" in map(usb_of, config.get("usbdevs", ())):
            return [(f"USB device {name} is {owner}'s", f"`xl usbdev-detach` it from {owner}")]
    return []
