"""The phases of one migration, from TEST to memory's landing: what the source does in each."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import NoReturn

from entourage import messages
from entourage.device_steps import DeviceSteps
from entourage.errors import Refused
from entourage.events import CopyProgress, DeviceRefused, Listener, MemoryLanded, Warned
from entourage.handover.values import Input, Role
from entourage.source.blackout import Blackout
from entourage.source.convergence import at_first, press, throttles
from entourage.source.copies import Copies
from entourage.source.doings import DOINGS
from entourage.source.plan import MovePlan
from entourage.source.role import SourceSide
from entourage.source.session import Session
from entourage.source.tasks import run_alongside
from entourage.steps import Refusal, Step

_LOOK_EVERY = 0.5  # seconds between two looks at the copies, while the guest runs


class Phases:
    """What the source does in each phase. Order and concurrency are decided in ``Migration``.

    Every phase may fail with an EntourageError, and cleans nothing up then.

    Args:
        session: All that is open.
        devices: The domain's devices, which go through their steps.
        blackout: Takes the time.
        emit: Takes the events.
        live: False stops the guest before its memory is copied.
        paused: The guest is not to run where it goes, whatever it does here.
        examine: TEST sees also what takes long to be seen.
        dry_run: Nothing follows TEST.
    """

    def __init__(
        self,
        session: Session,
        devices: DeviceSteps,
        blackout: Blackout,
        emit: Listener,
        *,
        live: bool,
        paused: bool = False,
        examine: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._session = session
        self._devices = devices
        self._blackout = blackout
        self._emit = emit
        self._clock = session.clock
        self._settings = session.settings
        self._live = live
        self._paused = paused
        self._examine = examine
        self._dry_run = dry_run
        self._copies = Copies(emit, session.progress)

    async def test(self) -> None:
        """Ask everything at once whether it can move; nothing is touched."""
        session, devices = self._session, self._devices
        told = [*await session.machine.blockers()]
        if all(each.only_warns for each in told):
            if not self._dry_run:
                session.machine.begin_to_examine()
            if self._dry_run or self._examine:
                told += await session.machine.examine()
        session.blockers = tuple(each for each in told if not each.only_warns)
        warnings = [each for each in told if each.only_warns]
        domain, facts = session.machine.domain, dict(await session.machine.facts())
        if not self._settings.migration.tls and DOINGS[session.kind].moves:
            facts["encrypted"] = "no"
        labels = {device.label for device in domain.devices}
        found = [refusal for refusal in session.blockers if refusal.device not in labels]
        if not self._live and not session.machine.non_live:
            reason = "its hypervisor moves a domain only while it runs"
            found.append(Refusal("domain", session.source, reason, "leave out --non-live"))
        found += session.sockets_too_long()
        # The domain first: the agent makes the devices' other halves when it hears of it.
        there = domain.with_paths(session.options.disks)
        about = messages.TestDomain(domain=there, facts=dict(facts))
        for answer in await session.link.call(messages.TEST, about):
            (warnings if answer.only_warns else found).append(answer)
        for warning in warnings:
            self._warn(warning)
        found += await devices.test()
        plan = MovePlan.of(session, devices, found)
        found += await plan.prove_way()
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
        self._emit(plan.event(self._clock.now()))
        if found:
            raise Refused(found)

    def _warn(self, about: Refusal) -> None:
        text = f"{about.reason} ({about.remedy})" if about.remedy else about.reason
        device = "" if about.device == "domain" else about.device
        at = self._clock.now()
        self._emit(Warned(at=at, message=text, device=device, host=about.host))

    async def arm(self, side: SourceSide) -> None:
        """Write the migration into both journals: from here ``recover`` knows about it."""
        session, devices = self._session, self._devices
        paused = self._paused or not session.machine.was_running
        plane = session.plane(side.decision.generation, paused=paused)
        if plane.secret is None and plane.local is None:
            text = "memory and disks travel unencrypted"
            self._emit(Warned(at=self._clock.now(), message=text))
        opening = messages.Open(
            generation=side.decision.generation,
            domain=devices.as_there(session.machine.domain),
            plane=plane,
            source_journal=session.journal.uuid,
            paused=paused,
        )
        details = session.details(Step.TEST, devices.controllers)
        side.decision = dataclasses.replace(side.decision, details=details)
        await side.take(Input.BEGIN)
        opened = await session.link.call(messages.OPEN, opening)
        await session.forward(plane)
        stages = self._settings.migration.convergence
        await session.machine.arm(
            plane,
            downtime_limit=at_first(stages),
            throttle=throttles(stages),
            lock=session.lock.fileno(),
            budget=self._blackout.limit,
            offers=opened.offers,
        )
        if why := session.machine.in_the_clear:
            text = f"memory and disks travel unencrypted: {why}"
            self._emit(Warned(at=self._clock.now(), message=text))

    async def prepare(self) -> None:
        """Mirror the disks, and have the target build its machine, paused."""
        session, devices = self._session, self._devices
        session.progress("preparing the devices")

        async def build() -> None:
            plan = await session.machine.plan(devices.as_there(session.machine.domain))
            await session.link.call(messages.BUILD, plan)

        async with run_alongside(self._show_copies()):
            await devices.prepare(build)
        session.journal.detail(
            session.migration, Role.SOURCE, session.details(Step.PREPARE, devices.controllers)
        )

    async def precopy(self) -> None:
        """Copy memory until the guest stops."""
        session = self._session
        session.progress("copying memory")
        session.journal.warm()  # one sync here, so that the source has none in the blackout
        ticket = await session.link.call(messages.LISTEN, None)
        async with run_alongside(self._show_copies()):  # of disks that the carrier copies
            await session.machine.start(ticket, live=self._live)
        stages = self._settings.migration.convergence
        async with run_alongside(
            press(session.machine, stages, self._emit, self._copies.seen, self._clock.now)
        ):
            self._blackout.begin(await session.machine.stopped())

    async def transfer(self) -> None:
        """All devices go through TRANSFER and SYNC."""
        session, devices = self._session, self._devices
        self._blackout.name("stop is noticed", session.source, until=self._clock.now())
        with self._blackout.span("devices: TRANSFER", session.source):
            await devices.transfer()
        with self._blackout.span("devices: SYNC", session.source):
            await devices.sync()
        session.synced_at = time.monotonic_ns()

    async def memory(self) -> None:
        """Complete the disk copies, send the last pages, wait until both sides have it all."""
        session, devices = self._session, self._devices
        since = self._clock.now()
        async with self._memory_shown():
            flush = await session.machine.pre_switchover()
        if flush:
            self._blackout.name(flush, session.source, until=self._clock.now(), since=since)
        with self._blackout.span("disk copies complete", session.source):
            await devices.settled()
        with self._blackout.span("last memory", session.source):
            await session.machine.continue_switchover()
            if late := session.machine.before_memory:
                session.link.tell(messages.SWITCHOVER_COOKIE, messages.SwitchoverCookie(data=late))
            async with self._memory_shown(), asyncio.TaskGroup() as group:
                cookie = group.create_task(session.machine.landed())
                group.create_task(session.landed_there())
        if data := cookie.result():
            session.link.tell(messages.SWITCHOVER_COOKIE, messages.SwitchoverCookie(data=data))
        session.landed = True
        self._emit(MemoryLanded(at=self._clock.now()))

    def _memory_shown(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Where the guest stands still for as long as all of memory takes, show how far that is."""
        if DOINGS[self._session.kind].moves:
            return contextlib.nullcontext()
        return run_alongside(self._show_memory())

    async def _show_memory(self) -> NoReturn:
        """Show how far memory is where its guest stands still until all of it is there."""
        while True:
            memory = await self._session.machine.progress()
            done = max(0, memory.total - memory.remaining)
            self._copies.seen(
                CopyProgress(at=self._clock.now(), what="memory", done=done, total=memory.total)
            )
            await asyncio.sleep(_LOOK_EVERY)

    async def _show_copies(self) -> NoReturn:
        devices = self._devices
        while True:
            for label, done, total in devices.progress():
                self._copies.seen(
                    CopyProgress(at=self._clock.now(), what=label, done=done, total=total)
                )
            await asyncio.sleep(_LOOK_EVERY)
