"""A libvirt domain moves while it is off."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.domain_xml import domain_xml
from lab.guest import Disk
from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from tests.e2e.off import CORE_POINTS, NAME, Off, is_made_sure_of, moves_and_comes_back
from tests.e2e.shared import SHARED, shared_storage


@pytest.fixture(scope="module")
def off(libvirt_lab: Lab) -> Generator[Off]:
    """A domain on a, which starts with its host, and whose disk both hosts see."""
    disk = Disk(f"{SHARED}/rests.qcow2", "qcow2")
    with shared_storage(libvirt_lab):
        a = libvirt_lab["a"]
        disk.create(a, "16M")
        a.write_files({"/srv/rests.xml": domain_xml(NAME, disks=[disk], tpm=False, memory=128)})
        Libvirtd(a).virsh("define", "/srv/rests.xml")
        Libvirtd(a).virsh("autostart", NAME)
        yield Off(libvirt_lab, disk.path)
        for name in ("a", "b"):
            Libvirtd(libvirt_lab[name]).virsh("undefine", NAME, check=False)
            libvirt_lab[name].run(["find", "/var/lib/entourage", "-mindepth", "1", "-delete"])


def test_it_moves_and_comes_back(off: Off) -> None:
    def starts(host: Host) -> None:
        info = Libvirtd(host).virsh("dominfo", NAME).stdout
        assert "Autostart:      enable" in info
        Libvirtd(host).virsh("start", NAME)

    moves_and_comes_back(off, starts)


@pytest.mark.matrix
@pytest.mark.parametrize("point", CORE_POINTS)
def test_killed_at_any_moment_it_is_made_sure_of(off: Off, point: str) -> None:
    is_made_sure_of(off, point)


def test_what_is_saved_stays_and_says_why(off: Off) -> None:
    """libvirt's managed save is on its host alone: moved without it, the guest would lose power."""
    libvirtd = Libvirtd(off.lab["a"])
    libvirtd.virsh("start", NAME)
    libvirtd.virsh("managedsave", NAME)
    run = off.move()
    assert run.status == 3, str(run)
    assert "libvirt keeps a saved state (virsh managedsave)" in run.stdout, str(run)
    assert off.where() == "a"
    libvirtd.virsh("managedsave-remove", NAME)
