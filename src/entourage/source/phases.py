"""The scenes of one migration, from TEST to memory's landing: what the source does in each."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import NoReturn

from entourage import messages
from entourage.device_steps import Conductor
from entourage.errors import Refused
from entourage.events import CopyProgress, DeviceRefused, Listener, MemoryLanded, Warned
from entourage.handover.values import Input, Role
from entourage.hypervisors.base import Capability, Ticket
from entourage.source.blackout import Blackout
from entourage.source.convergence import at_first, press, throttles
from entourage.source.role import SourceSide
from entourage.source.session import Passage
from entourage.source.tasks import beside
from entourage.steps import Refusal, Step

_LOOK_EVERY = 0.5  # seconds between two looks at the copies, while the guest runs


class Scenes:
    """What happens in each scene; in which order, and beside what, is the migration's to say.

    Every scene may fail with an EntourageError, and cleans nothing up then.

    Args:
        way: All that is open.
        devices: The domain's devices, which go through their steps.
        blackout: Takes the time.
        emit: Takes the events.
        live: False stops the guest before its memory is copied.
    """

    def __init__(
        self,
        way: Passage,
        devices: Conductor,
        blackout: Blackout,
        emit: Listener,
        *,
        live: bool,
    ) -> None:
        self._way = way
        self._devices = devices
        self._blackout = blackout
        self._emit = emit
        self._clock = way.clock
        self._settings = way.settings
        self._live = live

    async def test(self) -> None:
        """Ask everything at once whether it can move; nothing is touched."""
        way, devices = self._way, self._devices
        way.blockers = tuple(await way.machine.blockers())
        domain, facts = way.machine.domain, await way.machine.facts()
        labels = {device.label for device in domain.devices}
        found = [refusal for refusal in way.blockers if refusal.device not in labels]
        if not self._live and Capability.NON_LIVE not in way.machine.capabilities:
            reason = "its hypervisor moves a domain only while it runs"
            found.append(Refusal("domain", way.source, reason, "leave out --non-live"))
        # The domain first: the agent makes the devices' other halves when it hears of it.
        about = messages.TestDomain(domain=domain, facts=dict(facts))
        found += await way.link.call(messages.TEST, about, list[Refusal])
        found += await devices.test()
        for refusal in found:
            self._emit(
                DeviceRefused(
                    at=self._clock.now(),
                    device=refusal.device,
                    host=refusal.host,
                    reason=refusal.reason,
                    remedy=refusal.remedy,
                )
            )
        if found:
            raise Refused(found)

    async def arm(self, side: SourceSide) -> None:
        """From here a crash of either host is one that ``entourage recover`` knows about."""
        way, devices = self._way, self._devices
        plane = way.plane()
        if plane.secret is None:
            text = "memory and disks travel unencrypted"
            self._emit(Warned(at=self._clock.now(), message=text))
        opening = messages.Open(
            generation=side.decision.generation,
            domain=devices.as_there(way.machine.domain),
            plane=plane,
            source_journal=way.journal.uuid,
            paused=not way.machine.was_running,
        )
        details = way.details(Step.TEST, devices.controllers)
        side.decision = dataclasses.replace(side.decision, details=details)
        await side.take(Input.BEGIN)
        opened = await way.link.call(messages.OPEN, opening, messages.Opened)
        stages = self._settings.migration.convergence
        await way.machine.arm(
            plane,
            downtime_limit=at_first(stages),
            throttle=throttles(stages),
            lock=way.lock.fileno(),
            offers=opened.offers,
        )
        if why := way.machine.in_the_clear:
            text = f"memory and disks travel unencrypted: {why}"
            self._emit(Warned(at=self._clock.now(), message=text))

    async def prepare(self) -> None:
        """Disks are mirrored, the target's machine is built and stands."""
        way, devices = self._way, self._devices
        way.note("PREPARE")

        async def build() -> None:
            plan = await way.machine.plan(devices.as_there(way.machine.domain))
            await way.link.call(messages.BUILD, plan, type(None))

        async with beside(self._show_copies()):
            await devices.prepare(build)
        way.journal.detail(
            way.migration, Role.SOURCE, way.details(Step.PREPARE, devices.controllers)
        )

    async def precopy(self) -> None:
        """Copy memory until the guest stops."""
        way = self._way
        way.note("pre-copy")
        way.journal.warm()  # one sync here, so that there is none of the source's in the blackout
        ticket = await way.link.call(messages.LISTEN, None, Ticket)
        async with beside(self._show_copies()):  # of disks that the carrier copies
            await way.machine.start(ticket, live=self._live)
        stages = self._settings.migration.convergence
        async with beside(press(way.machine, stages, self._emit, self._clock.now)):
            self._blackout.begin(await way.machine.stopped())

    async def transfer(self) -> None:
        """All devices go through TRANSFER and SYNC."""
        way, devices = self._way, self._devices
        self._blackout.name("the stop is heard of", way.source, until=self._clock.now())
        with self._blackout.span("devices: TRANSFER", way.source):
            await devices.transfer()
        with self._blackout.span("devices: SYNC", way.source):
            await devices.sync()

    async def memory(self) -> None:
        """The disks settle, the last pages follow, and both sides say that all is there."""
        way, devices = self._way, self._devices
        since = self._clock.now()
        if flush := await way.machine.held():
            self._blackout.name(flush, way.source, until=self._clock.now(), since=since)
        with self._blackout.span("disks settle", way.source):
            await devices.settled()
        with self._blackout.span("last memory", way.source):
            await way.machine.proceed()
            async with asyncio.TaskGroup() as group:
                last_words = group.create_task(way.machine.landed())
                group.create_task(way.landed_there())
        if data := last_words.result():
            way.link.tell(messages.LAST_WORDS, messages.LastWords(data=data))
        way.landed = True
        self._emit(MemoryLanded(at=self._clock.now()))

    async def _show_copies(self) -> NoReturn:
        devices = self._devices
        while True:
            for label, done, total in devices.progress():
                self._emit(CopyProgress(at=self._clock.now(), what=label, done=done, total=total))
            await asyncio.sleep(_LOOK_EVERY)
