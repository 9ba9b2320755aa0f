"""USB and PCI devices of the host under Xen; xl is a stand-in (``xen_stand_in``)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Pci, Usb
from entourage.errors import HypervisorError
from entourage.hypervisors.seams import HostDevice
from entourage.hypervisors.xen import hostdevices
from entourage.hypervisors.xen.configuration import Entry, read_domain
from entourage.hypervisors.xen.hostdevices import HostDevices
from tests.unit.eventually import eventually
from tests.unit.hypervisors.xen.stand_in import Xl, stand_in

HERE, THERE = "0000:41:00.0", "0000:05:00.1"
GPU = Pci(id="pci0", host=HERE, address="05.0", options="permissive=1")
KEY = Usb(id="usb0", vendor=0x1050, product=0x0407, place="1-1.4", port="0:1")
PATIENCE = 20.0


@pytest.fixture
def xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Xl:
    return stand_in(tmp_path, monkeypatch)


def devices() -> HostDevices:
    return HostDevices(7, "web 1")


async def test_a_pci_device_is_taken_out_and_given_back(xl: Xl) -> None:
    xl.has(pci=["0000:03:00.0", HERE])
    await devices().unplug(GPU)
    assert xl.now("pci") == ["0000:03:00.0"]
    assert xl.did() == [f"pci-detach 7 {HERE}"]
    await devices().plug(GPU)
    assert xl.did() == [f"pci-attach 7 {HERE},vslot=05,permissive=1"]
    assert xl.now("pci") == ["0000:03:00.0", HERE]


async def test_what_stands_for_it_there_is_plugged_in_its_place(xl: Xl) -> None:
    await devices().plug(Pci(id="pci0", host=HERE, address="05.0", plug="05:00.1"))
    assert xl.did() == [f"pci-attach 7 {THERE},vslot=05"]
    xl.plugged("2-3", 9)
    await devices().plug(Usb(id="usb0", place="1-1.4", port="0:1", plug="1050:0407"))
    assert xl.did() == ["usbdev-attach 7 type=hostdev hostbus=2 hostaddr=9 controller=0 port=1"]


async def test_a_usb_device_is_taken_out_and_given_back_to_its_port(xl: Xl) -> None:
    xl.plugged("1-1.4", 20)
    xl.has(usb={"0:2": (1, 5), "0:1": (1, 20)})  # 20 is 014: what xl prints is hexadecimal
    await devices().unplug(KEY)
    assert xl.did() == ["usbdev-detach 7 0 1"]
    assert xl.now("usb") == {"0:2": [1, 5]}
    xl.plugged("1-1.4", 21)  # its driver here has reset it: only its port is still the same
    await devices().plug(KEY)
    assert xl.did() == ["usbdev-attach 7 type=hostdev hostbus=1 hostaddr=21 controller=0 port=1"]


async def test_twice_changes_nothing(xl: Xl) -> None:
    xl.plugged("1-1.4", 6)
    for _ in range(2):
        await devices().plug(GPU)
        await devices().plug(KEY)
    assert len(xl.did()) == 2
    for _ in range(2):
        await devices().unplug(GPU)
        await devices().unplug(KEY)
    assert len(xl.did()) == 2


@pytest.mark.parametrize("device", [GPU, KEY])
async def test_a_guest_that_does_not_let_go_is_an_error(xl: Xl, device: HostDevice) -> None:
    xl.plugged("1-1.4", 6)
    xl.has(pci=[HERE], usb={"0:1": (1, 6)}, ignores=["pci-detach", "usbdev-detach"])
    with pytest.raises(HypervisorError, match="does not let go") as caught:
        await devices().unplug(device)
    assert "unload its driver" in caught.value.remedy
    xl.has(fails=["pci-detach", "usbdev-detach"])
    with pytest.raises(HypervisorError, match="detach failed: libxl: error: as it was told"):
        await devices().unplug(device)


@pytest.mark.parametrize(
    ("device", "command"),
    [
        (GPU, f"`xl pci-attach 'web 1' {HERE},vslot=05,permissive=1`"),
        (
            KEY,
            "`xl usbdev-attach 'web 1' type=hostdev hostbus=1 hostaddr=6 controller=0 port=1`",
        ),
    ],
)
async def test_what_fails_says_what_to_type(xl: Xl, device: HostDevice, command: str) -> None:
    xl.plugged("1-1.4", 6)
    xl.has(fails=["pci-attach", "usbdev-attach"])
    with pytest.raises(HypervisorError, match="attach failed") as caught:
        await devices().plug(device)
    assert caught.value.remedy == command


@pytest.mark.parametrize(
    ("device", "command"), [(GPU, "`xl pci-attach"), (KEY, "`xl usbdev-attach")]
)
async def test_an_exit_status_is_not_believed(xl: Xl, device: HostDevice, command: str) -> None:
    xl.plugged("1-1.4", 6)
    xl.has(ignores=["pci-attach", "usbdev-attach"])
    with pytest.raises(HypervisorError, match="says that it has, and does not list it") as caught:
        await devices().plug(device)
    assert caught.value.remedy.startswith(command)


async def test_a_usb_device_that_was_pulled_out_meanwhile_is_told(xl: Xl) -> None:
    with pytest.raises(HypervisorError, match=r"there is no USB device 1-1\.4"):
        await devices().plug(KEY)
    assert xl.did() == []


async def test_one_xl_at_a_time(xl: Xl) -> None:
    xl.plugged("1-1.4", 6)
    xl.has(pci=[HERE, THERE], usb={"0:1": (1, 6)}, slow=["pci-detach"])
    ours = devices()
    three = (GPU, Pci(id="pci1", host=THERE), KEY)
    tasks = [asyncio.create_task(ours.unplug(device)) for device in three]
    # While one is at it, the stand-in fails for any other.
    done, _ = await asyncio.wait(tasks, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    assert not done
    xl.go_on()
    await asyncio.gather(*tasks)
    assert (xl.now("pci"), xl.now("usb")) == ([], {})


async def test_an_xl_that_has_begun_is_let_end(xl: Xl) -> None:
    xl.has(pci=[HERE], slow=["pci-detach"])
    task = asyncio.create_task(devices().unplug(GPU))
    async with asyncio.timeout(PATIENCE):
        await eventually(lambda: xl.began)
        task.cancel()
        xl.go_on()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert xl.now("pci") == []


# TEST


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The PCI devices of the host."""
    made = tmp_path / "pci"
    made.mkdir()
    monkeypatch.setattr(hostdevices, "PCI_DEVICES", made)
    return made


def domain(**config: Any) -> dict[str, Any]:
    return {"domid": 9, "config": {"c_info": {"name": "db1"}, **config}}


ITS_PCI = domain(pcidevs=[{"bus": 0x41}])
ITS_USB = domain(usbdevs=[{"type.hostdev": {"hostbus": 1, "hostaddr": 6}}])


@pytest.mark.parametrize(
    ("plug", "state", "said"),
    [
        (HERE, {"assignable": [HERE]}, None),
        ("41:00.0", {"assignable": [HERE]}, None),
        (HERE, {"domains": [ITS_PCI]}, (f"{HERE} is db1's", f"xl pci-detach db1 {HERE}")),
        (HERE, {}, ("not assignable", f"xl pci-assignable-add {HERE}")),
        (THERE, {}, ("there is no PCI device", "lspci")),
        (HERE, {"assignable": [HERE], "virt_caps": "pv hvm"}, ("no IOMMU", "firmware")),
    ],
)
async def test_pci_on_the_target(
    xl: Xl,
    sysfs: Path,
    plug: str,
    state: dict[str, Any],
    said: tuple[str, str] | None,
) -> None:
    (sysfs / HERE).mkdir()
    xl.has(**state)
    found = await hostdevices.test_plug(Pci(id="pci0", host="0000:01:00.0", plug=plug))
    if said is None:
        assert found == []
    else:
        [(reason, remedy)] = found
        assert said[0] in reason
        assert said[1] in remedy
    assert xl.did() == []


@pytest.mark.parametrize(
    ("plug", "state", "reason"),
    [
        ("1-1.4", {}, None),
        ("1.6", {}, None),
        ("1050:0407", {}, None),
        ("046d:c31c", {}, "2 USB devices are 046d:c31c"),
        ("1-9", {}, "there is no USB device 1-9"),
        ("1-1", {}, "is a hub"),
        ("1-1.4", {"domains": [ITS_USB]}, "1-1.4 is db1's"),
    ],
)
async def test_usb_on_the_target(
    xl: Xl, plug: str, state: dict[str, Any], reason: str | None
) -> None:
    xl.plugged("1-1", 2, "05e3:0608", kind="09")
    xl.plugged("1-1.4", 6)
    xl.plugged("1-1.5", 7, "046d:c31c")
    xl.plugged("1-1.6", 8, "046d:c31c")
    xl.has(**state)
    found = await hostdevices.test_plug(Usb(id="usb0", vendor=1, product=2, plug=plug))
    assert [reason in one for one, _ in found if reason] == ([True] if reason else [])
    assert all(two for _, two in found)


def of_type(kind: str, **built: int) -> dict[str, Any]:
    return {"c_info": {"type": kind}, "b_info": built}


def test_what_the_source_cannot_take_out() -> None:
    full, less = {"max_memkb": 98304, "target_memkb": 98304}, {"max_memkb": 98304}
    for config in (of_type("hvm", **full), of_type("pv", **less)):
        assert hostdevices.test_unplug(GPU, config) == []
    assert hostdevices.test_unplug(KEY, of_type("pvh")) == []
    [(reason, _)] = hostdevices.test_unplug(GPU, of_type("pvh"))
    assert "PVH" in reason
    [(reason, remedy)] = hostdevices.test_unplug(GPU, of_type("hvm", **less))
    assert "no IOMMU" in reason
    assert "96 MiB" in remedy
    [(reason, _)] = hostdevices.test_unplug(Usb(id="usb0", vendor=0, product=0), of_type("hvm"))
    assert "not plugged into this host any more" in reason


def test_what_xl_must_be_told_again_is_read_from_its_list(xl: Xl) -> None:
    xl.plugged("1-1.4", 6)
    config: dict[str, Any] = {
        "c_info": {
            "name": "web1",
            "type": "hvm",
            "uuid": "3e5948d6-8285-4068-8236-a0e7729aaa7a",
        },
        "pcidevs": [
            {"bus": 0x41, "vdevfn": 40, "permissive": True, "rdm_policy": "strict", "seize": True},
            {"bus": 0x42, "vdevfn": 41, "msitranslate": True, "rdm_policy": "relaxed"},
        ],
        "usbdevs": [
            {"ctrl": 0, "port": 1, "type.hostdev": {"hostbus": 1, "hostaddr": 6}},
            {"type.hostdev": {"hostbus": 1, "hostaddr": 7}},
        ],
    }
    found = read_domain(Entry(domid=7, config=config))
    assert found.pci == (
        GPU,
        Pci(id="pci1", host="0000:42:00.0", options="msitranslate=1,rdm_policy=relaxed"),
    )
    assert found.usb == (KEY, Usb(id="usb1", vendor=0, product=0))
    assert found.usb[0].host_names == ("usb0", "1-1.4", "1050:0407")
    config["c_info"]["type"] = "pv"  # which has no slots of xl's choosing
    assert read_domain(Entry(domid=7, config=config)).pci[0].address is None
