"""The source's half of the hand-over: executes what ``decide_source`` decides.

Used by a migration while it goes on, and by ``entourage recover`` after a crash.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from entourage.errors import EntourageError, GoneError, HypervisorError, plain_words
from entourage.handover.executor import Executor
from entourage.handover.rules import Source, decide_source
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
from entourage.hypervisors.base import Machine
from entourage.journal.journal import Decision, Journal

_ENDS_WITHIN = 5.0  # seconds for a machine that refuses to go on to be seen to have ended

Problems = Callable[[], Awaitable[list[str]]]


class SourceSide:
    """One migration on its source: the role's state, and what executes its effects.

    Args:
        journal: This host's journal.
        decision: The migration; its record need not be written yet.
        state: What the role begins with.
        machine: The guest's machine here; None where it is gone.
        send: Sends a message of the hand-over, if there is a link.
        recover_first: Puts back the devices that the guest cannot run without.
        recover: Puts all others back.
        let_go: Frees what the devices held here, once the domain is the target's.
        on_resumed: Told the moment the guest ran here again (ns of the monotonic clock).

    Attributes:
        runs_again: The guest was let run here again.
        problems: What was not put back or cleaned up, each a sentence.
        findings: What the user is told.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        decision: Decision,
        state: Source,
        machine: Machine | None,
        send: Callable[[Message], None],
        recover_first: Problems,
        recover: Problems,
        let_go: Problems,
        on_resumed: Callable[[int], None],
    ) -> None:
        self._journal = journal
        self.decision = decision
        self._machine = machine
        self._send = send
        self._recover_first = recover_first
        self._recover = recover
        self._let_go = let_go
        self._on_resumed = on_resumed
        self._executor = Executor(state, decide_source, self._do)
        self.take = self._executor.take
        self.idle = self._executor.idle
        self.runs_again = False
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.findings: list[Finding] = []
        self._untidy = False

    @property
    def state(self) -> Source:
        """What the role knows now."""
        return self._executor.state

    @property
    def has_ended(self) -> bool:
        """Whether the guest has ended by itself."""
        return self.state.guest is Guest.DEAD or Finding.CAME_BACK_DEAD in self.findings

    async def _do(self, effect: Effect) -> AnyInput | None:
        match effect:
            case Flush():
                decided = self._journal.flush(self.decision, effect)
                return None if decided is None else Overtaken(decided)
            case Send(message):
                self._send(message)
            case Report(Finding.CAME_BACK) if self.state.guest is Guest.DEAD:
                self.findings.append(Finding.CAME_BACK_DEAD)  # that was seen as it was let run
            case Report(finding):
                self.findings.append(finding)
            case Do.DISARM_DEADMAN:
                if self._machine:
                    await self._machine.disarm_deadman()
            case Do.RESUME_SOURCE:
                return await self._resume()
            case Do.DESTROY_SOURCE:
                await self._destroy()
            case Do.UNDO_RESOURCES:
                await self._undo()
            case Do.CLEAN:
                if not self._untidy:
                    self._journal.clean(self.decision.migration, Role.SOURCE)
                self._journal.relax()
            case Do.STOP_AND_ALARM:
                if self._machine:
                    await self._machine.halt()
            case _:
                raise HypervisorError(f"{effect.value} is not for a source", remedy="report it")
        return None

    async def _resume(self) -> AnyInput | None:
        """Resume the guest; before it, recover only the devices that it cannot run without.

        A guest that has ended by itself cannot be resumed: that is an input, and no error.
        """
        self.problems += await self._recover_first()
        if self._machine is None:
            return None
        try:
            await self._machine.abort()
        except GoneError:
            return Input.GUEST_DIED
        except HypervisorError:
            if not await self._has_ended(self._machine):
                raise
            return Input.GUEST_DIED
        self.runs_again = True
        if said := self._machine.after_abort:
            self.notes.append(said)
        if self._machine.was_running:
            self._on_resumed(time.monotonic_ns())
        return None

    @staticmethod
    async def _has_ended(machine: Machine) -> bool:
        try:
            async with asyncio.timeout(_ENDS_WITHIN):
                await machine.died()
        except (TimeoutError, HypervisorError):
            return False
        return True

    async def _destroy(self) -> None:
        try:
            if self._machine:
                await self._machine.release()
        except (EntourageError, OSError) as error:
            self._not_tidy([f"the copy that stayed behind does not end: {plain_words(error)}"])
            return
        self._not_tidy(await self._let_go())

    async def _undo(self) -> None:
        if self.state.record is Record.BACK:
            # A device that cannot be put back is told, and keeps nobody from migrating again.
            self.problems += await self._recover()
            await self._keep_definition()
        migration = self.decision.migration
        for row in self._journal.ledger_rows(migration, Role.SOURCE):
            problems = await undo_rows([(row.kind, row.spec)])
            self._not_tidy(problems)
            if not problems:
                self._journal.ledger_undone(row.id)

    async def _keep_definition(self) -> None:
        try:
            if self._machine:
                await self._machine.keep_definition()
        except HypervisorError as error:
            self._not_tidy([str(error)])

    def _not_tidy(self, problems: list[str]) -> None:
        self.problems += problems
        self._untidy = self._untidy or bool(problems)
