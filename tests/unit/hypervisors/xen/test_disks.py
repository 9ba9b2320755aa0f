"""Which disks of a domain may be copied beside its memory."""

from __future__ import annotations

import pytest

from entourage.domain import Block
from entourage.hypervisors.xen.disks import Disks, is_emulated


@pytest.mark.parametrize("vdev", ["hda", "hdd", "xvda", "xvdd3", "sdk", "d0", "d3p1", "what"])
def test_the_device_model_has_the_first_four_and_what_is_called_scsi(vdev: str) -> None:
    assert is_emulated(vdev, 4)
    assert not is_emulated(vdev, 0)


@pytest.mark.parametrize("vdev", ["hde", "xvde", "xvdaa", "xvdz1", "d4", "d12p2"])
def test_it_has_no_other(vdev: str) -> None:
    assert not is_emulated(vdev, 4)


def test_what_a_device_model_may_write_late_is_not_copied() -> None:
    """And a medium that is only read is, and so is the disk of a guest without a device model."""
    disk, other = Block(id="xvda", path="/srv/a"), Block(id="xvde", path="/srv/e")
    hvm, pvh = Disks({"c_info": {"type": "hvm"}}), Disks({"c_info": {"type": "pvh"}})
    [(reason, remedy)] = hvm.objections(disk)
    assert "emulates" in reason
    assert "xvde" in remedy
    assert not hvm.objections(other)
    assert not hvm.objections(Block(id="hdc", path="/srv/cd.iso", readonly=True))
    assert not pvh.objections(disk)
    # It has two more with AHCI.
    ahci = Disks({"b_info": {"type": "hvm", "type.hvm": {"hdtype": "ahci"}}})
    [(_, remedy)] = ahci.objections(other)
    assert "xvdg" in remedy
    assert not ahci.objections(Block(id="xvdg", path="/srv/g"))
