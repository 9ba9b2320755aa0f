"""Another machine is made of a save, while the first one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from lab.guest import disk_sequences
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import KEPT, killed_at, run
from tests.e2e.world import World

DIR = "/srv/as"
OTHER = "other"
DISK = "/srv/other.raw"
BRIDGE = "apart"
WHERE = ("--net", f"br0={BRIDGE}", "--disk", f"disk0={DISK}")


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest with one disk and no TPM; its host has a bridge that nobody is on."""
    lab["a"].run(["sh", "-c", f"ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up"])
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen, "saved4", disks=("/srv/s4.raw",), tpm=False)
        world.kept = (*world.kept, *KEPT, f"{DIR}*", DISK)  # type: ignore[misc] - of this one
        yield world
        world.end()
        for host in (world.here, world.there):
            host.run(["sh", "-c", f"rm -rf {' '.join(KEPT)}"])
    lab["a"].run(["ip", "link", "delete", BRIDGE])


@pytest.fixture
def ready(world: World) -> Generator[World]:
    """The same, with a checkpoint of it."""
    world.is_as_before()
    done = run(world, "save", "--checkpoint", "--", world.name, DIR)
    assert done.status == 0, str(done)
    yield world
    world.here.run(["entourage", "stop", "--force", OTHER], check=False, timeout=PATIENCE)
    state = [f"/var/lib/entourage/domains/{one['uuid']}" for one in known(world) if is_other(one)]
    world.here.run(["rm", "-rf", DIR, DISK, *state])


def known(world: World) -> list[dict[str, Any]]:
    return json.loads(world.here.run(["entourage", "list", "--all", "--json"]).stdout)


def is_other(domain: dict[str, Any]) -> bool:
    return domain["name"] == OTHER


def restore(world: World, *options: str) -> Run:
    return run(world, "restore", "--as", OTHER, *WHERE, *options, "--", DIR)


def shown(world: World, name: str) -> dict[str, Any]:
    return json.loads(world.here.run(["entourage", "show", "--json", name]).stdout)


def writes(path: Path, since: int) -> int:
    """Wait until more is written to a disk; the number of the last that was."""
    deadline = time.monotonic() + PATIENCE
    while (last := disk_sequences(path).last) <= since:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return last


def test_both_go_on(ready: World) -> None:
    """Each on its own disk, from what it was when it was saved, and with MACs of its own."""
    world = ready
    held = disk_sequences(world.here.path(f"{DIR}/disks/disk0"))
    done = restore(world)
    assert done.status == 0, str(done)
    writes(world.here.path(DISK), held.last)
    world.lives()
    first, other = shown(world, world.name), shown(world, OTHER)
    assert first["uuid"] != other["uuid"]
    assert first["net"][0]["mac"] != other["net"][0]["mac"]
    assert other["net"][0]["bridge"] == BRIDGE
    assert not world.here.path(f"{DIR}/claim.json").exists()
    assert disk_sequences(world.here.path(DISK)).missing == ()
    again = restore(world)
    assert again.status == 3, str(again)  # of that name there is one now


@pytest.mark.matrix
def test_what_is_the_first_ones_is_refused(ready: World) -> None:
    world = ready
    for options in (("--net", f"br0={BRIDGE}"), ("--disk", f"disk0={DISK}")):
        done = run(world, "restore", "--as", OTHER, *options, "--", DIR)
        assert done.status == 2, str(done)
    assert not world.here.path(DISK).exists()
    world.is_as_before()


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("victim", "point"),
    [
        ("entourage", "source.step-started.2"),
        ("agent", "target.before.flush-go"),
        ("entourage", "source.go-sent"),
    ],
)
def test_killed(ready: World, victim: str, point: str) -> None:
    """The first one goes on; of the other there is nothing, or all, once it is recovered."""
    world = ready
    command = ["entourage", "restore", "--json", "--as", OTHER, *WHERE, "--", DIR]
    killed_at(world, command, victim, point)
    recovered = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert recovered.returncode == 0, recovered
    there = [one["state"] for one in known(world) if is_other(one)]
    assert there == (["running"] if point == "source.go-sent" else []), str(there)
    assert world.here.path(DISK).exists() == bool(there)
    world.lives()
    if not there:
        world.is_as_before()  # nor is anything else left of it
