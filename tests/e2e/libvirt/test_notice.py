"""QEMU's own guest agent, in the guest: it runs what is to be told, and sets the clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from lab.observer import Observer
from tests.e2e.libvirt.talking import NOTICE, TalkingWorld
from tests.e2e.run import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.hosts import Lab

DIR = "/srv/saved"


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[TalkingWorld]:
    with Observer.start(libvirt_lab) as seen:
        world = TalkingWorld.begin(libvirt_lab, seen, "talks", tpm=False, extra=NOTICE)
        assert isinstance(world, TalkingWorld)
        yield world
        world.end()


def test_it_is_told_before_and_after(world: TalkingWorld) -> None:
    source, target = world.here.name, world.there.name
    world.moved(world.migrate())
    world.told_so(f"before {target}", f"after {source}")


def test_it_says_no(world: TalkingWorld) -> None:
    world.guest.refuse()
    done = world.migrate()
    world.guest.refuse(refuses=False)
    world.stayed(done)
    assert "not now" in str(done)
    world.told_so(f"before {world.there.name}", f"back {world.there.name}")


@pytest.mark.matrix
def test_it_is_told_that_it_stays(world: TalkingWorld) -> None:
    world.stayed(world.migrate("--max-blackout", "1ms"))
    world.told_so(f"before {world.there.name}", f"back {world.there.name}")


def test_its_clock_goes_on_after_a_restore(world: TalkingWorld) -> None:
    """It stood still from its last moment here until its first one there."""
    world.here.run(["entourage", "save", world.name, DIR], timeout=PATIENCE)
    world.here.run(["entourage", "restore", DIR], timeout=PATIENCE)
    behind = time.time() - world.guest.clock()
    assert -1 <= behind < 2, behind
    world.lives()
    world.told_so(f"before {DIR}", f"after {DIR}")
    world.here.run(["rm", "-r", DIR])
