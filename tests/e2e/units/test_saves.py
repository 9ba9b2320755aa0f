"""A host with entourage-saves.service is booted again: its machines go on where they were."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lab.observer import Observer
from tests.e2e.run import PATIENCE
from tests.e2e.units.conftest import enable
from tests.e2e.world import World

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.host import Host
    from lab.hosts import Lab

UNIT = "entourage-saves"
PLACE = "/var/lib/entourage/shutdown"


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest on a host that saves what runs when it shuts down."""
    with Observer.start(lab) as seen:
        for host in (lab["a"], lab["b"]):
            enable(host, UNIT)
        world = World.begin(lab, seen, "kept1", disks=["/srv/kept.raw"])
        yield world
        for host in (lab["a"], lab["b"]):  # nothing is to be saved any more
            host.run(["systemctl", "disable", UNIT])
        world.here.run(["entourage", "stop", "--force", world.name], timeout=PATIENCE)


def said(host: Host) -> str:
    """What the unit has said since its host was booted."""
    return host.run(["journalctl", "--no-pager", "-b", "-u", UNIT]).stdout


def reboot(world: World) -> None:
    """Boot the guest's host again, as its administrator does."""
    world.here.run(["systemctl", "reboot"])
    world.here.await_off(PATIENCE)
    assert not world.answers()
    world.here.power_on()


def is_there_again(world: World) -> None:
    """The same guest runs, nothing has failed, and nothing is left of its save."""
    world.lives()
    assert world.here.run(["systemctl", "is-system-running"], check=False).stdout == "running\n"
    assert list(world.here.path(PLACE).iterdir()) == [], said(world.here)


def cgroup(world: World) -> str:
    """Where systemd has the guest's QEMU."""
    known = json.loads(world.here.run(["entourage", "list", "--json"]).stdout)
    [pid] = [one["pid"] for one in known if one["name"] == world.name]
    return world.here.run(["cat", f"/proc/{pid}/cgroup"]).stdout.splitlines()[-1]


def test_a_host_that_is_booted_again(world: World) -> None:
    """Twice: a guest that was restored by the unit is no process of the unit's."""
    for _ in range(2):
        reboot(world)
        is_there_again(world)
        assert cgroup(world).endswith(".scope"), cgroup(world)


@pytest.mark.matrix
def test_a_guest_that_came_through_ssh(world: World) -> None:
    """It does not end with the session of sshd that it came by, nor before it is saved."""
    world.here, world.there = world.there, world.here
    moved = world.there.run(
        ["entourage", "migrate", world.name, world.here.name], timeout=PATIENCE, check=False
    )
    assert moved.returncode == 0, moved
    world.here.run(["systemctl", "restart", "lab-sshd"])
    world.lives()
    reboot(world)
    is_there_again(world)


@pytest.mark.matrix
def test_the_unit_is_restarted(world: World) -> None:
    """Its host goes on: the guest is saved, and restored."""
    world.here.run(["systemctl", "restart", UNIT], timeout=PATIENCE)
    is_there_again(world)


@pytest.mark.matrix
def test_a_save_that_fails_while_the_host_goes_on(world: World) -> None:
    """The guest runs on, and does not end with the unit."""
    place, away = world.here.path(PLACE), world.here.path(f"{PLACE}.away")
    place.rename(away)
    place.touch()
    world.here.run(["systemctl", "stop", UNIT], timeout=PATIENCE)
    world.lives()
    assert f"{PLACE}" in said(world.here)
    place.unlink()
    away.rename(place)
    world.here.run(["systemctl", "reset-failed", UNIT], check=False)
    world.here.run(["systemctl", "start", UNIT], timeout=PATIENCE)
    world.lives()
