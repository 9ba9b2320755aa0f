"""What xl prints about its domains, as ours; and what speaks against a pair of hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.xen.announce import frame
from entourage.hypervisors.xen.checks import too_full, versions
from entourage.hypervisors.xen.configuration import (
    Entry,
    domain_type,
    entries,
    read_domain,
    unreadable_disks,
)

UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"


def listed(**config: Any) -> str:
    """As `xl list -l` of Xen 4.17 prints a PVH domain, shortened."""
    whole: dict[str, Any] = {
        "c_info": {"type": "pvh", "name": "web1", "domid": 4294967295, "uuid": UUID},
        "b_info": {
            "max_vcpus": 2,
            "max_memkb": 131072,
            "target_memkb": 65536,
            "kernel": "/nowhere/vmlinuz",
            "type.pvh": dict[str, Any](),
        },
        "on_reboot": "restart",
    } | config
    dom0 = {"domid": 0, "config": {"c_info": {"name": "Domain-0"}}}
    return json.dumps([dom0, {"domid": 7, "config": whole}])


def entry(**config: Any) -> Entry:
    [found] = entries(listed(**config))
    return found


def test_a_domain_and_its_devices() -> None:
    domain = read_domain(
        entry(
            disks=[
                {"pdev_path": "/srv/a.raw", "vdev": "xvda", "format": "raw", "readwrite": 1},
                {"pdev_path": "vg/b", "vdev": "xvdb", "format": "raw"},
                {"pdev_path": "", "vdev": "hdc", "format": "empty", "is_cdrom": 1},
                {"pdev_path": "iqn.x", "vdev": "xvdd", "format": "raw", "script": "block-iscsi"},
            ],
            nics=[
                {"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": "lan"},
                {"devid": 1, "mac": "00:16:3e:00:00:02", "script": "/etc/xen/scripts/vif-route"},
            ],
            pcidevs=[{"domain": 0, "bus": 3, "dev": 0, "func": 1}],
            vtpms=[{"backend_domname": "vtpmmgr"}],
            usbdevs=[{"type.hostdev": {"hostbus": 99, "hostaddr": 4}}],
        )
    )
    assert (domain.name, domain.uuid, domain.memory, domain.vcpus) == ("web1", UUID, 64 << 20, 2)
    assert domain.machine == "xen-pvh"
    assert [(disk.id, disk.path, disk.readonly) for disk in domain.block] == [
        ("xvda", "/srv/a.raw", False),
        ("xvdb", "/dev/vg/b", True),
    ]
    assert [(net.id, net.attach, net.bridge) for net in domain.net] == [
        ("vif0", "bridge", "lan"),
        ("vif1", "other", "none"),
    ]
    assert [pci.host for pci in domain.pci] == ["0000:03:00.1"]
    assert [tpm.type for tpm in domain.tpm] == ["external"]
    assert [usb.vendor for usb in domain.usb] == [0]  # one that is gone is still the host's own


def test_a_boot_file_of_this_host_counts_and_one_that_is_not_there_does_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "initrd").touch()
    domain = read_domain(
        entry(b_info={"kernel": "/nowhere", "ramdisk": str(tmp_path / "initrd"), "max_memkb": 4096})
    )
    assert domain.boot.files == (str(tmp_path / "initrd"),)


def test_what_no_controller_can_speak_for_is_told() -> None:
    disks = [
        {"pdev_path": "/srv/a.vhd", "vdev": "xvda", "format": "vhd"},
        {"pdev_path": "/srv/b.raw", "vdev": "xvdb", "format": "raw"},
    ]
    assert unreadable_disks({"disks": disks}) == ["xvda is a vhd image"]


def test_what_xl_prints_otherwise_is_an_error() -> None:
    with pytest.raises(HypervisorError, match="not understood"):
        entries("xl: unknown command")
    with pytest.raises(HypervisorError, match="cannot be read"):
        read_domain(entry(c_info={"name": "/etc/passwd", "uuid": UUID}))


@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm"])
def test_the_kind_of_machine(kind: str) -> None:
    assert domain_type({"c_info": {"type": kind}, "b_info": {f"type.{kind}": {}}}) == kind


def test_an_older_xen_and_a_processor_without_virtualization_are_refused() -> None:
    facts = {"xen_version": "4.17.5", "type": "pvh"}
    assert versions(facts, {"xen_version": "4.17.1", "virt_caps": "pv hvm hap"}) == []
    assert versions(facts, {"xen_version": "4.18.0-rc", "virt_caps": "pv hvm hap"}) == []
    [(reason, _)] = versions(facts, {"xen_version": "4.16.9", "virt_caps": "pv hvm"})
    assert "4.16.9 is older" in reason
    [(reason, _)] = versions(facts, {"xen_version": "4.17.1", "virt_caps": "pv"})
    assert "virtualization" in reason


def test_memory_counts_where_dom0_gives_none_away() -> None:
    fixed = {"free_memory": "100", "xen_commandline": "dom0_mem=512M,max:512M"}
    assert too_full(100 << 20, fixed) == []
    [(reason, _)] = too_full(101 << 20, fixed)
    assert "101 MiB needed, 100 MiB free" in reason
    assert too_full(101 << 20, {"free_memory": "0", "xen_commandline": "loglvl=all"}) == []


def test_an_announcement_is_a_rarp_request_about_oneself() -> None:
    sent = frame("00:16:3e:00:00:01")
    mac = bytes.fromhex("00163e000001")
    assert sent[:14] == b"\xff" * 6 + mac + b"\x80\x35"
    assert sent[14:22] == bytes.fromhex("0001080006040003")
    assert sent[22:28] == sent[32:38] == mac
    assert len(sent) == 60
