"""A libvirt domain whose memory is sent into a save: compressed, encrypted, onto another host."""

from __future__ import annotations

import json
import signal
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from lab.host import Host
from lab.libvirtd import Libvirtd
from tests.e2e.libvirt.saved import (
    DIR,
    OTHER,
    forget,
    is_gone,
    killed_while_restored,
    killed_while_saved,
    lives,
    module_world,
    names,
    partial,
    reasons,
    recovered,
    restore,
    save,
    went_on,
)
from tests.e2e.libvirt.saved import ready as nothing_saved
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run, far
from tests.e2e.saves import FAR

__all__ = ["module_world", "nothing_saved"]

ZSTD = b"\x28\xb5\x2f\xfd"
AGE = b"age-encryption.org"


@pytest.fixture
def ready(nothing_saved: LibvirtWorld) -> Generator[LibvirtWorld]:
    """The same, with nothing on one host alone."""
    yield nothing_saved
    for host in (nothing_saved.here, nothing_saved.there):
        host.run(["rm", "-rf", FAR, "/root/key"])


def far_place(world: LibvirtWorld) -> str:
    return f"{world.there.name}:{FAR}"


def turned(world: LibvirtWorld) -> None:
    """It lives on the other host now, and its definition is forgotten where it was."""
    world.here, world.there = world.there, world.here
    forget(world, world.there)
    lives(world)


def recipient(world: LibvirtWorld) -> str:
    """Make a key that both hosts have; to whom is encrypted."""
    made = world.here.run(["age-keygen", "-o", "/root/key"])
    world.there.path("/root/key").write_bytes(world.here.path("/root/key").read_bytes())
    return made.stderr.split()[-1]


def memory_begins(host: Host, directory: str, magic: bytes) -> bool:
    with host.path(f"{directory}/memory").open("rb") as file:
        return file.read(len(magic)) == magic


@pytest.mark.matrix
def test_compressed_twice_in_a_row(ready: LibvirtWorld) -> None:
    """Restored where it was, with the definition that has stayed there."""
    world = ready
    daemon = Libvirtd(world.here)
    kept = daemon.virsh("dumpxml", "--inactive", "--security-info", world.name).stdout
    saved = save(world, DIR, "--compress")
    assert saved.status == 0, str(saved)
    assert not saved.of("warned"), str(saved)
    is_gone(world)
    assert memory_begins(world.here, DIR, ZSTD)
    manifest = json.loads(world.here.path(f"{DIR}/manifest.json").read_text())
    assert (manifest["format"], manifest["sent"]) == (2, True)
    went_on(world, restore(world))
    assert daemon.virsh("dumpxml", "--inactive", "--security-info", world.name).stdout == kept
    again = restore(world)
    assert f"it was restored on {world.here.name}" in reasons(again), str(again)
    assert save(world, OTHER, "--compress").status == 0
    went_on(world, restore(world, OTHER))


@pytest.mark.matrix
def test_onto_another_host(ready: LibvirtWorld) -> None:
    """By the agent there; restored there, from where it moves on as any."""
    world = ready
    done = save(world, far_place(world))
    assert done.status == 0, str(done)
    assert not world.answers()
    assert world.domains(world.here) == {world.name: "shut off"}
    assert names(world.there, FAR) == ["manifest.json", "memory"]
    refused = world.here.run(["entourage", "start", world.name], check=False)
    assert refused.returncode == 3
    assert far_place(world) in refused.stderr
    done = restore(world, FAR, host=world.there)
    assert done.status == 0, str(done)
    turned(world)
    world.here.run(["rm", "-r", FAR])
    done = world.migrate("--tool", str(world.tool()))
    assert done.status == 0, str(done)
    world.arrived()


@pytest.mark.matrix
def test_compressed_and_encrypted_on_another_host(ready: LibvirtWorld) -> None:
    world = ready
    done = save(world, far_place(world), "--compress", "--encrypt", recipient(world))
    assert done.status == 0, str(done)
    assert memory_begins(world.there, FAR, AGE)
    refused = restore(world, FAR, host=world.there)
    assert refused.status == 2, str(refused)
    assert "--identity" in refused.stderr
    done = restore(world, FAR, "--identity", "/root/key", host=world.there)
    assert done.status == 0, str(done)
    turned(world)


@pytest.mark.matrix
def test_encrypted_and_restored_where_it_was(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world, DIR, "--encrypt", recipient(world)).status == 0
    assert memory_begins(world.here, DIR, AGE)
    is_gone(world)
    went_on(world, restore(world, DIR, "--identity", "/root/key"))


@pytest.mark.matrix
def test_compressed_and_restored_on_the_other_host(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world, DIR, "--compress").status == 0
    done = restore(world, host=world.there)
    assert done.status == 0, str(done)
    turned(world)


@pytest.mark.matrix
def test_a_paused_guest_stays_paused(ready: LibvirtWorld) -> None:
    """Restored paused, and saved again as it is."""
    world = ready
    assert save(world, DIR, "--compress").status == 0
    done = restore(world, DIR, "--paused")
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    done = save(world, OTHER, "--compress")
    assert done.status == 0, str(done)
    done = restore(world, OTHER)
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    lives(world)


@pytest.mark.matrix
def test_another_machine_is_not_made_of_it(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world, DIR, "--compress").status == 0
    refused = restore(world, DIR, "--as", "web2", "--net", "br0=br7")
    assert refused.status == 2, str(refused)
    assert "neither compressed nor encrypted" in refused.stderr
    went_on(world, restore(world))


@pytest.mark.matrix
def test_a_definition_that_is_started_spends_the_save(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world, DIR, "--compress").status == 0
    world.start_again()
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "here already, running" in refused.refusals["domain"], str(refused)
    lives(world)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "point",
    [
        "source.after.flush-armed",  # before Prepare
        "source.step-started.2",  # memory is taken
    ],
)
def test_interrupted_while_it_is_restored(ready: LibvirtWorld, point: str) -> None:
    """Ctrl-C: what was there is left, the definition and the save, which can be restored."""
    world = ready
    assert save(world, DIR, "--compress").status == 0
    with Points(world.here, point) as points:
        argv = ["entourage", "restore", "--json", "--tool", str(world.tool()), "--", DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    recovered(world)
    is_gone(world)
    went_on(world, restore(world))


KILLED = [
    # Who is killed where, and what there is then: a save, or a guest that runs.
    ("agent", "target.after.flush-go", "save"),
    pytest.param("entourage", "source.guest-stopped", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.step-started.2", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.memory-landed", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "save", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.step-done.1", "guest", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.memory-landed", "save", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("both", "source.memory-landed", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), KILLED)
def test_killed_while_it_is_saved(ready: LibvirtWorld, victim: str, point: str, left: str) -> None:
    killed_while_saved(ready, victim, point, left, "--compress")


RESTORED = [
    pytest.param("agent", "target.after.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.after.disarm-deadman", "save", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.after.flush-armed", "save", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.step-started.2", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "source.step-started.2", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "guest", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "target.after.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), RESTORED)
def test_killed_while_it_is_restored(
    ready: LibvirtWorld, victim: str, point: str, left: str
) -> None:
    killed_while_restored(ready, victim, point, left, "--compress")


CUT = [
    pytest.param("StreamLocalBindMask", "source.guest-stopped", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage save", "source.step-started.2", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage agent", "target.after.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("what", "point", "left"), CUT)
def test_cut_off_on_its_way_to_another_host(
    ready: LibvirtWorld, what: str, point: str, left: str
) -> None:
    world, at_target = ready, point.startswith("target")
    argv = ["entourage", "save", "--json", "--tool", str(world.tool())]
    with Points(world.there if at_target else world.here, point) as points:
        remote = far(**points.env) if at_target else far()
        argv += ["--remote-command", remote, "--", world.name, far_place(world)]
        process = world.here.popen(argv, env={} if at_target else points.env)
        points.wait(point, lambda: process.poll() is None)
        (world.there if at_target else world.here).run(["pkill", "-KILL", "-f", what])
        points.open()
        process.communicate(timeout=PATIENCE)
    recovered(world)
    there = world.there.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert there.returncode == 0, there
    assert world.there.path(FAR).exists() == (left == "save")
    if left == "guest":
        assert not [name for name in names(world.there, "/srv") if name.endswith(".partial")]
        assert not [name for name in names(world.here, "/run/entourage") if ".sock" in name]
        lives(world)
        return
    assert not world.answers()
    assert restore(world, FAR, host=world.there).status == 0
    turned(world)


@contextmanager
def one_that_takes_nothing(host: Host) -> Generator[None]:
    """Have a zstd on a host that stops as it is to begin."""
    path = "/usr/local/bin/zstd"
    host.write_files({path: "#!/bin/sh\nkill -STOP $$\n"})
    host.run(["chmod", "755", path])
    try:
        yield
    finally:
        host.run(["rm", path])


@pytest.mark.parametrize("how", ["interrupted", pytest.param("killed", marks=pytest.mark.matrix)])
def test_what_passes_memory_on_stands_still(ready: LibvirtWorld, how: str) -> None:
    """As where the storage hangs: QEMU waits, and its guest is let run all the same."""
    world, point = ready, "source.guest-stopped"
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--compress"]
    with one_that_takes_nothing(world.here), Points(world.here, point) as points:
        process = world.here.popen([*argv, "--", world.name, DIR], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        assert world.domains(world.here) == {world.name: "paused"}
        if how == "killed":
            process.kill()
        else:
            process.send_signal(signal.SIGINT)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
        world.lives()  # and starts with its host again once it is recovered
        world.here.run(["pkill", "-KILL", "zstd"], check=False)
    if how == "interrupted":
        done = Run(process.returncode, stdout, stderr)
        assert done.finished["outcome"] == "rolled-back", str(done)
    recovered(world)
    assert not partial(world)
    lives(world)
