"""The guest of a stock ``virsh migrate`` is told of it by QEMU's own guest agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.observer import Observer
from tests.e2e.attend.world import DEVICES, Attend, AttendWorld
from tests.e2e.libvirt.talking import NOTICE, TalkingWorld

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.hosts import Lab


class TalkingAttend(TalkingWorld, AttendWorld):
    """An attended domain whose guest has the agent."""


@pytest.fixture(scope="module")
def module_world(attend_lab: Lab, daemons: dict[str, Attend]) -> Generator[TalkingAttend]:
    assert daemons
    with Observer.start(attend_lab) as seen:
        world = TalkingAttend.begin(attend_lab, seen, "talks", tpm=False, extra=DEVICES + NOTICE)
        assert isinstance(world, TalkingAttend)
        yield world
        world.end()


def test_it_is_told_before_and_after(world: TalkingAttend) -> None:
    world.tool()
    source, target = world.here.name, world.there.name
    world.came(world.virsh())
    world.told_so(f"before {target}", f"after {source}")


def test_it_says_no(world: TalkingAttend) -> None:
    """Then it is virsh's error, and nothing has moved."""
    world.tool()
    world.guest.refuse()
    done = world.virsh()
    world.guest.refuse(refuses=False)
    world.came_back(done)
    assert "not now" in done.stderr, world.told(done)
    world.told_so(f"before {world.there.name}", f"back {world.there.name}")
