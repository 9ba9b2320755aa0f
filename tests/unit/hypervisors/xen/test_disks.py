"""Which disks of a domain may be copied beside its memory."""

from __future__ import annotations

import pytest

from entourage.domain import Block
from entourage.hypervisors.xen.disks import Disks, is_emulated


@pytest.mark.parametrize("vdev", ["hda", "hdd", "xvda", "xvdd3", "sdk", "d0", "d3p1", "what"])
def test_the_device_model_has_the_first_four_and_what_is_called_scsi(vdev: str) -> None:
    assert is_emulated(vdev)


@pytest.mark.parametrize("vdev", ["hde", "xvde", "xvdaa", "xvdz1", "d4", "d12p2"])
def test_it_has_no_other(vdev: str) -> None:
    assert not is_emulated(vdev)


def test_what_a_device_model_may_write_late_is_not_copied() -> None:
    """And a medium that is only read is, and so is the disk of a guest without a device model."""
    disk, other = Block(id="xvda", path="/srv/a"), Block(id="xvde", path="/srv/e")
    [(reason, remedy)] = Disks("hvm").objections(disk)
    assert "emulates" in reason
    assert "xvde" in remedy
    assert not Disks("hvm").objections(other)
    assert not Disks("hvm").objections(Block(id="hdc", path="/srv/cd.iso", readonly=True))
    assert not Disks("pvh").objections(disk)
