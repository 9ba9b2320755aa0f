"""A libvirt domain whose memory is sent into a save is saved with its disks, one of them raw."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.saved import (
    DIR,
    FPGA,
    SOCKETS,
    SavedWorld,
    killed_at,
    lives,
    names,
    partial,
    recovered,
    restore,
    save,
    went_on,
)
from tests.e2e.libvirt.saved import ready as nothing_saved
from tests.e2e.libvirt.test_save_disks import DISKS, TARGETS, goes_back, held, written
from tests.e2e.libvirt.test_save_sent import far_place, one_that_takes_nothing, ready, turned
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import FAR
from tests.e2e.shared import shared_storage

__all__ = ["nothing_saved", "ready"]

CHECKPOINT = ("--checkpoint", "--allow-tpm-rollback")

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with shared_storage(libvirt_lab, "1G"), Observer.start(libvirt_lab) as seen:
        world = SavedWorld.begin(libvirt_lab, seen, "saved8", disks=DISKS, extra=FPGA)
        yield world
        world.end()


def is_as_it_was(world: LibvirtWorld) -> None:
    """The guest lives on its own disks, and nothing of a copy is left."""
    assert not partial(world)
    daemon = Libvirtd(world.here)
    for target in TARGETS:
        assert not daemon.virsh("blockjob", world.name, target).stdout.split()
    assert "<mirror" not in daemon.virsh("dumpxml", world.name).stdout
    assert names(world.here, SOCKETS) == []
    assert not [name for name in names(world.here, "/run/entourage") if ".sock" in name]
    lives(world)


def test_both_go_along_as_it_ends(ready: LibvirtWorld) -> None:
    """Compressed; in their own formats, and restored in them."""
    world = ready
    done = save(world, DIR, "--compress", "--disks", "copy")
    assert done.status == 0, str(done)
    assert held(world) == written(world)
    assert names(world.here, SOCKETS) == []
    world.here.run(["rm", *(disk.path for disk in DISKS)])
    went_on(world, restore(world))


def test_both_go_along_onto_another_host(ready: LibvirtWorld) -> None:
    """Restored there, where no image of them was."""
    world = ready
    done = save(world, far_place(world), "--disks", "copy")
    assert done.status == 0, str(done)
    assert held(world, world.there, FAR) == written(world)
    world.here.run(["rm", *(disk.path for disk in DISKS)])
    done = restore(world, FAR, host=world.there)
    assert done.status == 0, str(done)
    turned(world)


def test_a_checkpoint_on_another_host(ready: LibvirtWorld) -> None:
    """Its guest goes on; its disks there are of the moment at which it stood still."""
    world = ready
    done = save(world, far_place(world), *CHECKPOINT)
    assert done.status == 0, str(done)
    assert (done.finished["outcome"], done.finished["problems"]) == ("saved", []), str(done)
    is_as_it_was(world)
    were = held(world, world.there, FAR)
    assert all(0 < old < new for old, new in zip(were, written(world), strict=True))


KILLED = [
    # Who is killed where, and whether there is a checkpoint then.
    ("entourage", "source.step-done.1", False),  # the copies follow the guest
    ("entourage", "source.guest-stopped", False),
    ("entourage", "source.memory-landed", False),
    ("agent", "source.step-done.1", False),
    ("agent", "target.published", True),
    ("libvirtd", "source.step-done.1", False),
    ("libvirtd", "source.guest-stopped", False),
    ("libvirtd", "source.memory-landed", True),
    ("both", "source.guest-stopped", False),
    ("both", "source.memory-landed", False),
]


@pytest.mark.parametrize(("victim", "point", "saved"), KILLED)
def test_killed_while_a_checkpoint_is_made(
    ready: LibvirtWorld,
    victim: str,
    point: str,
    saved: bool,  # noqa: FBT001 - a case's
) -> None:
    """Whoever is killed: the guest goes on, and there is a whole checkpoint, or none."""
    world = ready
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--compress", "--tool", str(world.tool())]
    killed_at(world, [*argv, "--", world.name, DIR], victim, point)
    recovered(world)
    assert world.here.path(DIR).exists() == saved
    is_as_it_was(world)


RESUMED = [
    # Where somebody resumes it, whether it is suspended again, and whether it was paused before.
    ("source.guest-stopped", False, False),
    ("source.guest-stopped", True, False),
    ("source.step-done.1", False, True),
]


@pytest.mark.parametrize(("point", "again", "paused"), RESUMED)
def test_a_guest_that_somebody_resumes_is_not_kept(
    ready: LibvirtWorld,
    point: str,
    again: bool,  # noqa: FBT001 - a case's
    paused: bool,  # noqa: FBT001 - same
) -> None:
    """Its memory would be of later than its disks."""
    world, daemon = ready, Libvirtd(ready.here)
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--compress", "--tool", str(world.tool())]
    if paused:
        daemon.virsh("suspend", world.name)
    with Points(world.here, point) as points:
        process = world.here.popen([*argv, "--", world.name, DIR], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        daemon.virsh("resume", world.name)
        if again:
            daemon.virsh("suspend", world.name)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    assert "somebody has let the guest run on" in done.finished["message"], str(done)
    assert not world.here.path(DIR).exists()
    is_as_it_was(world)


def test_a_paused_guest_stays_paused(ready: LibvirtWorld) -> None:
    world, daemon = ready, Libvirtd(ready.here)
    daemon.virsh("suspend", world.name)
    done = save(world, DIR, *CHECKPOINT, "--compress")
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    assert held(world) == written(world)
    daemon.virsh("resume", world.name)
    is_as_it_was(world)


def test_a_disk_that_is_attached_meanwhile(ready: LibvirtWorld) -> None:
    """Nothing of it would be in the save, which could not be restored."""
    world, daemon, path = ready, Libvirtd(ready.here), "/srv/late.raw"
    argv = ["entourage", "save", "--json", "--disks", "copy", "--tool", str(world.tool())]
    world.here.run(["truncate", "-s", "1M", path])
    how = ("--driver", "qemu", "--subdriver", "raw", "--targetbus", "virtio")
    for options in ([], ["--compress"]):
        with Points(world.here, "source.step-done.1") as points:
            process = world.here.popen([*argv, *options, "--", world.name, DIR], env=points.env)
            points.wait("source.step-done.1", lambda: process.poll() is None)  # noqa: B023
            daemon.virsh("attach-disk", world.name, path, "vdc", *how)
            points.open()
            stdout, stderr = process.communicate(timeout=PATIENCE)
        done = Run(process.returncode, stdout, stderr)
        assert done.finished["outcome"] == "rolled-back", str(done)
        assert "block/vdc" in done.finished["message"], str(done)
        daemon.virsh("detach-disk", world.name, "vdc")
        is_as_it_was(world)
    world.here.run(["rm", path])


@pytest.mark.parametrize("how", ["interrupted", "killed", "libvirtd", "both"])
def test_what_passes_memory_on_stands_still(ready: LibvirtWorld, how: str) -> None:
    """libvirt sends memory of a guest that we have suspended: it is let run all the same."""
    world, point = ready, "source.guest-stopped"
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--compress", "--tool", str(world.tool())]
    with one_that_takes_nothing(world.here), Points(world.here, point) as points:
        process = world.here.popen([*argv, "--", world.name, DIR], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        points.open()
        deadline = time.monotonic() + PATIENCE
        while "Outgoing migration" not in job_of(world):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)  # libvirt tells nobody
        assert world.domains(world.here) == {world.name: "paused"}
        if how in {"killed", "both"}:
            process.kill()
        if how in {"libvirtd", "both"}:
            world.kill_daemon(world.here)
            world.start_daemon(world.here)
        if how == "interrupted":
            process.send_signal(signal.SIGINT)
        while world.domains(world.here) != {world.name: "running"}:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # whoever lets it run tells the domain's log
        world.lives()
        world.here.run(["pkill", "-KILL", "zstd"], check=False)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    if how == "interrupted":
        done = Run(process.returncode, stdout, stderr)
        assert done.finished["outcome"] == "rolled-back", str(done)
    recovered(world)
    assert not world.here.path(DIR).exists()
    is_as_it_was(world)


def job_of(world: LibvirtWorld) -> str:
    """What libvirt does with it."""
    return Libvirtd(world.here).virsh("domjobinfo", world.name).stdout


def test_back_to_what_both_were(ready: LibvirtWorld) -> None:
    """The last of this file: its guest forgets what it has done since."""
    world = ready
    done = save(world, DIR, *CHECKPOINT, "--compress")
    assert done.status == 0, str(done)
    is_as_it_was(world)
    goes_back(world, held(world))
