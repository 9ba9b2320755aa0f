from __future__ import annotations

from pathlib import Path

import pytest

from entourage.devices.base import AnyController
from entourage.devices.host.pci import PciController
from entourage.devices.host.usb import UsbController
from entourage.domain import Device, Pci, Usb
from entourage.steps import Refusal
from tests.unit.devices.test_harness import TwoHosts, domain_with

TABLET, KEY = Usb(id="tablet", model="usb-tablet"), Usb(id="key", vendor=0x1050, product=0x0407)
RNG, GPU = Pci(id="rng", model="virtio-rng-pci"), Pci(id="gpu", host="0000:3b:00.0")


def hosts_with(device: Device, tmp_path: Path) -> TwoHosts:
    return TwoHosts(domain_with(**{device.device_class: (device,)}), tmp_path)


@pytest.mark.parametrize(("kind", "device"), [(UsbController, TABLET), (PciController, RNG)])
async def test_an_emulated_device_travels_in_the_stream(
    tmp_path: Path, kind: type[AnyController], device: Device
) -> None:
    assert await hosts_with(device, tmp_path).test(kind(device)) == []


@pytest.mark.parametrize(("kind", "device"), [(UsbController, TABLET), (PciController, RNG)])
async def test_what_the_hypervisor_marks_is_refused_by_name(
    tmp_path: Path, kind: type[AnyController], device: Device
) -> None:
    hosts = hosts_with(device, tmp_path)
    hosts.blockers = (
        Refusal(device.label, "a", "it has no migration support"),
        Refusal("domain", "a", "something else"),
    )
    (refusal,) = await hosts.test(kind(device))
    assert str(refusal) == (
        f"{device.label} on a: it has no migration support (take it out of the domain first)"
    )


@pytest.mark.parametrize(
    ("kind", "device", "name"),
    [(UsbController, KEY, "1050:0407"), (PciController, GPU, "0000:3b:00.0")],
)
async def test_a_device_of_the_host_is_refused_by_name(
    tmp_path: Path, kind: type[AnyController], device: Device, name: str
) -> None:
    hosts = hosts_with(device, tmp_path)
    hosts.blockers = (Refusal(device.label, "a", "VFIO migration is not supported"),)
    (refusal,) = await hosts.test(kind(device))
    assert name in refusal.reason
    assert refusal.no_way
    assert f"[tool] {device.device_class} =" in refusal.remedy
