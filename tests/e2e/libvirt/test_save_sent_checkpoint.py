"""A libvirt domain whose memory is sent into a save goes on; later it goes back."""

from __future__ import annotations

import hashlib
import json
import signal
import time

import pytest

from lab.guest import disk_sequences
from lab.libvirtd import Libvirtd
from tests.e2e.libvirt.saved import (
    DIR,
    DISK,
    killed_at,
    lives,
    module_world,
    names,
    partial,
    recovered,
    restore,
    save,
)
from tests.e2e.libvirt.test_save_sent import far_place, nothing_saved, ready
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import FAR
from tests.e2e.shared import SHARED

__all__ = ["module_world", "nothing_saved", "ready"]

CHECKPOINT = ("--checkpoint", "--allow-tpm-rollback", "--disks", "reference")


@pytest.mark.matrix
@pytest.mark.parametrize("live", ["", "--non-live"])
def test_a_checkpoint_on_another_host(ready: LibvirtWorld, live: str) -> None:
    """Its guest goes on here, and there is a whole checkpoint there."""
    world = ready
    done = save(world, far_place(world), *CHECKPOINT, *([live] if live else []))
    assert done.status == 0, str(done)
    assert done.finished["outcome"] == "saved", str(done)
    assert names(world.there, FAR) == ["manifest.json", "memory"]
    lives(world)


CHECKPOINTS = [
    # Who is killed where, and whether there is a checkpoint then.
    ("entourage", "source.guest-stopped", False),
    ("entourage", "source.memory-landed", False),
    # While the guest is let run here, the agent is asked to keep what has landed: it may have been.
    ("entourage", "source.after.resume-source", None),
    ("agent", "target.after.flush-open", False),
    ("agent", "target.published", True),
    ("libvirtd", "source.step-done.1", False),
    ("libvirtd", "source.memory-landed", True),
    ("both", "source.memory-landed", False),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("victim", "point", "saved"), CHECKPOINTS)
def test_killed_while_a_checkpoint_is_made(
    ready: LibvirtWorld,
    victim: str,
    point: str,
    saved: bool | None,  # noqa: FBT001 - a case's
) -> None:
    world = ready
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--compress", "--tool", str(world.tool())]
    killed_at(world, [*argv, "--", world.name, DIR], victim, point)
    recovered(world)
    assert not partial(world)
    kept = world.here.path(DIR).exists()
    assert saved in {kept, None}
    if kept:
        saved_as = json.loads(world.here.path(f"{DIR}/manifest.json").read_text())["memory"]
        memory = world.here.path(f"{DIR}/memory").read_bytes()
        assert hashlib.sha256(memory).hexdigest() == saved_as["sha256"]
    lives(world)


@pytest.mark.matrix
def test_its_command_is_frozen(ready: LibvirtWorld) -> None:
    """The deadman lets the guest run, whatever becomes of the checkpoint."""
    world, point = ready, "source.memory-landed"
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--compress", "--tool", str(world.tool())]
    with Points(world.here, point) as points:
        process = world.here.popen([*argv, "--", world.name, DIR], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while world.domains(world.here) != {world.name: "running"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # the deadman tells nobody
        process.send_signal(signal.SIGCONT)
        points.open()
        process.communicate(timeout=PATIENCE)
    recovered(world)
    assert not partial(world)
    lives(world)


@pytest.mark.matrix
def test_back_to_what_it_was(ready: LibvirtWorld) -> None:
    """The last of this file: its guest forgets what it has done since."""
    world, before, point = ready, f"{SHARED}/before.qcow2", "source.memory-landed"
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--compress", "--tool", str(world.tool())]
    with Points(world.here, point) as points:
        process = world.here.popen([*argv, "--", world.name, DIR], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        world.here.run(["cp", DISK.path, before])  # as a snapshot of the storage does
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "saved", str(done)
    lives(world)
    held = disk_sequences(world.here.path(before), "qcow2").last
    world.here.run(["entourage", "stop", "--force", world.name])
    refused = restore(world, DIR, "--revert")
    assert "state of this TPM" in refused.refusals["tpm/tpm0"], str(refused)
    uuid = Libvirtd(world.here).virsh("domuuid", world.name).stdout.strip()
    world.here.run(["rm", "-r", f"/var/lib/libvirt/swtpm/{uuid}"])
    world.here.run(["mv", before, DISK.path])
    done = restore(world, DIR, "--revert")
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "running"}
    assert world.guest.status(timeout=PATIENCE).boot == world.boot
    assert world.guest.tpm() == world.registers
    deadline = time.monotonic() + PATIENCE
    while (now := disk_sequences(world.here.path(DISK.path), "qcow2")).last <= held:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # its words go by a connection that is not what it was
    assert now.missing == ()
