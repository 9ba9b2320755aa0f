"""What a migration asks of its hypervisor, and what the timeline calls it; all else is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from entourage import messages
from entourage.clock import Clock
from entourage.device_steps import DeviceSteps
from entourage.devices.base import AnyController, Options
from entourage.domain import Domain
from entourage.errors import Refused
from entourage.events import AnyEvent, DeviceRefused, SpanDone, Warned
from entourage.handover.values import Input, Record, Role
from entourage.hypervisors.base import DataPlane
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from entourage.hypervisors.qemu.machine import QemuMachine
from entourage.hypervisors.xen.machine import XenMachine
from entourage.journal.journal import Decision
from entourage.settings.model import Settings
from entourage.source.blackout import Blackout
from entourage.source.phases import Phases
from entourage.steps import Refusal, Step


class Machine:
    """A machine that is asked what it is, and stops at once."""

    domain = Domain(name="web1", memory=1 << 28)
    was_running = True
    in_the_clear = ""
    definition = None

    def __init__(
        self, *, non_live: bool = True, flush: str = "", blockers: Sequence[Refusal] = ()
    ) -> None:
        self.non_live = non_live
        self._blockers = list(blockers)
        self._flush = flush
        self.examined: list[str] = []

    def begin_to_examine(self) -> None:
        self.examined.append("begun")

    async def examine(self) -> list[Any]:
        self.examined.append("awaited")
        return []

    async def blockers(self) -> list[Any]:
        return self._blockers

    async def facts(self) -> dict[str, str]:
        return {}

    def encrypts(self, _offers: Any, *, wanted: bool) -> bool:
        return wanted

    async def arm(self, plane: Any, **_: Any) -> None:
        pass

    async def pre_switchover(self) -> str:
        return self._flush

    async def continue_switchover(self) -> None:
        pass

    async def landed(self) -> bytes:
        return b""

    before_memory = b""


class Link:
    """A link to a target that takes everything."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, kind: Any, body: Any) -> None:
        self.told.append((kind, body))

    async def call(self, kind: Any, body: Any) -> Any:
        assert kind in (messages.TEST, messages.OPEN)
        return [] if kind is messages.TEST else messages.Opened()


def plane(_generation: int, *, paused: bool) -> DataPlane:
    assert not paused
    return DataPlane(address="", ports=(1, 2), secret=None)


def phases(
    machine: Machine, *, live: bool = True, examine: bool = False, dry_run: bool = False
) -> tuple[Phases, list[AnyEvent]]:
    events: list[AnyEvent] = []

    async def landed_there() -> None:
        pass

    def details(step: Step, controllers: Sequence[AnyController]) -> dict[str, Any]:
        return {"step": step, "of": len(controllers)}

    clock = Clock()
    noted: list[str] = []
    session = SimpleNamespace(
        kind="move",
        machine=machine,
        link=Link(),
        clock=clock,
        settings=Settings(),
        options=Options(),
        source="a",
        target="b",
        blockers=(),
        is_agentless=True,
        note=noted.append,
        progress=noted.append,
        welcome=SimpleNamespace(address=""),
        address="",
        landed=False,
        landed_there=landed_there,
        journal=SimpleNamespace(uuid="A"),
        lock=SimpleNamespace(fileno=lambda: 0),
        plane=plane,
        sockets_too_long=list,
        forward=AsyncMock(),
        details=details,
    )
    device_steps = DeviceSteps(
        (), cast("Any", None), Settings().migration, lambda _: None, lambda: 0.0
    )
    asyncio.run(device_steps.transfer())
    blackout = Blackout(clock, events.append, None)
    story = Phases(
        cast("Any", session),
        device_steps,
        blackout,
        events.append,
        live=live,
        examine=examine,
        dry_run=dry_run,
    )
    return story, events


@pytest.mark.parametrize("backend", [QemuMachine, LibvirtMachine])
def test_a_guest_may_be_stopped_first_where_its_hypervisor_can(backend: Any) -> None:
    story, events = phases(Machine(non_live=backend.non_live), live=False)
    asyncio.run(story.test())
    assert not [event for event in events if isinstance(event, DeviceRefused)]


def test_what_only_warns_stops_nothing_and_is_told() -> None:
    about = Refusal("domain", "a", "its definition differs", "virsh dumpxml", only_warns=True)
    story, events = phases(Machine(blockers=[about]))
    asyncio.run(story.test())
    [said] = [event for event in events if isinstance(event, Warned)]
    assert (said.message, said.host) == ("its definition differs (virsh dumpxml)", "a")
    assert not [event for event in events if isinstance(event, DeviceRefused)]


@pytest.mark.parametrize(
    ("how", "examined"),
    [
        ({}, ["begun"]),
        ({"examine": True}, ["begun", "awaited"]),
        ({"dry_run": True}, ["awaited"]),  # nobody waits for it to run: it stands back for guests
    ],
)
def test_what_takes_long_to_see_is_begun_before_the_target_is_asked(
    how: dict[str, bool], examined: list[str]
) -> None:
    warned = Refusal("domain", "a", "its definition differs", only_warns=True)
    machine = Machine(blockers=[warned])
    asyncio.run(phases(machine, **how)[0].test())
    assert machine.examined == examined


def test_what_is_refused_is_not_read() -> None:
    machine = Machine(blockers=[Refusal("domain", "a", "it is restored by another host", "wait")])
    with pytest.raises(Refused):
        asyncio.run(phases(machine, examine=True)[0].test())
    assert machine.examined == []


def test_non_live_is_refused_at_test_under_xen() -> None:
    story, events = phases(Machine(non_live=XenMachine.non_live), live=False)
    with pytest.raises(Refused):
        asyncio.run(story.test())
    [refusal] = [event for event in events if isinstance(event, DeviceRefused)]
    assert (refusal.device, refusal.host, refusal.remedy) == ("domain", "a", "leave out --non-live")
    story, events = phases(Machine(non_live=XenMachine.non_live))
    asyncio.run(story.test())


@pytest.mark.parametrize(
    ("flush", "spans"),
    [
        ("QEMU flushes disks", ["QEMU flushes disks", "disk copies complete", "last memory"]),
        ("", ["disk copies complete", "last memory"]),
    ],
)
def test_the_timeline_names_a_flush_only_where_there_is_one(flush: str, spans: list[str]) -> None:
    story, events = phases(Machine(flush=flush))
    asyncio.run(story.memory())
    assert [event.name for event in events if isinstance(event, SpanDone)] == spans


def test_what_the_target_must_know_before_memory_is_told_first() -> None:
    """It waits for that as it has all of memory."""
    machine = Machine()
    machine.before_memory = b"its XML"
    story, _ = phases(machine)
    link = cast("Any", story)._session.link

    async def landed() -> bytes:
        assert link.told == [(messages.SWITCHOVER_COOKIE, said)]
        return b""

    said = messages.SwitchoverCookie(data=b"its XML")
    machine.landed = landed
    asyncio.run(story.memory())
    assert link.told == [(messages.SWITCHOVER_COOKIE, said)]


def test_what_devices_must_know_after_a_crash_is_written_down_before_anything_is_done() -> None:
    story, _ = phases(Machine(non_live=XenMachine.non_live))
    written: list[Any] = []

    async def take(event: Input) -> None:
        written.append((event, side.decision.details))

    decision = Decision(
        migration="m-1",
        role=Role.SOURCE,
        domain="u",
        name="web1",
        generation=1,
        record=Record.ARMED,
    )
    side = cast("Any", SimpleNamespace(decision=decision, take=take))
    asyncio.run(story.arm(side))
    assert written == [(Input.BEGIN, {"step": Step.TEST, "of": 0})]
