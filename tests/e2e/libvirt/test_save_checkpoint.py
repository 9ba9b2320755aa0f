"""A libvirt domain is saved with its disks, and goes on or ends; later it goes back."""

from __future__ import annotations

import signal
import time

import pytest

from lab.guest import disk_sequences
from lab.libvirtd import Libvirtd
from tests.e2e.libvirt.saved import (
    DIR,
    DISK,
    OTHER,
    SOCKETS,
    killed_at,
    lives,
    module_world,
    names,
    partial,
    ready,
    recovered,
    restore,
    save,
    went_on,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import flip
from tests.e2e.shared import SHARED, loop

__all__ = ["module_world", "ready"]

CHECKPOINT = ("--checkpoint", "--allow-tpm-rollback")


def checkpoint(world: LibvirtWorld, *options: str) -> Run:
    return save(world, DIR, *CHECKPOINT, *options)


def is_whole(world: LibvirtWorld, *, saved: bool) -> None:
    """The guest lives on its own disk; there is a checkpoint, or nothing of one."""
    assert not partial(world)
    assert world.here.path(DIR).exists() == saved
    daemon = Libvirtd(world.here)
    assert not daemon.virsh("blockjob", world.name, "vda").stdout.split()
    assert "<mirror" not in daemon.virsh("dumpxml", world.name).stdout
    assert names(world.here, SOCKETS) == []
    lives(world)


def holds(world: LibvirtWorld, directory: str = DIR) -> int:
    """The last number in the copy of the disk, which has all before it."""
    copy = disk_sequences(world.here.path(f"{directory}/disks/vda"), "qcow2")
    assert copy.boot == world.boot
    assert copy.missing == ()
    return copy.last


@pytest.mark.matrix
def test_what_cannot_be_gone_back_to_is_refused(ready: LibvirtWorld) -> None:
    world = ready
    without = save(world, DIR, "--checkpoint")
    assert without.status == 2, str(without)
    assert "--allow-tpm-rollback" in without.stderr
    kept = checkpoint(world, "--disks", "keep")
    assert kept.status == 2, str(kept)
    assert "--disks=copy" in kept.stderr
    lives(world)


KILLED = [
    # Who is killed where, and whether there is a checkpoint then.
    ("entourage", "source.step-done.1", False),  # the disk's copy follows the guest
    ("entourage", "source.step-started.2", False),  # it stands still
    ("entourage", "source.memory-landed", False),
    # While the guest is let run here, the agent is asked to keep what has landed: it may have been.
    ("entourage", "source.after.resume-source", None),
    ("agent", "target.after.flush-open", False),
    ("agent", "target.published", True),
    ("libvirtd", "source.step-done.1", False),
    ("libvirtd", "source.step-started.2", False),
    ("libvirtd", "source.memory-landed", True),
    ("both", "source.step-done.1", False),
    ("both", "source.memory-landed", False),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("victim", "point", "saved"), KILLED)
def test_killed(
    ready: LibvirtWorld,
    victim: str,
    point: str,
    saved: bool | None,  # noqa: FBT001 - a case's
) -> None:
    """Whoever is killed: the guest goes on, and there is a whole checkpoint, or none."""
    world = ready
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--tool", str(world.tool())]
    killed_at(world, [*argv, "--", world.name, DIR], victim, point)
    recovered(world)
    is_whole(world, saved=world.here.path(DIR).exists() if saved is None else saved)


@pytest.mark.matrix
@pytest.mark.parametrize("point", ["source.guest-stopped", "source.memory-landed"])
def test_a_guest_that_somebody_resumes_is_not_kept(ready: LibvirtWorld, point: str) -> None:
    """Its memory would be of later than its disk; once that is whole, it may run."""
    world = ready
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--tool", str(world.tool())]
    with Points(world.here, point) as points:
        process = world.here.popen([*argv, "--", world.name, DIR], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        Libvirtd(world.here).virsh("resume", world.name)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    kept = point == "source.memory-landed"
    assert done.finished["outcome"] == ("saved" if kept else "rolled-back"), str(done)
    if not kept:
        assert "somebody has let the guest run on" in done.finished["message"], str(done)
    is_whole(world, saved=kept)


@pytest.mark.matrix
@pytest.mark.parametrize("point", ["source.device-step-started.1.block/vda", "source.step-done.1"])
def test_storage_that_hangs_under_the_copy_of_a_disk(ready: LibvirtWorld, point: str) -> None:
    """The guest goes on, and writes; Ctrl-C ends the command, and libvirt copies no more."""
    world, here, slow = ready, ready.here, "/mnt/slow"
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--tool", str(world.tool())]
    with loop(here, "/srv/slow.img", "512M") as device:
        here.run(["mkfs.ext4", "-q", device])
        here.run(["mkdir", slow])
        here.run(["mount", device, slow])
        with Points(here, point) as points:
            process = here.popen([*argv, "--", world.name, f"{slow}/saved"], env=points.env)
            points.wait(point, lambda: process.poll() is None)
            here.run(["fsfreeze", "--freeze", slow])
            try:
                if point != "source.step-done.1":  # else it would be suspended, and wait for it
                    points.open()
                lives(world)
                process.send_signal(signal.SIGINT)
                points.open()
                stdout, stderr = process.communicate(timeout=PATIENCE)
                lives(world)
            finally:
                here.run(["fsfreeze", "--unfreeze", slow])
        done = Run(process.returncode, stdout, stderr)
        assert done.status in {4, 5}, str(done)
        recovered(world)
        assert names(here, slow) == ["lost+found"]
        here.run(["umount", slow])
        here.run(["rmdir", slow])
    is_whole(world, saved=False)


@pytest.mark.matrix
def test_a_paused_guest_stays_paused(ready: LibvirtWorld) -> None:
    """QEMU does not save it again before it has run, and what to do then is said."""
    world = ready
    Libvirtd(world.here).virsh("suspend", world.name)
    done = checkpoint(world)
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    again = save(world, OTHER, *CHECKPOINT)
    assert again.status == 4, str(again)
    assert "virsh resume" in again.stderr, str(again)
    assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    is_whole(world, saved=True)


@pytest.mark.matrix
def test_its_disk_goes_along_as_it_ends(ready: LibvirtWorld) -> None:
    """Restored where it was, and at another path; never over what is there."""
    world = ready
    done = save(world, DIR, "--disks", "copy")
    assert done.status == 0, str(done)
    assert names(world.here, DIR) == ["disks", "manifest.json", "memory"]
    assert holds(world) == disk_sequences(world.here.path(DISK.path), "qcow2").last
    there = restore(world)
    assert there.status == 3, str(there)
    assert "is there already" in there.refusals["block/vda"], str(there)
    world.here.run(["rm", DISK.path])
    went_on(world, restore(world))


@pytest.mark.matrix
def test_a_chain_of_images_becomes_one(ready: LibvirtWorld) -> None:
    """What its disk is built on is in the copy, and nowhere in the XML."""
    world, daemon = ready, Libvirtd(ready.here)
    over = f"{SHARED}/over.qcow2"
    spec = ("--disk-only", "--no-metadata", "--diskspec", f"vda,file={over}")
    daemon.virsh("snapshot-create-as", world.name, *spec)
    done = save(world, DIR, "--disks", "copy")
    assert done.status == 0, str(done)
    held = holds(world)
    world.here.run(["rm", over, DISK.path])
    went_on(world, restore(world, DIR, "--disk", f"vda={DISK.path}"))
    live = daemon.virsh("dumpxml", "--migratable", world.name).stdout
    assert over not in live
    assert disk_sequences(world.here.path(DISK.path), "qcow2").last > held
    world.here.path("/root/flat.xml").write_text(live)  # the definition that is there has stayed
    daemon.virsh("define", "/root/flat.xml")
    world.here.path("/root/flat.xml").unlink()


def test_back_to_what_it_was(ready: LibvirtWorld) -> None:
    """The last of this file: its guest forgets what it has done since."""
    world = ready
    done = checkpoint(world)
    assert done.status == 0, str(done)
    assert done.finished["outcome"] == "saved", str(done)
    is_whole(world, saved=True)
    assert 0 < holds(world) < disk_sequences(world.here.path(DISK.path), "qcow2").last
    asked = restore(world)
    assert asked.status == 2, str(asked)
    assert "--revert" in asked.stderr
    runs = restore(world, DIR, "--revert")
    assert runs.status == 3, str(runs)
    world.here.run(["entourage", "stop", "--force", world.name])
    there = restore(world, DIR, "--revert")
    assert there.status == 3, str(there)
    assert "is there already" in there.refusals["block/vda"], str(there)
    assert "state of this TPM" in there.refusals["tpm/tpm0"], str(there)
    out_of_the_way(world)
    copy = world.here.path(f"{DIR}/disks/vda")
    flip(copy)
    # libvirt would write over the state of its TPM: all of it is read before.
    damaged = restore(world, DIR, "--revert")
    assert damaged.status == 3, str(damaged)
    assert "is damaged" in damaged.refusals["block/vda"], str(damaged)
    flip(copy)
    went_back(world, restore(world, DIR, "--revert"))
    # It can be gone back to again.
    world.here.run(["entourage", "stop", "--force", world.name])
    out_of_the_way(world)
    went_back(world, restore(world, DIR, "--revert"))


def out_of_the_way(world: LibvirtWorld) -> None:
    """Do what the refusals say: what the guest was before it goes back is taken away."""
    uuid = Libvirtd(world.here).virsh("domuuid", world.name).stdout.strip()
    world.here.run(["rm", "-r", f"/var/lib/libvirt/swtpm/{uuid}", DISK.path])


def went_back(world: LibvirtWorld, done: Run) -> None:
    """It is what it was, with the disk that it had then, and goes on writing to it."""
    assert done.status == 0, str(done)
    held = holds(world)
    assert world.domains(world.here) == {world.name: "running"}
    assert world.guest.status(timeout=PATIENCE).boot == world.boot
    assert world.guest.tpm() == world.registers
    deadline = time.monotonic() + PATIENCE
    while (now := disk_sequences(world.here.path(DISK.path), "qcow2")).last <= held:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # its words go by a connection that is not what it was
    assert now.missing == ()
