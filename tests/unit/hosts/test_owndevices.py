"""Which of a host's own devices are free, and why others are not, by a sysfs of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from entourage.domain import Domain, Pci, Usb
from entourage.hosts import owndevices, pci, usb

NIC, OTHER_NIC, GPU, SOUND = "0000:3b:00.0", "0000:5e:00.0", "0000:01:00.0", "0000:01:00.1"


class Sys:
    """A host's devices.

    Args:
        root: Where its sysfs is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("pci", "usb"):
            (root / name).mkdir()

    def pci(
        self, place: str, ids: str, *, driver: str = "", group: str = "", kind: int = 0x020000
    ) -> None:
        vendor, product = ids.split(":")
        folder = self.root / "pci" / place
        folder.mkdir()
        for name, text in (("vendor", vendor), ("device", product), ("class", f"{kind:06x}")):
            (folder / name).write_text(f"0x{text}\n")
        for name, to in (("driver", driver), ("iommu_group", group)):
            if to:
                (folder / name).symlink_to(Path("..", to))

    def usb(self, place: str, ids: str) -> None:
        vendor, product = ids.split(":")
        folder = self.root / "usb" / place
        folder.mkdir()
        for name, text in (
            ("busnum", "1"), ("devnum", place[-1]), ("idVendor", vendor), ("idProduct", product),
            ("bDeviceClass", "00"),
        ):  # fmt: skip
            (folder / name).write_text(f"{text}\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sys:
    monkeypatch.setattr(pci, "DEVICES", tmp_path / "pci")
    monkeypatch.setattr(usb, "DEVICES", tmp_path / "usb")
    return Sys(tmp_path)


def domain(name: str = "web1", **devices: tuple[Pci | Usb, ...]) -> Domain:
    return Domain(name=name, memory=1 << 30, **devices)  # type: ignore[arg-type]


def look(*domains: Domain) -> owndevices.OwnDevices:
    return owndevices.look(domains, pci.units())


def test_a_driver_of_the_hosts_has_what_is_not_free(here: Sys) -> None:
    here.pci(NIC, "8086:1572", driver="vfio-pci", group="7")
    here.pci(OTHER_NIC, "8086:1572", driver="i40e", group="8")
    here.pci("0000:5e:00.1", "8086:1573", driver="i40e", group="9")
    here.pci("0000:5e:00.2", "8086:1574", group="10")
    found = look()
    assert found.free == {"pci:8086:1572": 1, "pci:8086:1574": 1}
    (key,) = found.held
    assert key == "pci:8086:1573"
    assert found.held[key].reason == "PCI device 0000:5e:00.1 there has the host's driver i40e"
    assert "driverctl set-override 0000:5e:00.1 vfio-pci" in found.held[key].remedy


def test_what_a_domain_has_is_not_free(here: Sys) -> None:
    here.pci(NIC, "8086:1572", driver="vfio-pci", group="7")
    one = domain(pci=(Pci(id="nic", host="3b:00.0"),))
    found = look(one)
    assert not found.free
    assert found.held["pci:8086:1572"].reason == f"PCI device {NIC} there is web1's"
    assert owndevices.names_of(one, pci.units()) == {"pci:8086:1572": 1}


def test_a_group_is_given_as_a_whole(here: Sys) -> None:
    """Its bridge keeps its driver; who has one of its devices has all."""
    here.pci("0000:00:01.0", "8086:1901", driver="pcieport", group="1", kind=0x060400)
    here.pci(GPU, "10de:1b80", driver="vfio-pci", group="1", kind=0x030000)
    here.pci(SOUND, "10de:10f0", driver="vfio-pci", group="1", kind=0x040300)
    both = "pci:10de:1b80+10de:10f0"
    assert look().free == {both: 1}
    one = domain(pci=(Pci(id="gpu", host=GPU),))
    assert owndevices.names_of(one, pci.units()) == {both: 1}
    assert not look(one).free
    (here.root / "pci" / SOUND / "driver").unlink()
    (here.root / "pci" / SOUND / "driver").symlink_to("../snd_hda_intel")
    assert "the host's driver snd_hda_intel" in look().held[both].reason


def test_without_an_iommu_there_is_only_what_xen_has_made_assignable(here: Sys) -> None:
    here.pci(NIC, "8086:1572")
    here.pci(OTHER_NIC, "8086:1573", driver="pciback")
    assert look().free == {"pci:8086:1573": 1}
    assert not look().held


def test_what_is_promised_to_one_on_its_way_is_not_free(here: Sys) -> None:
    here.pci(NIC, "8086:1572", driver="pciback")
    here.usb("1-4", "1050:0407")
    coming = domain(
        "app",
        pci=(Pci(id="nic", host=OTHER_NIC, plug=NIC),),
        usb=(Usb(id="key", vendor=0x1050, product=0x0407, plug="1-4"),),
    )
    assert not look(coming).free
    assert look(coming).held["usb:1050:0407"].reason.endswith("is app's")
    another = domain(usb=(Usb(id="key", vendor=0x1050, product=0x0407, plug="1050:0407"),))
    ((label, why),) = owndevices.promised_twice(another, [coming])
    assert (label, why.reason) == ("usb/key", "1-4 is promised to app, which is on its way there")
    assert not list(owndevices.promised_twice(another, []))


def test_of_two_usb_devices_one_is_free(here: Sys) -> None:
    here.usb("1-4", "1050:0407")
    here.usb("1-5", "1050:0407")
    one = domain(usb=(Usb(id="key", vendor=0x1050, product=0x0407, place="1-4"),))
    assert look(one).free == {"usb:1050:0407": 1}
    assert not look(one).held
