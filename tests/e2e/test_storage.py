"""Disks that both hosts see, and disks that are devices; a guest without a TPM."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.guest import disk_sequences
from lab.host import Host
from lab.hosts import Lab
from lab.network import guest_address
from lab.observer import Observer
from tests.e2e.shared import SHARED, loop, shared_storage
from tests.e2e.world import World, other_bridge

SECOND = "10.77.0.101"
HERE, THERE = "/dev/shm/here", "/dev/shm/there"  # noqa: S108 - each host has its own
LOCKED = "source.memory-landed"
REFUSED = "target.before.flush-never"


@contextmanager
def node(host: Host, path: str, device: str) -> Generator[None]:
    """A name of the device that only this host has."""
    number = os.minor(Path(device).stat().st_rdev)
    host.run(["mknod", path, "b", "7", str(number)])
    try:
        yield
    finally:
        host.path(path).unlink()


@contextmanager
def locked(image: Path) -> Generator[None]:
    """Somebody else allows nobody to write to the image, as a second QEMU would not."""
    with image.open("rb") as file:
        begin, length = 200, 16  # QEMU's bytes for what others may not do
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, begin, length, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        yield


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    with shared_storage(lab), Observer.start(lab, (guest_address(), SECOND)) as seen:
        world = World.begin(lab, seen, disks=[f"{SHARED}/disk0.raw"], tpm=False)
        yield world
        world.end()


def test_a_shared_disk_stays_where_it_is(world: World) -> None:
    [disk] = world.disks
    before = world.here.path(disk.path).stat()
    run = world.migrate()
    world.moved(run)
    assert not [one for one in run.of("copy-progress") if one["what"] == "block/disk0"]
    after = world.here.path(disk.path).stat()
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
    assert world.there.path(disk.path).exists()
    assert [path.name for path in world.here.path(SHARED).glob("*disk0*")] == ["disk0.raw"]


def test_the_target_refuses_to_release(world: World) -> None:
    """Somebody has taken the disk's lock before GO: the target says NEVER, the source goes on."""
    with world.under(LOCKED, on_target=[REFUSED]) as under:
        under.wait(LOCKED)
        with locked(world.here.path(world.disks[0].path)):
            under.pass_on(LOCKED)
            under.wait(REFUSED)
        run = under.end()
    world.stayed(run)
    assert run.of("go-sent"), str(run)
    assert "lock" in run.finished["message"], str(run)


def test_another_bridge_mends_it(world: World) -> None:
    """Refused where there is no such bridge; ``--net`` names another one."""
    there = world.there
    clean = world.clean[there.name]
    with other_bridge(there):
        world.clean[there.name] = there.snapshot()
        run = world.migrate()
        world.stayed(run, status=3)
        assert list(run.refusals) == ["net/net0"]
        world.moved(world.migrate("--net", "br0=br7"))
        world.moved(world.migrate("--net", "br7=br0"))
    world.clean[there.name] = clean


@pytest.fixture(scope="module")
def on_device(lab: Lab, world: World) -> Generator[World]:
    """A guest whose disk is a device that only its host has; the other host has three others."""
    a, b = lab["a"], lab["b"]
    with ExitStack() as stack:
        ours = stack.enter_context(loop(a, "/srv/ours.img", "64M"))
        stack.enter_context(node(a, HERE, ours))
        for name, size in (("small", "32M"), ("equal", "64M"), ("large", "65M")):
            device = stack.enter_context(loop(b, f"/srv/{name}.img", size))
            stack.enter_context(node(b, f"{THERE}-{name}", device))
        guest = World.begin(lab, world.seen, "web2", disks=[HERE], tpm=False, address=SECOND)
        yield guest
        guest.end()


def test_a_device_is_refused(on_device: World) -> None:
    """Unless another one there is named, of at least its size."""
    run = on_device.migrate()
    assert run.status == 3, str(run)
    assert "--disk disk0=/dev/" in run.refusals["block/disk0"]
    run = on_device.migrate("--disk", f"disk0={THERE}-small")
    assert run.status == 3, str(run)
    assert "32 MiB" in run.refusals["block/disk0"]
    on_device.seen.wait_progress(guest=SECOND)


@pytest.mark.matrix
def test_onto_a_larger_device(on_device: World) -> None:
    """The machine there opens its first part, as large as the disk. (And goes back, in time.)"""
    run = on_device.migrate("--disk", f"disk0={THERE}-large", "--max-blackout", "1ms")
    assert run.status == 4, str(run)
    assert "blackout budget" in run.finished["message"], str(run)
    on_device.seen.wait_progress(guest=SECOND)


def test_onto_a_device_of_its_size(on_device: World) -> None:
    guest = on_device
    run = guest.migrate("--disk", f"disk0={THERE}-equal")
    assert run.status == 0, str(run)
    guest.here, guest.there = guest.there, guest.here
    guest.seen.wait_progress(guest=SECOND)
    guest.guest.pause_writes()
    acked = guest.seen.acked(SECOND)
    copy = "/usr/local/copy.raw"
    guest.here.run(["dd", f"if={THERE}-equal", f"of={copy}", "bs=1M", "status=none"])
    records = disk_sequences(guest.here.path(copy))
    assert records.last >= acked["vda"]
    assert records.missing == ()
    assert guest.there.path(HERE).exists()  # nobody deletes a device
