"""A guest moves, with all that is attached to it, and moves on."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.run import PATIENCE
from tests.e2e.world import EMULATED, KEPT, World, qmp

RAW = Disk("/srv/web 1.raw")
QCOW2 = Disk("/srv/web1.qcow2", "qcow2")
BLOCK = 512
MIB = 1 << 20


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen, disks=[RAW, QCOW2], extra=EMULATED)
        yield world
        world.end()


def allocated(world: World, disk: Disk) -> int:
    """Bytes that an image takes on the host that the guest is on."""
    return world.here.path(disk.path).stat().st_blocks * BLOCK


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_three_moves_in_a_row(world: World) -> None:
    for _ in range(3):
        mark = world.seen.mark()
        before = {disk: allocated(world, disk) for disk in world.disks}
        run = world.migrate()
        world.moved(run)
        [resumed] = run.of("guest-resumed")
        gap = world.seen.longest_gap(mark)
        # What it says of itself is what is seen from outside; a guest needs a moment to answer.
        assert resumed["blackout"] <= gap.seconds + 0.05
        assert gap.seconds < resumed["blackout"] + 2
        for disk, size in before.items():
            assert abs(allocated(world, disk) - size) < 8 * MIB  # it has written meanwhile
            assert world.here.path(disk.path).stat().st_nlink == 1
        state = world.here.path("/var/lib/entourage/domains")
        for file in state.glob("*/tpm-tpm0/*"):
            assert not mode(file) & 0o077, file


def test_a_hole_stays_a_hole(world: World) -> None:
    """Most of the image was never written; the copy does not fill it."""
    sparse = world.here.path(RAW.path).stat()
    assert sparse.st_size == 64 * MIB
    assert sparse.st_blocks * BLOCK < 32 * MIB
    qcow2 = world.here.path(QCOW2.path)
    image = world.here.run(["qemu-img", "info", "-U", "--output=json", QCOW2.path]).stdout
    assert json.loads(image)["format"] == "qcow2"
    assert qcow2.stat().st_blocks * BLOCK < 32 * MIB


def test_the_counter_of_the_tpm_counts_on(world: World) -> None:
    """What the guest has written to its TPM before the move is there after it, and can go on."""
    world.registers = world.guest.nv_increment()
    count = world.registers.nv
    world.moved(world.migrate())
    world.registers = world.guest.nv_increment()
    assert world.registers.nv == count + 1


def test_stopped_before_its_memory_moves(world: World) -> None:
    run = world.migrate("--non-live")
    world.moved(run)
    order = [one["event"] for one in run.events]
    [guest_stopped] = run.of("guest-stopped")
    assert all(one["at"] >= guest_stopped["at"] for one in run.of("copy-progress")
               if one["what"] == "memory")  # fmt: skip
    assert order.index("guest-stopped") < order.index("go-sent")


def test_unencrypted_if_asked(world: World) -> None:
    run = world.migrate("--no-tls")
    world.moved(run)
    assert any("unencrypted" in one["message"] for one in run.of("warned")), str(run)


def test_the_source_disks_are_kept_if_asked(world: World) -> None:
    old = world.here
    clean = world.clean[old.name]
    kept = world.clean[old.name].files | {disk.path for disk in world.disks}
    world.clean[old.name] = type(clean)(
        clean.processes, clean.interfaces, clean.sockets, clean.ports, frozenset(kept)
    )
    world.moved(world.migrate("--keep-source-disks"))
    world.clean[old.name] = clean
    for disk in world.disks:
        assert old.path(disk.path).exists()
    # And now they are in the way.
    run = world.migrate()
    assert run.status == 3, str(run)
    assert set(run.refusals) == {"block/disk0", "block/disk1"}
    for disk in world.disks:
        old.path(disk.path).unlink()
    world.is_as_before()


def test_a_paused_guest_stays_paused(world: World) -> None:
    assert qmp(world, "stop", "query-status")["status"] == "paused"
    before = world.seen.report()
    run = world.migrate()
    assert run.status == 0, str(run)
    world.here, world.there = world.there, world.here
    assert qmp(world, "query-status")["status"] == "paused"
    [domain] = json.loads(world.here.run(["entourage", "list", "--json"]).stdout)
    assert domain["state"] == "paused"
    assert world.seen.report().ticks <= before.ticks + 1  # one may have been on its way
    # QEMU 7.2 ends itself, and the guest, where it has not taken the images before.
    run = world.migrate()
    assert run.status == 0, str(run)
    world.here, world.there = world.there, world.here
    assert qmp(world, "query-status")["status"] == "paused"
    qmp(world, "cont")
    world.lives()
    world.running = world.here.snapshot()
    assert not world.there.wait_clean(world.clean[world.there.name], ignore=KEPT)


def test_a_person_is_told(world: World) -> None:
    """Without ``--json``: one sentence on standard output that says where it runs now."""
    argv = ["entourage", "migrate", world.name, world.there.name]
    done = world.here.run(argv, timeout=PATIENCE)
    world.here, world.there = world.there, world.here
    for device in ("block/disk0", "block/disk1", "net/net0", "tpm/tpm0", "usb/tablet", "pci/rng"):
        assert device in done.stdout
    assert f"{world.name} runs on {world.here.name}" in " ".join(done.stdout.split())
    world.lives()
    world.running = world.here.snapshot()
