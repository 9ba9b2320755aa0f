"""The target's half of the hand-over: executes what ``decide_target`` decides.

Used by the agent while its link lives, and by ``entourage recover`` after a crash.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from entourage.clock import within
from entourage.devices.base import AnyController, There
from entourage.errors import (
    EntourageError,
    HypervisorError,
    InDoubt,
    JournalError,
    plain_words,
)
from entourage.handover.executor import Executor
from entourage.handover.rules import Target, decide_target
from entourage.handover.values import (
    AnyInput,
    Do,
    Effect,
    Finding,
    Flush,
    Guest,
    Input,
    Message,
    Overtaken,
    Record,
    Report,
    Role,
    Send,
)
from entourage.hosts.resources import undo_rows
from entourage.hypervisors.agentless import VOLUME, Agentless
from entourage.hypervisors.registry import start_command
from entourage.journal.journal import Decision, Journal
from entourage.journal.rows import LedgerRow
from entourage.messages import Resumed

_SYNCS_WITHIN = 10.0  # seconds for a device


async def _nothing() -> None:
    """Nothing is being made."""


class TargetSide:
    """One migration on its target: the role's state, and what executes its effects.

    Args:
        journal: This host's journal.
        decision: The migration; its record need not be written yet.
        state: What the role begins with.
        there: What the devices' halves work with; None where nothing was ever made here.
        controllers: One for each device.
        send: Sends a message of the hand-over, if there is a link.
        on_failure: Told what went wrong, for the source to know.
        on_resumed: Told when GO was heard, was decided, and the guest ran.
        call_off: Ends what is still being made, before any of it is undone.

    Attributes:
        problems: What was not undone, and is to be tried again; each a sentence.
        notes: What is left for its user to look at, and is not tried again; each a sentence.
        findings: What the user is told.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        decision: Decision,
        state: Target,
        there: There | None,
        controllers: Sequence[AnyController],
        send: Callable[[Message], None],
        on_failure: Callable[[EntourageError], None],
        on_resumed: Callable[[Resumed], None],
        call_off: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        self._journal = journal
        self._decision = decision
        self._there = there
        self._controllers = controllers
        self._send = send
        self._on_failure = on_failure
        self._on_resumed = on_resumed
        self._call_off = call_off
        self._executor = Executor(state, decide_target, self._do)
        self.take = self._executor.take
        self.idle = self._executor.idle
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.findings: list[Finding] = []
        self._settled = False
        self._flushing = self._flushed = 0  # the last one, ns of the monotonic clock

    @property
    def _agentless(self) -> Agentless | None:
        """Where the target's machine is built on a host without Entourage, what speaks for that."""
        return self._there.incoming.agentless if self._there else None

    @property
    def _where(self) -> str:
        """Where the user types what mends this half, as seen from the source."""
        saves = self._there is not None and self._there.incoming.is_save
        return "here" if self._agentless or saves else "there"

    @property
    def domain(self) -> str:
        """The domain's name."""
        return self._decision.name

    @property
    def record(self) -> Record | None:
        """What was decided so far."""
        return self._executor.state.record

    @property
    def left(self) -> tuple[str, ...]:
        """What is left here of an arrival that never was, as far as is known; sentences."""
        if self.problems or self.record is not Record.NEVER:
            return (*self.problems, *self.notes)
        with contextlib.suppress(JournalError):  # then nobody knows
            known = self._journal.decision(self._decision.migration, Role.TARGET)
            if known is None or known.settled:  # by whichever agent
                return tuple(self.notes)
        recover = f"`entourage recover {self._decision.name}` {self._where}"
        return (f"not all that was made for it is undone: {recover}",)

    async def _do(self, effect: Effect) -> AnyInput | None:
        match effect:
            case Flush():
                if effect.new is Record.RAN and self._there:
                    await self._persist_definition(self._there)
                self._flushing = time.monotonic_ns()
                decided = self._journal.flush(self._decision, effect)
                self._flushed = time.monotonic_ns()
                return None if decided is None else Overtaken(decided)
            case Send(message):
                self._send(message)
            case Report(finding):
                self.findings.append(finding)
                self._tell(finding)
            case Do.LET_RUN:
                return await self._let_run()
            case Do.SYNC_DEVICES:
                return await self._sync_devices()
            case Do.KILL_TARGET:
                await self._kill()
            case Do.UNDO_RESOURCES:
                await self._undo()
            case Do.CLEAN:
                if not self.problems:
                    self._journal.clean(self._decision.migration, Role.TARGET)
            case Do.STOP_AND_ALARM:
                if self._there:
                    await self._there.incoming.halt()
            case _:
                raise HypervisorError(f"{effect.value} is not for a target", remedy="report it")
        return None

    async def _persist_definition(self, there: There) -> None:
        """Persist the domain's definition before RAN is said, on which the source forgets it."""
        try:
            await there.incoming.persist_definition()
        except (EntourageError, OSError) as error:
            name, why = self._decision.name, plain_words(error)
            said = f"{name} has been let run, and cannot be written down as this host's: {why}"
            remedy = f"mend that, then `entourage recover {name}` {self._where}"
            self._on_failure(HypervisorError(said, remedy=remedy))
            raise

    def _tell(self, finding: Finding) -> None:
        """Report a finding to the source, for its user."""
        name = self._decision.name
        if finding is Finding.CRASHED_HERE:
            said = f"{name} was handed over, and its machine ended as it was let run"
            start = start_command(self._decision.hypervisor, name)
            remedy = f"it is off and whole: `{start}` there"
            self._on_failure(HypervisorError(said, remedy=remedy))
        elif finding is Finding.TWO_COPIES:
            said = f"ALARM: {name} ran there although that host was declared off; it was stopped"
            remedy = f"look at both copies; `entourage recover` {self._where} removes that one"
            self._on_failure(HypervisorError(said, remedy=remedy))

    async def _let_run(self) -> AnyInput:
        if self._there is None:
            return Input.RELEASE_REFUSED
        try:
            paused = self._decision.of_target.paused
            resumed = await self._there.incoming.run(paused=paused)
        except HypervisorError as error:
            self._on_failure(error)
            return Input.RELEASE_REFUSED
        except InDoubt as error:
            self._on_failure(error)
            raise
        self._on_resumed(Resumed(heard=self._flushing, decided=self._flushed, runs=resumed))
        return Input.RELEASED

    async def _sync_devices(self) -> AnyInput | None:
        """Sync the devices' state to disk: once memory has landed, and again once the guest ran.

        Before GO a failure is a reason to go back, and GO is not obeyed; after it, it is only told.
        """
        if self._there is None:
            return None
        released = self._executor.state.guest is Guest.RUNNING
        halves = [(controller, controller.persist) for controller in self._controllers]
        if released:  # the network first: it still looks for the guest on the source
            halves = [(each, each.arrived) for each in self._controllers] + halves
        # Nobody hears GO before; afterwards a device may take its time (an image's room, say).
        patience = self._there.settings.migration.recover_timeout if released else _SYNCS_WITHIN
        failed = False
        for controller, half in halves:
            failed |= not await self._done(controller, half(self._there), patience)
        if released:
            self._journal.relax()
            return None
        return Input.ABORT if failed else Input.DEVICES_SYNCED

    async def _done(
        self, controller: AnyController, half: Coroutine[Any, Any, None], patience: float
    ) -> bool:
        """Have a device do something on arrival; whether it has, else the source is told."""
        try:
            async with within(patience, "that", "see what keeps it, and whether it is done"):
                await half
        except (EntourageError, OSError) as error:
            label = controller.device.label
            self._on_failure(EntourageError(f"on arrival: {plain_words(error)}", device=label))
            return False
        return True

    async def _kill(self) -> None:
        await self._call_off()
        if self._there:
            try:
                await self._there.incoming.kill()
            except (EntourageError, OSError) as error:
                self.problems.append(f"the half-built machine is left: {plain_words(error)}")
            said = self._there.incoming.after_kill
            if said and said not in self.notes:
                self.notes.append(said)

    async def _undo(self) -> None:
        """Undo the ledger's rows, newest first; each is marked only once its resource is gone."""
        ours = self.record in {Record.RAN, Record.OWNS}
        arriving, self._settled = ours and not self._settled, self._settled or ours
        if arriving and self._there:
            await self._finish_arrival(self._there)
        if not ours:
            await self._call_off()
        migration = self._decision.migration
        for row in self._journal.ledger_rows(migration, Role.TARGET, temporary_only=ours):
            problems = await self._undone(row)
            if not problems:
                problems = self._noted_as_undone(row)
            self.problems += problems
        if arriving and self._there:  # last: a program in the guest may be waited for
            patience = self._there.settings.migration.recover_timeout
            for each in self._controllers:
                await self._done(each, each.finish_arrival(self._there), patience)

    def _noted_as_undone(self, row: LedgerRow) -> list[str]:
        """Mark a row; where that fails the others are undone all the same."""
        try:
            self._journal.ledger_undone(row.id)
        except JournalError as error:
            return [f"{row.kind} is undone, and not noted as such: {plain_words(error)}"]
        return []

    async def _finish_arrival(self, there: There) -> None:
        """Remove what only an arrival needs. Once, after RAN: it shows that the guest ran."""
        try:
            await there.incoming.finish_arrival()
        except (EntourageError, OSError) as error:
            self._on_failure(EntourageError(f"on arrival: {plain_words(error)}"))

    async def _undone(self, row: LedgerRow) -> list[str]:
        """Undo a row; a volume is the hypervisor's to delete, remotely."""
        agentless = self._agentless
        if row.kind != VOLUME or agentless is None:
            return await undo_rows([(row.kind, row.spec)])
        path = str(row.spec["path"])
        try:
            await agentless.delete_volume(path)
        except HypervisorError as error:
            return [f"the volume {path} is left: {error}"]
        return []
