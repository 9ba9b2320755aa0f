"""Checkpoints of only what a guest has written to its disks since the one before."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest

from lab.guest import Disk, DiskRecords, disk_sequences
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import KEPT, flip, is_damaged, out_of_the_way, run, writes_on
from tests.e2e.world import World

DIR, LATER, LAST, NEVER = (f"/srv/since-{number}" for number in range(4))


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest with a raw disk and a qcow2 one, which are on its host alone."""
    with Observer.start(lab) as seen:
        disks = ("/srv/i0.raw", Disk("/srv/i1.qcow2", "qcow2"))
        world = World.begin(lab, seen, "saved3", disks=disks)
        world.kept = (*world.kept, *KEPT, "/srv/since-*")  # type: ignore[misc] - of this one
        yield world
        world.end()
        for host in (world.here, world.there):
            host.run(["sh", "-c", f"rm -rf {' '.join(KEPT)} /srv/since-*"])


def checkpoint(world: World, directory: str, *options: str) -> Run:
    words = ("save", "--checkpoint", "--allow-tpm-rollback", *options)
    return run(world, *words, "--", world.name, directory)


def went_on(world: World, done: Run) -> None:
    """The guest goes on where it was."""
    assert done.status == 0, str(done)
    assert (done.finished["outcome"], done.finished["problems"]) == ("saved", []), str(done)
    world.is_as_before()


def held(world: World, directory: str, disk: str) -> DiskRecords:
    """What a copy in a checkpoint holds, with all that it is built on."""
    image, raw = f"{directory}/disks/{disk}", "/srv/as-raw"
    info = json.loads(world.here.run(["qemu-img", "info", "--output=json", image]).stdout)
    command = ["qemu-img", "convert", "-f", info["format"], "-O", "raw"]
    world.here.run([*command, image, raw])
    try:
        return disk_sequences(world.here.path(raw))
    finally:
        world.here.run(["rm", raw])


@pytest.mark.matrix
def test_only_what_was_written_since(world: World) -> None:
    """Two checkpoints, each of what was written since the one before; then back to the second."""
    went_on(world, checkpoint(world, DIR))
    for number, (before, directory) in enumerate([(DIR, LATER), (LATER, LAST)]):
        writes_on(world)
        done = checkpoint(world, directory, "--since", before)
        went_on(world, done)
        for disk in ("disk0", "disk1"):
            image = f"{directory}/disks/{disk}"
            told = world.here.run(["qemu-img", "info", "--output=json", image]).stdout
            info = json.loads(told)
            assert info["full-backing-filename"] == f"{before}/disks/{disk}", told
            # The guest writes its records one after the other: a few of these are few clusters.
            assert info["actual-size"] < 2 << 20, told
            earlier, now = held(world, before, disk), held(world, directory, disk)
            assert now.boot == earlier.boot == world.boot
            assert now.missing == ()
            assert earlier.last < now.last, number
    # A save may be what several are built on.
    writes_on(world)
    went_on(world, checkpoint(world, NEVER, "--since", DIR))
    assert held(world, LAST, "disk0").last < held(world, NEVER, "disk0").last
    world.here.run(["rm", "-r", NEVER])
    other = checkpoint(world, NEVER, "--since", "/srv/none")
    assert other.status == 2, str(other)
    world.here.run(["mv", DIR, f"{DIR}.away"])
    [shown] = json.loads(world.here.run(["entourage", "saved", "--json", LAST]).stdout)
    assert f"since {DIR}" in "; ".join(shown["against"]), shown
    assert shown["since"] == LATER
    world.here.run(["mv", f"{DIR}.away", DIR])
    world.here.run(["entourage", "stop", "--force", world.name])
    out_of_the_way(world)
    below = world.here.path(f"{DIR}/disks/disk1")
    flip(below)
    is_damaged(
        lambda *options: run(world, "restore", "--revert", *options, "--", LAST), "block/disk1"
    )
    flip(below)
    copy = held(world, LAST, "disk0")
    back = run(world, "restore", "--revert", "--", LAST)
    assert back.status == 0, str(back)
    assert world.guest.status(timeout=PATIENCE).boot == world.boot
    writes_on(world)
    for disk, image_format in zip(world.disks, ("raw", "qcow2"), strict=True):
        told = world.here.run(["qemu-img", "info", "-U", "--output=json", disk.path]).stdout
        info = json.loads(told)
        assert info["format"] == image_format
        assert "backing-filename" not in info
    now = disk_sequences(world.here.path("/srv/i0.raw"))
    assert now.missing == ()
    assert now.last > copy.last
    # It is another QEMU, which knows nothing of what was written before.
    unknown = checkpoint(world, NEVER, "--since", LAST)
    assert unknown.status == 3, str(unknown)
    assert "is not known" in unknown.refusals["block/disk0"], str(unknown)
