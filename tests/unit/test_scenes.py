"""What a migration asks of its hypervisor, and what the timeline calls it; all else is a fake."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entourage import words
from entourage.blackout import Blackout
from entourage.conductor import Conductor
from entourage.domain import Domain
from entourage.errors import Refused
from entourage.events import AnyEvent, DeviceRefused, SpanDone
from entourage.hypervisors.base import Verb
from entourage.hypervisors.libvirt.machine import VERBS as LIBVIRT
from entourage.hypervisors.qemu.machine import VERBS as QEMU
from entourage.hypervisors.xen.machine import VERBS as XEN
from entourage.passage import Clock
from entourage.scenes import Scenes
from entourage.settings.model import Settings


class Machine:
    """A machine that is asked what it is, and stops at once."""

    domain = Domain(name="web1", memory=1 << 28)

    def __init__(self, verbs: frozenset[Verb], flush: str = "") -> None:
        self.verbs = verbs
        self._flush = flush

    async def blockers(self) -> list[Any]:
        return []

    async def facts(self) -> dict[str, str]:
        return {}

    async def held(self) -> str:
        return self._flush

    async def proceed(self) -> None:
        pass

    async def landed(self) -> bytes:
        return b""


class Link:
    """A link to a target that takes everything."""

    async def call(self, verb: str, body: Any, reply: Any) -> Any:
        assert verb == words.TEST
        return []


def scenes(machine: Machine, *, live: bool = True) -> tuple[Scenes, list[AnyEvent]]:
    events: list[AnyEvent] = []

    async def landed_there() -> None:
        pass

    clock = Clock()
    way = SimpleNamespace(
        machine=machine,
        link=Link(),
        clock=clock,
        settings=Settings(),
        source="a",
        target="b",
        blockers=(),
        landed=False,
        landed_there=landed_there,
    )
    conductor = Conductor((), cast("Any", None), Settings().migration, lambda _: None, lambda: 0.0)
    asyncio.run(conductor.transfer())
    blackout = Blackout(clock, events.append, None)
    return Scenes(cast("Any", way), conductor, blackout, events.append, live=live), events


@pytest.mark.parametrize("verbs", [QEMU, LIBVIRT])
def test_a_guest_may_be_stopped_first_where_its_hypervisor_can(verbs: frozenset[Verb]) -> None:
    story, events = scenes(Machine(verbs), live=False)
    asyncio.run(story.test())
    assert not [event for event in events if isinstance(event, DeviceRefused)]


def test_non_live_is_refused_at_test_under_xen() -> None:
    story, events = scenes(Machine(XEN), live=False)
    with pytest.raises(Refused):
        asyncio.run(story.test())
    [refusal] = [event for event in events if isinstance(event, DeviceRefused)]
    assert (refusal.device, refusal.host, refusal.remedy) == ("domain", "a", "leave out --non-live")
    story, events = scenes(Machine(XEN))
    asyncio.run(story.test())


@pytest.mark.parametrize(
    ("flush", "spans"),
    [
        ("QEMU flushes disks", ["QEMU flushes disks", "disks settle", "last memory"]),
        ("", ["disks settle", "last memory"]),
    ],
)
def test_the_timeline_names_a_flush_only_where_there_is_one(flush: str, spans: list[str]) -> None:
    story, events = scenes(Machine(QEMU, flush))
    asyncio.run(story.memory())
    assert [event.name for event in events if isinstance(event, SpanDone)] == spans
