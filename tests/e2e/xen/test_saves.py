"""A domain of xl's is saved and restored: what xl, Entourage and the guest itself say of it."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest

from tests.e2e.points import Points
from tests.e2e.run import Run
from tests.e2e.xen.world import NAME, PATIENCE, XenWorld, forwarded

SAVE = f"/srv/{NAME}.save"


def ours(world: XenWorld, *words: str, env: tuple[str, ...] = ()) -> Run:
    """A command of ours on the host that the guest is on."""
    process = world.here.popen(["env", *env, "entourage", *words])
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return Run(process.returncode, stdout, stderr)


def watchers(world: XenWorld) -> str:
    """The processes of xl's that wait for the guest's reboot or crash; there is one guest."""
    show = "busybox ps -o pid,args | grep -E '[x]l (create|migrate-receive)'"
    return world.here.run(["sh", "-c", show], check=False).stdout


def save(world: XenWorld, *options: str) -> Run:
    # One of its disks is a device, and both of them are this test's own to keep.
    return ours(world, "save", "--json", "--disks=reference", *options, NAME, SAVE)


@pytest.fixture(autouse=True)
def removed(world: XenWorld) -> Generator[None]:
    """Leave no save behind, nor what became of one."""
    yield
    for host in (world.here, world.there):
        host.run(["sh", "-c", f"rm -rf {SAVE}*"])


def test_a_disk_that_is_a_device_cannot_be_kept(world: XenWorld) -> None:
    before = world.lives()
    run = ours(world, "save", "--json", NAME, SAVE)
    assert run.status == 3, run
    assert set(run.refusals) == {"block/xvdb"}
    world.stayed(before)


def test_it_is_saved_and_goes_on_where_it_was(world: XenWorld) -> None:
    before = world.lives()
    run = save(world)
    assert run.status == 0, run
    assert run.finished["outcome"] == "moved"
    assert world.domains(world.here) == {}
    stood = world.tick(world.here)
    told = json.loads(ours(world, "saved", "--json", SAVE).stdout)
    assert [(each["domain"], each["against"]) for each in told] == [(NAME, [])], told
    restored = ours(world, "restore", "--json", SAVE)
    assert restored.status == 0, restored
    now = world.lives(stood)
    assert now.boot == before.boot
    world.stayed(before)
    again = ours(world, "restore", "--json", SAVE)
    assert again.status == 3, again


def test_it_goes_on_after_a_checkpoint_and_goes_back_to_it(world: XenWorld) -> None:
    before = world.lives()
    assert watchers(world)
    run = save(world, "--checkpoint", "--paused")
    assert run.status == 0, run
    # It is Xen 4.17 here: seen, and told.
    assert not watchers(world)
    told = [event["message"] for event in run.events if event["event"] == "warned"]
    assert any(f"watches {NAME} no more" in message for message in told), run
    stood = world.tick(world.here)
    assert "p" in world.domains(world.here)[NAME]
    assert world.tick(world.here) == stood
    world.here.run(["xl", "unpause", NAME])
    world.stayed(before)
    later = world.lives()
    world.here.run(["xl", "destroy", NAME])
    back = ours(world, "restore", "--json", "--revert", SAVE)
    assert back.status == 0, back
    assert world.lives(before).boot == later.boot
    world.stayed(before)


def test_a_save_whose_engine_is_killed_leaves_the_guest_running(world: XenWorld) -> None:
    before = world.lives()
    with Points(world.here, "source.memory-landed") as points, forwarded(world.here, points.path):
        env = [f"{name}={value}" for name, value in points.env.items()]
        command = ["entourage", "save", "--json", "--disks=reference", NAME, SAVE]
        process = world.here.popen(["env", *env, *command])
        points.wait("source.memory-landed", lambda: process.poll() is None, PATIENCE)
        assert "s" in world.domains(world.here)[NAME]
        world.kill(world.here, "entourage save")
        points.open()
        process.kill()
        process.communicate(timeout=PATIENCE)
    world.lives(before)
    world.recover(world.here)
    assert world.here.run(["sh", "-c", f"ls -d {SAVE}*"], check=False).stdout == ""
    world.stayed(before)
