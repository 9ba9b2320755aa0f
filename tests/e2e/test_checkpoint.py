"""A guest is saved and goes on; its disks are of the moment of its memory. Later it goes back."""

from __future__ import annotations

import json
import os
from collections.abc import Generator

import pytest

from lab.guest import Disk, disk_sequences
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import (
    FPGA,
    KEPT,
    flip,
    is_damaged,
    names,
    out_of_the_way,
    reasons,
    run,
    writes_on,
)
from tests.e2e.world import EMULATED, World, qmp

DIR = "/srv/checkpoint"
CHECKPOINT = ("save", "--checkpoint", "--allow-tpm-rollback")


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest with a raw disk and a qcow2 one, which are on its host alone."""
    with Observer.start(lab) as seen:
        disks = ("/srv/c0.raw", Disk("/srv/c1.qcow2", "qcow2"))
        world = World.begin(lab, seen, "saved2", disks=disks, extra=EMULATED + FPGA)
        world.kept = (*world.kept, *KEPT, f"{DIR}*")  # type: ignore[misc] - of this one
        yield world
        world.end()
        for host in (world.here, world.there):
            host.run(["sh", "-c", f"rm -rf {' '.join(KEPT)}"])


@pytest.fixture
def ready(world: World) -> Generator[World]:
    """The same, with nothing saved, before and after."""
    world.is_as_before()
    yield world
    world.here.run(["sh", "-c", f"rm -rf {DIR} {DIR}.*.partial"])


def checkpoint(world: World, *options: str) -> Run:
    tool = world.tool()
    return run(world, *CHECKPOINT, "--tool", str(tool), *options, "--", world.name, DIR)


def went_on(world: World, done: Run, *, status: int = 0) -> None:
    """The guest goes on where it was, and no half of a save is left."""
    assert done.status == status, str(done)
    assert done.finished["outcome"] == ("saved" if status == 0 else "rolled-back"), str(done)
    assert done.finished["runs_on"] == world.here.name, str(done)
    assert not done.finished["problems"], str(done)
    is_whole(world, saved=status == 0)


def is_whole(world: World, *, saved: bool) -> None:
    """The guest lives; there is a save, or nothing of one."""
    left = [name for name in names(world.here, "/srv") if name.startswith("checkpoint")]
    assert left == (["checkpoint"] if saved else [])
    world.is_as_before()


def test_what_cannot_be_gone_back_to_is_refused(ready: World) -> None:
    world = ready
    without = run(world, "save", "--checkpoint", "--", world.name, DIR)
    assert without.status == 2, str(without)
    assert "--allow-tpm-rollback" in without.stderr
    kept = run(world, *CHECKPOINT, "--disks", "keep", "--", world.name, DIR)
    assert kept.status == 2, str(kept)
    assert "--disks=copy" in kept.stderr
    world.is_as_before()


@pytest.mark.matrix
def test_a_disk_that_fills_up(ready: World) -> None:
    """There is too little room: TEST says so, for memory and both disks together."""
    world = ready
    space = os.statvfs(world.here.path("/srv"))
    most = space.f_bavail * space.f_frsize - (200 << 20)
    world.here.run(["fallocate", "-l", str(most), "/srv/filler"])
    try:
        done = checkpoint(world)
    finally:
        world.here.run(["rm", "/srv/filler"])
    assert done.status == 3, str(done)
    assert "no space left" in reasons(done) or "no room" in reasons(done), str(done)
    world.is_as_before()


KILLED = [
    ("entourage", "source.memory-landed"),
    ("agent", "target.published"),
    pytest.param("entourage", "source.step-started.2", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.after.resume-source", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.flush-open", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point"), KILLED)
def test_killed(ready: World, victim: str, point: str) -> None:
    """Whoever is killed: the guest goes on, and there is a whole checkpoint, or none."""
    world = ready
    argv = ["entourage", *CHECKPOINT, "--json", "--tool", str(world.tool())]
    with Points(world.here, point) as points:
        process = world.here.popen([*argv, "--", world.name, DIR], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        if victim == "agent":
            world.here.run(["pkill", "-KILL", "-f", "entourage agent"])
        else:
            process.kill()
        points.open()
        process.communicate(timeout=PATIENCE)
    recovered = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert recovered.returncode == 0, recovered
    # While the guest is let run here, the agent is asked to keep what has landed.
    asked = point == "source.after.resume-source" and world.here.path(DIR).exists()
    is_whole(world, saved=asked or point == "target.published")


@pytest.mark.matrix
def test_a_paused_guest_stays_paused(ready: World) -> None:
    world = ready
    qmp(world, "stop")
    done = checkpoint(world)
    assert done.status == 0, str(done)
    assert qmp(world, "query-status")["status"] in {"paused", "postmigrate"}
    qmp(world, "cont")
    is_whole(world, saved=True)


@pytest.mark.matrix
def test_a_guest_stays_paused_where_that_is_asked_for(ready: World) -> None:
    world = ready
    done = checkpoint(world, "--paused")
    assert done.status == 0, str(done)
    assert qmp(world, "query-status")["status"] in {"paused", "postmigrate"}
    # What was saved of it ran: restored, it would.
    assert json.loads(world.here.path(f"{DIR}/manifest.json").read_text())["was_running"]
    qmp(world, "cont")
    is_whole(world, saved=True)


def test_back_to_what_it_was(ready: World) -> None:
    """The last of this file: its guest forgets what it has done since."""
    world = ready
    done = checkpoint(world)
    went_on(world, done)
    assert names(world.here, DIR) == ["disks", "manifest.json", "memory"]
    for disk, copy in zip(world.disks, ("disk0", "disk1"), strict=True):
        held = disk_sequences(world.here.path(f"{DIR}/disks/{copy}"), disk.format)
        now = disk_sequences(world.here.path(disk.path), disk.format)
        assert held.boot == now.boot
        assert held.missing == ()
        assert 0 < held.last < now.last
    asked = restore(world)
    assert asked.status == 2, str(asked)
    assert "--revert" in asked.stderr
    runs = restore(world, "--revert")
    assert runs.status == 3, str(runs)
    world.here.run(["entourage", "stop", "--force", world.name])
    there = restore(world, "--revert")
    assert there.status == 3, str(there)
    assert "shut off" in there.refusals["domain"], str(there)
    assert "is there already" in there.refusals["block/disk0"], str(there)
    assert "state of this TPM" in there.refusals["tpm/tpm0"], str(there)
    out_of_the_way(world)
    copy = world.here.path(f"{DIR}/disks/disk1")
    flip(copy)
    is_damaged(lambda *options: restore(world, "--revert", *options), "block/disk1")
    flip(copy)
    went_back(world, restore(world, "--revert"))
    # It can be gone back to again.
    world.here.run(["entourage", "stop", "--force", world.name])
    out_of_the_way(world)
    went_back(world, restore(world, "--revert", "--disk", "disk0=/srv/c2.raw"), "/srv/c2.raw")
    world.disks = (Disk("/srv/c2.raw"), world.disks[1])


def restore(world: World, *options: str) -> Run:
    tool = world.tool()
    return run(world, "restore", "--tool", str(tool), *options, "--", DIR)


def went_back(world: World, done: Run, disk: str = "/srv/c0.raw") -> None:
    """It is what it was, with the disks that it had then, and goes on writing to them."""
    assert done.status == 0, str(done)
    copy = disk_sequences(world.here.path(f"{DIR}/disks/disk0"), "raw")
    assert world.guest.status(timeout=PATIENCE).boot == world.boot
    assert world.guest.tpm() == world.registers
    writes_on(world)
    now = disk_sequences(world.here.path(disk), "raw")
    assert now.missing == ()
    assert now.last > copy.last
