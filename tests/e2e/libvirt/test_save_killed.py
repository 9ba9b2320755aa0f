"""Who saves or restores a libvirt domain is killed, or libvirtd is: a save, or a guest."""

from __future__ import annotations

import pytest

from lab.libvirtd import Libvirtd
from tests.e2e.libvirt.saved import (
    DIR,
    DISK,
    IN_DOUBT,
    killed_while_restored,
    killed_while_saved,
    lives,
    module_world,
    names,
    ready,
    recovered,
    restore,
    save,
    went_on,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, loop

__all__ = ["module_world", "ready"]


@pytest.mark.matrix
def test_killed_while_its_storage_hangs(ready: LibvirtWorld) -> None:
    """libvirt waits for storage: once that answers, the guest goes on, and nothing is left."""
    world, here, slow = ready, ready.here, "/mnt/slow"
    with loop(here, "/srv/slow.img", "512M") as device:
        here.run(["mkfs.ext4", "-q", device])
        here.run(["mkdir", slow])
        here.run(["mount", device, slow])
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name]
        with Points(here, "source.step-done.1", "source.guest-stopped") as points:
            process = here.popen([*argv, f"{slow}/saved"], env=points.env)
            points.wait("source.step-done.1", lambda: process.poll() is None)
            here.run(["fsfreeze", "--freeze", slow])
            try:
                points.pass_on("source.step-done.1")
                points.wait("source.guest-stopped", lambda: process.poll() is None)
                process.kill()
            finally:
                here.run(["fsfreeze", "--unfreeze", slow])
            points.open()
            process.communicate(timeout=PATIENCE)
        recovered(world)
        assert names(here, slow) == ["lost+found"]
        here.run(["umount", slow])
        here.run(["rmdir", slow])
    lives(world)


KILLED = [
    # Who is killed where, and what there is then: a save, or a guest that runs.
    pytest.param("entourage", "source.step-started.2", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.step-started.2", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.after.flush-armed", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "save", marks=pytest.mark.matrix),
    pytest.param("both", "source.step-started.2", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), KILLED)
def test_killed_while_it_is_saved(ready: LibvirtWorld, victim: str, point: str, left: str) -> None:
    killed_while_saved(ready, victim, point, left)


RESTORED = [
    pytest.param("entourage", "source.after.disarm-deadman", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.after.flush-armed", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "guest", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "target.after.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.after.disarm-deadman", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), RESTORED)
def test_killed_while_it_is_restored(
    ready: LibvirtWorld, victim: str, point: str, left: str
) -> None:
    killed_while_restored(ready, victim, point, left)


@pytest.mark.matrix
def test_what_somebody_has_let_run_since_is_not_ended(ready: LibvirtWorld) -> None:
    """And has paused again: what it did would be lost. Given up by hand, the save is as it was."""
    world, before, point = ready, f"{SHARED}/before.qcow2", "target.before.flush-go"
    daemon = Libvirtd(world.here)
    assert save(world).status == 0
    world.here.run(["cp", "-p", DISK.path, before])
    argv = ["entourage", "restore", "--json", "--tool", str(world.tool()), "--", DIR]
    with Points(world.here, point) as points:
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        process.kill()
        world.here.run(["pkill", "-KILL", "-f", "entourage agent"])  # or it would go back
        process.communicate(timeout=PATIENCE)
    daemon.virsh("resume", world.name)
    world.seen.wait_progress(PATIENCE, world.address)
    daemon.virsh("suspend", world.name)
    said = world.here.run(["entourage", "recover"], check=False)
    assert said.returncode not in {0, IN_DOUBT}, said
    assert f"{world.name} has run since it was restored" in said.stdout, said
    assert world.domains(world.here) == {world.name: "paused"}
    daemon.virsh("destroy", world.name)
    world.here.run(["mv", before, DISK.path])
    recovered(world)
    went_on(world, restore(world))
