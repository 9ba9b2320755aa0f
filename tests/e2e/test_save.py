"""A guest is saved into a directory and restored: here, there, and in one place only."""

from __future__ import annotations

import json
import os

import pytest

from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, far
from tests.e2e.saves import (
    DIR,
    FAR,
    OTHER,
    flip,
    is_damaged,
    is_gone,
    names,
    partial,
    ready,
    reasons,
    restore,
    run,
    save,
    save_without_room,
    wants_room,
    went_on,
    world,
)
from tests.e2e.shared import SHARED
from tests.e2e.world import World, qmp

__all__ = ["ready", "world"]


def test_twice_in_a_row(ready: World) -> None:
    world = ready
    tool = world.tool()
    saved = run(world, "save", "--tool", str(tool), "--", world.name, DIR)
    assert saved.status == 0, str(saved)
    assert not saved.of("warned"), str(saved)
    assert [call for call in tool.calls() if call[1] == "fpga"] == [
        ["-type", "fpga", "-step", step, "-host", DIR, "-domname", world.name]
        for step in ("1", "2", "3")
    ]
    is_gone(world)
    refused = world.here.run(["entourage", "start", world.name], check=False)
    assert refused.returncode == 3
    assert f"entourage restore {DIR}" in refused.stderr
    went_on(world, restore(world))
    again = restore(world)
    assert again.status == 3, str(again)
    assert f"it was restored on {world.here.name}" in reasons(again), str(again)
    assert save(world, OTHER).status == 0
    is_gone(world, OTHER)
    went_on(world, restore(world, OTHER))


def test_on_the_other_host(ready: World) -> None:
    world = ready
    assert save(world).status == 0
    shown = json.loads(world.there.run(["entourage", "saved", "--json", SHARED]).stdout)
    assert [(one["domain"], one["host"], one["against"]) for one in shown] == [
        (world.name, world.here.name, [])
    ]
    done = restore(world, host=world.there)
    assert done.status == 0, str(done)
    world.here, world.there = world.there, world.here
    world.lives()
    lost = restore(world, host=world.there)
    assert lost.status == 3, str(lost)
    assert f"it was restored on {world.here.name}" in reasons(lost), str(lost)
    world.moved(world.migrate("--tool", str(world.tool())))


def test_onto_another_host(ready: World) -> None:
    """By the agent there; what its way is cut off from is no save."""
    world = ready
    place = f"{world.there.name}:{FAR}"
    done = save(world, place)
    assert done.status == 0, str(done)
    assert not world.answers()
    assert names(world.there, FAR) == ["manifest.json", "memory"]
    refused = world.here.run(["entourage", "start", world.name], check=False)
    assert refused.returncode == 3
    assert place in refused.stderr
    done = restore(world, FAR, host=world.there)
    assert done.status == 0, str(done)
    world.here, world.there = world.there, world.here
    world.lives()
    left = world.there.wait_clean(world.clean[world.there.name], ignore=world.kept)
    assert not left, str(left)


@pytest.mark.matrix
@pytest.mark.parametrize("host", ["", "there"])
def test_compressed_and_encrypted(ready: World, host: str) -> None:
    world = ready
    made = world.here.run(["age-keygen", "-o", "/root/key"])
    recipient = made.stderr.split()[-1]
    world.there.path("/root/key").write_bytes(world.here.path("/root/key").read_bytes())
    place = f"{world.there.name}:{FAR}" if host else DIR
    directory, where = (FAR, world.there) if host else (DIR, world.here)
    done = save(world, place, "--compress", "--encrypt", recipient)
    assert done.status == 0, str(done)
    memory = where.path(f"{directory}/memory")
    assert memory.read_bytes()[:18] == b"age-encryption.org"
    assert memory.stat().st_size < (150 << 20)
    refused = restore(world, directory, host=where)
    assert refused.status == 2, str(refused)
    assert "--identity" in refused.stderr
    where.run(["age-keygen", "-o", "/root/other"])
    wrong = restore(world, directory, "--identity", "/root/other", host=where)
    assert wrong.status == 2, str(wrong)
    assert "no identity matched" in wrong.stderr, str(wrong)
    done = restore(world, directory, "--identity", "/root/key", host=where)
    assert done.status == 0, str(done)
    if host:
        world.here, world.there = world.there, world.here
    world.lives()


CUT = [
    ("StreamLocalBindMask", "source.guest-stopped", "guest"),
    pytest.param("StreamLocalBindMask", "source.step-started.1", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage save", "source.step-started.2", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage agent", "target.after.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("what", "point", "left"), CUT)
def test_cut_off_on_its_way_to_another_host(ready: World, what: str, point: str, left: str) -> None:
    world = ready
    place, at_target = f"{world.there.name}:{FAR}", point.startswith("target")
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, place]
    with Points(world.there if at_target else world.here, point) as points:
        remote = far(**points.env) if at_target else far()
        env = {} if at_target else points.env
        argv[2:2] = ["--remote-command", remote]
        process = world.here.popen(argv, env=env)
        points.wait(point, lambda: process.poll() is None)
        host = world.there if at_target else world.here
        host.run(["pkill", "-KILL", "-f", what])
        points.open()
        process.communicate(timeout=PATIENCE)
    for host in (world.here, world.there):
        recovered = host.run(["entourage", "recover"], check=False, timeout=PATIENCE)
        assert recovered.returncode == 0, recovered
    assert world.there.path(FAR).exists() == (left == "save")
    if left == "guest":
        world.is_clean(world.there)
        assert not [name for name in names(world.here, "/run/entourage") if ".sock" in name]
    if left == "save":
        assert not world.answers()
        assert restore(world, FAR, host=world.there).status == 0
        world.here, world.there = world.there, world.here
    world.lives()


@pytest.mark.matrix
def test_its_source_is_gone_for_good(ready: World) -> None:
    """The save on another host stands, and nobody confirms that it was let go of."""
    world = ready
    place = f"{world.there.name}:{FAR}"
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, place]
    with Points(world.here, "source.go-sent") as points:
        process = world.here.popen(argv, env=points.env)
        points.wait("source.go-sent", lambda: process.poll() is None)
        world.here.run(["pkill", "-KILL", "-f", "entourage save"])
        points.open()
        process.communicate(timeout=PATIENCE)
    silent = world.there.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert silent.returncode == 5, silent
    refused = restore(world, FAR, host=world.there)
    assert refused.status == 1, str(refused)
    assert "is not settled here" in refused.stderr
    fenced = ["entourage", "recover", world.name, "--target-is-fenced"]
    assert world.there.run(fenced, check=False, timeout=PATIENCE).returncode == 0
    assert restore(world, FAR, host=world.there).status == 0
    assert world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE).returncode == 0
    world.here, world.there = world.there, world.here
    world.lives()
    world.is_clean(world.there)


@pytest.mark.matrix
def test_a_copy_of_the_directory(ready: World) -> None:
    world = ready
    assert save(world).status == 0
    world.here.run(["cp", "-a", DIR, OTHER])
    refused = restore(world, OTHER)
    assert refused.status == 2, str(refused)
    assert "--only-copy" in refused.stderr
    went_on(world, restore(world, OTHER, "--only-copy"))


@pytest.mark.matrix
def test_a_paused_guest_stays_paused(ready: World) -> None:
    world = ready
    assert save(world).status == 0
    done = restore(world, DIR, "--paused")
    assert done.status == 0, str(done)
    [shown] = json.loads(world.here.run(["entourage", "list", "--json"]).stdout)
    assert shown["state"] == "paused"
    assert save(world, OTHER).status == 0
    done = restore(world, OTHER)
    assert done.status == 0, str(done)
    [shown] = json.loads(world.here.run(["entourage", "list", "--json"]).stdout)
    assert shown["state"] == "paused"
    qmp(world, "cont")
    world.lives()


def test_what_has_changed_is_refused(ready: World) -> None:
    """A disk that was written to, memory with a bit flipped, rights that let others in."""
    world = ready
    assert save(world).status == 0
    here = world.here
    disk, memory = here.path(world.disks[0].path), here.path(f"{DIR}/memory")
    was = disk.stat()
    here.run(["touch", world.disks[0].path])
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "was written to" in refused.refusals["block/disk0"], str(refused)
    os.utime(disk, ns=(was.st_mtime_ns, was.st_mtime_ns))
    for at in (None, 0):  # which QEMU does not see, and which it takes for no stream of its own
        flip(memory, at)
        is_damaged(lambda *options: restore(world, DIR, "--only-copy", *options), "memory")
        flip(memory, at)
    memory.chmod(0o666)
    refused = restore(world)
    assert refused.status == 2, str(refused)
    assert "others than root may write" in refused.stderr
    memory.chmod(0o600)
    went_on(world, restore(world, DIR, "--only-copy"))


@pytest.mark.matrix
def test_all_at_shutdown_and_at_boot(ready: World) -> None:
    """As the unit does it: saved and restored; what cannot be saved is ended."""
    world = ready
    tool = ("--tool", str(world.tool()))
    done = run(world, "save", "--all", *tool, OTHER)
    assert done.status == 2, str(done)  # what it is on may not be mounted
    assert world.answers()
    world.here.run(["mkdir", OTHER])
    done = run(world, "save", "--all", "--at-shutdown", *tool, OTHER)
    assert done.status == 0, str(done)
    assert names(world.here, OTHER) == [world.name]
    is_gone(world, f"{OTHER}/{world.name}")
    done = run(world, "restore", "--all", *tool, OTHER)
    assert done.status == 0, str(done)
    assert names(world.here, OTHER) == []
    world.lives()
    assert run(world, "restore", "--all", *tool, OTHER).status == 0  # nothing is to be restored
    world.here.run(["mkdir", "-p", f"{OTHER}/{world.name}/mine"])
    done = run(world, "save", "--all", "--at-shutdown", "--timeout", "1s", *tool, OTHER)
    assert done.status == 4, str(done)
    assert "is there already" in reasons(done), str(done)
    assert not world.answers()
    world.restart()


@pytest.mark.matrix
def test_at_shutdown_without_a_place(ready: World) -> None:
    """What is not mounted holds nobody up, and nobody's power is cut while its guest runs."""
    world = ready
    done = run(world, "save", "--all", "--at-shutdown", "--timeout", "1s", OTHER)
    assert done.status == 4, str(done)
    assert f"no directory {OTHER}" in done.stderr, str(done)
    assert not world.answers()
    world.restart()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="it-ends"),
        pytest.param(
            ("--checkpoint", "--allow-tpm-rollback"), id="checkpoint", marks=pytest.mark.matrix
        ),
    ],
)
def test_no_room(ready: World, options: tuple[str, ...]) -> None:
    """Storage that fills up while memory is written: the guest goes on, and nothing is left.

    Its disks are on the same one: QEMU stops a guest that runs and has no room to write. It does so
    before what was saved is removed.
    """
    world = ready
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), *options]
    argv += ["--", world.name, DIR]
    done = save_without_room(world.here, argv, lambda: wants_room(world))
    assert done.status == 4, str(done)
    assert "no space left" in done.finished["message"].lower(), str(done)
    assert not partial(world), str(done)
    assert not world.here.path(DIR).exists()
    world.lives()
