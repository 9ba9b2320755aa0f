"""A libvirt domain with two disks, one of them raw, is saved, and goes on or goes back."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

import pytest

from lab.guest import Disk, disk_sequences
from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.saved import (
    DIR,
    FPGA,
    SavedWorld,
    is_gone,
    lives,
    names,
    ready,
    restore,
    save,
    went_on,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, shared_storage

__all__ = ["ready"]

DISKS = (Disk(f"{SHARED}/d0.raw"), Disk(f"{SHARED}/d1.qcow2", "qcow2"))
TARGETS = ("vda", "vdb")

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with shared_storage(libvirt_lab, "1G"), Observer.start(libvirt_lab) as seen:
        world = SavedWorld.begin(libvirt_lab, seen, "saved5", disks=DISKS, extra=FPGA)
        yield world
        world.end()


def held(world: LibvirtWorld, host: Host | None = None, directory: str = DIR) -> list[int]:
    """The last number in each copy, in which none is missing."""
    found, host = list[int](), host or world.here
    assert names(host, f"{directory}/disks") == list(TARGETS)
    for target, disk in zip(TARGETS, DISKS, strict=True):
        copy = disk_sequences(host.path(f"{directory}/disks/{target}"), disk.format)
        assert copy.boot == world.boot
        assert copy.missing == ()
        found.append(copy.last)
    return found


def written(world: LibvirtWorld) -> list[int]:
    """The last number on each disk."""
    return [disk_sequences(world.here.path(disk.path), disk.format).last for disk in DISKS]


def test_both_are_kept_in_one_that_is_sent(ready: LibvirtWorld) -> None:
    world = ready
    done = save(world, DIR, "--compress", "--disks", "keep")
    assert done.status == 0, str(done)
    is_gone(world)
    went_on(world, restore(world))


def test_both_go_along_as_it_ends(ready: LibvirtWorld) -> None:
    """In their own formats, and restored in them."""
    world = ready
    done = save(world, DIR, "--disks", "copy")
    assert done.status == 0, str(done)
    assert held(world) == written(world)
    world.here.run(["rm", *(disk.path for disk in DISKS)])
    went_on(world, restore(world))


def test_back_to_what_both_were(ready: LibvirtWorld) -> None:
    """The last of this file: its guest forgets what it has done since."""
    world = ready
    done = save(world, DIR, "--checkpoint", "--allow-tpm-rollback")
    assert done.status == 0, str(done)
    lives(world)
    were = held(world)
    assert all(0 < old < new for old, new in zip(were, written(world), strict=True))
    goes_back(world, were)


def goes_back(world: LibvirtWorld, were: Sequence[int]) -> None:
    """Its guest goes on from the checkpoint, on disks that hold what they held then.

    Args:
        world: The guest's.
        were: The last number on each.
    """
    world.here.run(["entourage", "stop", "--force", world.name])
    uuid = Libvirtd(world.here).virsh("domuuid", world.name).stdout.strip()
    away = [f"/var/lib/libvirt/swtpm/{uuid}", *(disk.path for disk in DISKS)]
    world.here.run(["rm", "-r", *away])
    done = restore(world, DIR, "--revert")
    assert done.status == 0, str(done)
    assert world.guest.status(timeout=PATIENCE).boot == world.boot
    deadline = time.monotonic() + PATIENCE
    while not all(old < new for old, new in zip(were, written(world), strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # its words go by a connection that is not what it was
    for disk in DISKS:
        assert disk_sequences(world.here.path(disk.path), disk.format).missing == ()
