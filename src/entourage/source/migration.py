"""One migration. ``Migration._story`` tells it, from TEST to the point of no return."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import uuid
from typing import Any, NoReturn

from entourage import messages, testpoints
from entourage.clock import Clock
from entourage.device_steps import DeviceSteps, source_controllers
from entourage.devices.base import check_options
from entourage.errors import (
    EntourageError,
    GuestEnded,
    HypervisorError,
    InDoubt,
    Interrupted,
    JournalError,
    MigrationFailed,
    Refused,
    ours,
)
from entourage.events import (
    Finished,
    GoSent,
    Listener,
    MigrationStarted,
    Outcome,
    RollbackStarted,
    Warned,
)
from entourage.handover.rules import Source
from entourage.handover.values import (
    Finding,
    Heard,
    Input,
    Message,
    MessageKind,
    Record,
    Role,
)
from entourage.journal.journal import Decision
from entourage.source.abort import at_fault, come_back, go_on
from entourage.source.ask import note_told
from entourage.source.blackout import Blackout
from entourage.source.checkpoint import Keeping, keep
from entourage.source.doings import DOINGS
from entourage.source.endings import guest_ended, raise_doubt
from entourage.source.opening import Opening, open_session
from entourage.source.outcome import await_outcome
from entourage.source.phases import Phases
from entourage.source.request import Request
from entourage.source.role import SourceSide
from entourage.source.session import Session
from entourage.source.tasks import first_cause, run_alongside
from entourage.steps import Step

_OUTCOMES: dict[type[EntourageError], Outcome] = {Refused: "refused"}


class Migration:
    """Moves one domain to another host, once.

    Args:
        request: What is asked for.
        listener: Takes every event, in order; must return at once.
        opening: What opens the session; see ``open_session``.
    """

    def __init__(
        self, request: Request, listener: Listener, opening: Opening = open_session
    ) -> None:
        self.id = uuid.uuid4().hex
        self._request = request
        self._open_session = opening
        self._settings = request.settings
        self._emit = listener if not testpoints.ON else testpoints.announced(listener)
        self._clock = Clock()
        # Without a live pre-copy all of memory is copied in the blackout: no budget fits that.
        budget = request.settings.migration.max_blackout if request.live else None
        self._blackout = Blackout(self._clock, self._emit, budget)
        self._session: Session | None = None
        self._side: SourceSide | None = None
        self._opening: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._interrupted = ""
        self._decided = asyncio.Event()
        self._broken: Exception | None = None
        self._keeping: Keeping | None = None
        self._runs_there = ""  # the target, once it has said that it runs the guest

    async def _story(self, session: Session, devices: DeviceSteps, side: SourceSide) -> None:
        """From TEST to just before GO. Whatever it raises, everything goes back."""
        request = self._request
        phases = Phases(
            session,
            devices,
            self._blackout,
            self._emit,
            live=request.live,
            paused=request.paused,
            examine=request.examine,
            dry_run=request.dry_run,
        )
        await phases.test()  # 0: every refusal at once; nothing is touched
        if request.dry_run:
            return
        await phases.arm(side)  # both journals know of it from here
        await phases.prepare()  # 1: disks are mirrored, the target's machine stands
        await phases.precopy()  # memory is copied, until the guest stops
        async with self._blackout.budget(devices.unfinished), asyncio.TaskGroup() as group:
            group.create_task(phases.transfer())  # 2 and 3, beside …
            group.create_task(phases.memory())  # … the last pages

    async def run(self) -> Finished:
        """Move the domain, or leave everything as it was.

        Returns:
            What was done; also the last event.

        Raises:
            Refused: TEST said no; nothing was touched.
            MigrationFailed: Rolled back: the domain runs on the source.
            GuestEnded: Rolled back, and the guest has ended by itself: the domain is off.
            InDoubt: Who may run it cannot be known from here.
            EntourageError: Nothing was begun: a wrong name, a busy domain, no way to the target.
        """
        request = self._request
        self._opening = asyncio.current_task()
        try:
            async with self._open_session(
                self.id,
                request.domain,
                request.route,
                connect=request.connect,
                settings=self._settings,
                options=request.options,
                tool=request.tool,
                emit=self._emit,
                clock=self._clock,
            ) as session:
                self._opening = None
                return await self._move(session)
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            interrupted = Interrupted(f"given up: {self._interrupted}; nothing was begun")
            self._finish("rolled-back", str(interrupted))
            raise interrupted from None
        except InDoubt as doubt:
            self._finish("in-doubt", str(doubt), self._runs_there)
            raise
        except GuestEnded as ended:
            self._finish("guest-ended", str(ended), problems=ended.recovery_errors)
            raise
        except MigrationFailed as failed:
            runs_on = self._session.source if self._session else ""
            self._finish("rolled-back", str(failed), runs_on, failed.recovery_errors)
            raise
        except EntourageError as error:
            self._finish(_OUTCOMES.get(type(error), "failed"), str(error))
            raise

    def interrupt(self, why: str) -> bool:
        """The user interrupts the migration.

        Returns:
            False where the hand-over has begun, or a checkpoint is kept: it completes.
        """
        if self._keeping and self._keeping.done:
            return False
        state = self._side.state if self._side else None
        if state and state.record not in {None, Record.BACK} and not state.live:
            return False
        first, self._interrupted = not self._interrupted, why
        task = self._task or self._opening
        if first and task:
            task.cancel()
        return True

    async def _move(self, session: Session) -> Finished:
        """Run the migration to one of its ends: rolled back, in doubt, or moved."""
        devices = DeviceSteps(
            source_controllers(
                session.machine.domain,
                self._settings,
                self._request.tool,
                saved=not DOINGS[session.kind].moves,
            ),
            session.here,
            self._settings.migration,
            self._emit,
            self._clock.now,
        )
        side = self._source_side(session, devices)
        self._session, self._side = session, side
        session.link.on(messages.HANDOVER, self._on_handover)
        session.link.on(messages.FAILED, self._on_failed)
        session.link.on(messages.RESUMED, self._on_resumed_there)
        self._tell_start(session)
        check_options(session.machine.domain, self._request.options)
        try:
            self._task = asyncio.create_task(self._watched(session, devices, side))
            await self._told(self._task)
        except EntourageError as error:
            if side.state.record is None:  # nothing was begun
                raise
            await self._go_back(session, side, error)
        if self._request.dry_run:
            return self._finish("can-move", runs_on=session.source)
        if self._request.options.checkpoint:
            self._keeping = Keeping(session, lambda: self._interrupted)
            problems = await keep(session, side, self._keeping)
            outcome = "clean-up-incomplete" if problems else "saved"
            return self._finish(outcome, runs_on=session.source, problems=problems)
        await self._hand_over(session, side)
        problems = (*side.problems, *map(str, session.failures_there.all))
        outcome = "clean-up-incomplete" if problems else "moved"
        return self._finish(outcome, runs_on=session.target, problems=problems)

    async def _hand_over(self, session: Session, side: SourceSide) -> None:
        """Send GO, once, and find out what the target decided, also after the link was lost."""
        try:
            await side.take(Input.READY)
        except HypervisorError as error:  # the deadman did not answer: GO was not said
            await self._go_back(session, side, error)
        except Exception as error:  # noqa: BLE001 - raised again, as a doubt
            raise_doubt(session, error, runs_there=bool(self._runs_there))
        now = self._clock.now()
        self._blackout.name("automatic resume is off", session.source, until=now)
        self._emit(GoSent(at=now))
        session.note("handed over; waiting for the target's word")
        try:
            if await await_outcome(session, side, self._decided, self._settings):
                with contextlib.suppress(JournalError):  # then `recover` tells it once more
                    note_told(session.journal, self.id)
        except InDoubt:
            raise
        except Exception as error:  # noqa: BLE001 - same
            raise_doubt(session, error, runs_there=bool(self._runs_there))
        if self._broken:
            raise_doubt(session, self._broken, runs_there=bool(self._runs_there))
        if Finding.CAME_BACK_DEAD in side.findings:
            raise await guest_ended(session, side.problems)
        if side.state.record is Record.BACK:
            told = session.failures_there.last
            problems = await go_on(session, hurries=lambda: bool(self._interrupted))
            raise MigrationFailed(
                told.message if told else "the target could not let the guest run",
                host=session.target,
                recovery_errors=[*side.problems, *problems],
            )

    async def _go_back(self, session: Session, side: SourceSide, error: EntourageError) -> NoReturn:
        """Roll back: resume the guest, recover devices and target, then raise what happened."""
        error = await at_fault(session, hurries=lambda: bool(self._interrupted)) or error
        self._emit(
            RollbackStarted(
                at=self._clock.now(), reason=error.message, device=error.device, host=error.host
            )
        )
        session.note("going back")
        problems = await come_back(session, side, hurries=lambda: bool(self._interrupted))
        if side.has_ended:
            raise await guest_ended(session, problems) from error
        problems += await go_on(session, hurries=lambda: bool(self._interrupted))
        kind = Interrupted if isinstance(error, Interrupted) else MigrationFailed
        raise kind(
            error.message,
            device=error.device,
            host=error.host,
            remedy=error.remedy,
            recovery_errors=problems,
        ) from error

    # What happens beside the story

    async def _watched(self, session: Session, devices: DeviceSteps, side: SourceSide) -> None:
        """Run the story; end it if the link is lost, or the machine at either end dies."""

        async def lost() -> NoReturn:
            raise await session.link.lost()

        async def died() -> NoReturn:
            reason = await session.machine.died()
            await side.take(Input.GUEST_DIED)
            if session.landed:  # all of it is on the target: the way is forward
                await asyncio.get_running_loop().create_future()
            raise HypervisorError(f"the domain's machine is gone: {reason}", host=session.source)

        async with run_alongside(lost(), died(), session.failures_there.first()):
            await self._story(session, devices, side)

    async def _told(self, task: asyncio.Task[None]) -> None:
        """Wait for the story; of several errors, raise the most likely cause."""
        try:
            if not self._interrupted:
                await task
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
        except EntourageError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again, as one that can be told
            raise ours(first_cause(error))  # noqa: B904 - it has a cause of its own
        if self._interrupted:  # also where it came after the last phase: GO was not said
            raise Interrupted(f"given up: {self._interrupted}")

    # What the target says

    async def _on_handover(self, said: messages.Say) -> None:
        message = Message(MessageKind(said.verb), said.migration)
        session, side = self._session, self._side
        if session is None or side is None:
            return
        if message == Message(MessageKind.LANDED, self.id):
            session.has_landed_there.set()
        if message == Message(MessageKind.RAN, self.id):
            self._runs_there = session.target
        if message == Message(MessageKind.NEVER, self.id) and side.state.live:
            # The story ends first: its devices must not be put back while they go on.
            given_up = f"{session.target} has given the migration up"
            session.failures_there.add(HypervisorError(given_up, host=session.target))
            return
        try:
            await side.take(Heard(message))
        except Exception as error:  # noqa: BLE001  # decided, and then the journal or the hypervisor failed
            self._broken = error
            self._decided.set()
        if side.state.record in {Record.BACK, Record.GONE}:
            self._decided.set()

    async def _on_failed(self, failure: messages.Failure) -> None:
        error = HypervisorError(
            failure.message,
            device=failure.device,
            host=self._request.route.host,
            remedy=failure.remedy,
        )
        if self._session:
            self._session.failures_there.add(error)

    async def _on_resumed_there(self, resumed: messages.Resumed) -> None:
        target = self._request.route.host
        if self._session and not DOINGS[self._session.kind].runs_there:
            return
        for name, moment in (
            ("hand-over is sent", resumed.heard),
            ("hand-over is recorded", resumed.decided),
            ("guest resumes", resumed.runs),
        ):
            self._blackout.name(name, target, until=self._clock.at_target(moment))
        self._blackout.end(self._clock.at_target(resumed.runs), target)

    # Small things

    def _source_side(self, session: Session, devices: DeviceSteps) -> SourceSide:
        return SourceSide(
            journal=session.journal,
            decision=Decision(
                migration=self.id,
                role=Role.SOURCE,
                domain=session.uuid,
                name=session.machine.domain.name,
                generation=max(
                    session.journal.next_generation(session.uuid), session.machine.generation + 1
                ),
                record=Record.ARMED,
                peer_host=session.target,
                peer_journal=session.welcome.journal,
                details=session.details(Step.TEST),
            ),
            state=Source(migration=self.id, peer_journal=session.welcome.journal),
            machine=session.machine,
            send=session.send,
            recover_first=devices.recover_first,
            recover=devices.recover,
            let_go=devices.let_go,
            on_resumed=lambda ns: self._blackout.end(self._clock.at(ns), session.source),
        )

    def _tell_start(self, session: Session) -> None:
        domain = session.machine.domain
        self._emit(
            MigrationStarted(
                at=self._clock.now(),
                migration=self.id,
                domain=domain.name,
                uuid=session.uuid,
                source=session.source,
                target=session.target,
                hypervisor=session.hypervisor,
                devices=tuple(device.label for device in domain.devices),
                time=dt.datetime.now().astimezone().isoformat(),
                kind=session.kind,
            )
        )
        if session.weaker:
            self._emit(Warned(at=self._clock.now(), message=session.weaker))

    def _finish(
        self,
        outcome: Outcome,
        message: str = "",
        runs_on: str = "",
        problems: tuple[str, ...] = (),
    ) -> Finished:
        now = self._clock.now()
        finished = Finished(
            at=now,
            outcome=outcome,
            seconds=now,
            runs_on=runs_on,
            blackout=self._blackout.seconds,
            message=message,
            problems=problems,
        )
        self._emit(finished)
        return finished
