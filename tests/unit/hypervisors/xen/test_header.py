"""The configuration in xl's stream: what of it is otherwise on the target, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import struct
from typing import Any

import msgspec
import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.xen import header
from entourage.hypervisors.xen.configuration import Entry, read_domain
from entourage.hypervisors.xen.header import Changes
from entourage.hypervisors.xen.machine import changes

# As libxl 4.17 writes it: what has its default is left out, the rest in the IDL's order. A disk of
# each kind, a NIC with a bridge and one that takes xl's own, a controller whose USB device has been
# taken out, and a vTPM; the PCI device that it was made with has been taken out too.
CONFIG: dict[str, Any] = {
    "c_info": {
        "type": "hvm",
        "name": "web1",
        "uuid": "3e5948d6-8285-4068-8236-a0e7729aaa7a",
        "run_hotplug_scripts": "True",
    },
    "b_info": {
        "max_vcpus": 2,
        "avail_vcpus": [0, 1],
        "max_memkb": 98304,
        "target_memkb": 98304,
        "shadow_memkb": 2048,
        "sched_params": {},
        "claim_mode": "True",
        "tsc_mode": "native",
        "type.hvm": {"vga": {"kind": "none"}, "nested_hvm": "False"},
        "arch_arm": {},
        "arch_x86": {},
    },
    "disks": [
        {"pdev_path": "/srv/web1.raw", "vdev": "xvda", "format": "raw", "readwrite": 1},
        {"pdev_path": "vg/shared", "vdev": "xvdb", "backend": "phy", "format": "raw"},
        {"pdev_path": "/srv/web1.iso", "vdev": "hdc", "format": "raw", "removable": 1,
         "is_cdrom": 1},
        {"vdev": "hdd", "format": "empty", "removable": 1, "is_cdrom": 1},
    ],
    "nics": [
        {"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": "lan"},
        {"devid": 1, "mac": "00:16:3e:00:00:02"},
    ],
    "vtpms": [{"backend_domname": "vtpmmgr", "devid": 0,
               "uuid": "11111111-2222-3333-4444-555555555555"}],
    "usbctrls": [{"type": "devicemodel", "devid": 0, "version": 2, "ports": 6}],
    "on_poweroff": "destroy",
    "on_reboot": "restart",
    "on_crash": "destroy",
}  # fmt: skip
BODY = b"LIBXLFMT\0\0\0\2" + bytes(64)


def stream(config: dict[str, Any]) -> tuple[bytes, bytes]:
    """The two parts of a header, as xl makes them."""
    text = json.dumps(config).encode() + b"\0"
    rest = struct.pack("=I", len(text)) + text
    magic = b"Xen saved domain, xl format\n \0 \r"
    return struct.pack("=32sIIII", magic, 0x01020304, 3, 0, len(rest)), rest


def there(wanted: Changes, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """The configuration that xl reads on the target."""
    fixed, rest = stream(config)
    told = header.rewritten(fixed, rest, wanted)
    new, text = told[: header.SIZE], told[header.SIZE :]
    assert header.more(new) == len(text)
    assert struct.unpack_from("=I", text)[0] == len(text) - 4
    assert text.endswith(b"\0")
    return json.loads(text[4:].rstrip(b"\0"))


def test_it_is_passed_on_as_it_is_where_nothing_changes() -> None:
    fixed, rest = stream(CONFIG)
    assert header.more(fixed) == len(rest)
    assert header.rewritten(fixed, rest, Changes()) == fixed + rest


def test_what_is_otherwise_there_is_found_device_by_device() -> None:
    here = read_domain(Entry(domid=7, config=CONFIG | {"pcidevs": [{"bus": 3}]}))
    assert changes(here, here) == Changes()
    [disk, *_], [_, nic], [pci] = here.block, here.net, here.pci
    moved = here.with_device(msgspec.structs.replace(disk, path="/dev/vg/web1"))
    moved = moved.with_device(msgspec.structs.replace(nic, bridge="lan2"))
    found = Changes(paths={"xvda": "/dev/vg/web1"}, nets={"xenbr0": "lan2"})
    assert changes(here, moved) == found
    moved = moved.with_device(msgspec.structs.replace(pci, plug="0000:05:00.0"))
    assert changes(here, moved) == dataclasses.replace(found, passthrough=True)


def test_what_comes_after_the_configuration_stays_behind_it() -> None:
    fixed, rest = stream(CONFIG)
    told = header.rewritten(fixed, rest + BODY, Changes(nets={"lan": "lan2"}))
    assert told.endswith(b"\0" + BODY)


def test_a_changed_disk_and_a_changed_bridge_and_nothing_else() -> None:
    wanted = copy.deepcopy(CONFIG)
    wanted["disks"][0]["pdev_path"] = "/dev/vg/web1"
    wanted["disks"][2]["pdev_path"] = "/isos/web1.iso"
    wanted["nics"][0]["bridge"] = "br-lan"
    paths = {"xvda": "/dev/vg/web1", "hdc": "/isos/web1.iso"}
    assert there(Changes(paths=paths, nets={"lan": "br-lan"})) == wanted


def test_a_nic_that_names_no_bridge_is_on_the_one_that_xl_takes() -> None:
    names = [net.bridge for net in read_domain(Entry(domid=7, config=CONFIG)).net]
    assert names == ["lan", "xenbr0"]
    nics = there(Changes(nets={"xenbr0": "xenbr1"}))["nics"]
    assert [nic["bridge"] for nic in nics] == ["lan", "xenbr1"]


def test_a_pci_device_that_comes_later_needs_an_iommu_from_the_beginning() -> None:
    # libxl_create.c: without a PCI device in its configuration a domain is made without one, and
    # `xl pci-attach` fails ever after.
    wanted = copy.deepcopy(CONFIG)
    wanted["c_info"]["passthrough"] = "enabled"
    assert there(Changes(passthrough=True)) == wanted


@pytest.mark.parametrize("said", ["sync_pt", "share_pt", "enabled"])
def test_what_the_user_said_about_the_iommu_stays(said: str) -> None:
    config = copy.deepcopy(CONFIG)
    config["c_info"]["passthrough"] = said
    assert there(Changes(passthrough=True), config) == config


@pytest.mark.parametrize("config", ["[]", "{", '{"disks": [1]}', '{"nics": 3}'])
def test_a_configuration_that_is_not_understood_is_an_error(config: str) -> None:
    text = config.encode() + b"\0"
    rest = struct.pack("=I", len(text)) + text
    fixed, _ = stream({})
    with pytest.raises(HypervisorError, match="not understood"):
        header.rewritten(fixed, rest, Changes(paths={"xvda": "/x"}, passthrough=True))


@pytest.mark.parametrize(
    ("at", "with_"),
    [(0, b"LibxlFmt"), (32, b"\1\2\3\4"), (36, bytes(4)), (44, b"\xff\xff\xff\xff")],
    ids=["magic", "byte order", "flags", "length"],
)
def test_a_header_that_is_none_is_refused(at: int, with_: bytes) -> None:
    fixed, _ = stream({})
    with pytest.raises(HypervisorError, match="xl sends"):
        header.more(fixed[:at] + with_ + fixed[at + len(with_) :])
