"""Taking up a migration that another process began on this host, in either role."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from entourage.conductor import Conductor, source_controllers, target_controllers
from entourage.devices.base import Controller, Here, Options, There
from entourage.domain import Domain
from entourage.errors import DomainBusy, EntourageError, HypervisorError, LinkLost
from entourage.handover.rules import Source, Target
from entourage.handover.values import Event, Guest, Message, Record, Role
from entourage.hypervisors.registry import open_hypervisor
from entourage.journal.journal import Decision, Journal, MigrationLedger
from entourage.journal.lock import domain_lock
from entourage.passage import Clock
from entourage.settings.model import Settings
from entourage.source import SourceSide
from entourage.steps import Step
from entourage.target import TargetSide

Reply = TypeVar("Reply")


@contextlib.asynccontextmanager
async def taken_up_target(
    journal: Journal,
    settings: Settings,
    migration: str,
    *,
    send: Callable[[Message], None],
    on_failure: Callable[[EntourageError], None] = lambda _error: None,
) -> AsyncGenerator[TargetSide]:
    """The target's side of a migration that another process began here, or nobody ever did.

    Holds the domain's lock where that is free, and then has finished what the record asks for.

    Args:
        journal: This host's.
        settings: This host's.
        migration: The migration's id.
        send: Sends a message of the hand-over, if there is a link.
        on_failure: Told what the source's user has to know, if there is a link.
    """
    found = journal.decision(migration, Role.TARGET)
    decision = found or Decision(
        migration=migration,
        role=Role.TARGET,
        domain="",
        name="",
        generation=0,
        record=Record.NEVER,
    )
    async with contextlib.AsyncExitStack() as stack:
        locked = found is None or _locked(stack, settings, found, "recovers an arrival")
        if found and locked:
            # What stood there before the lock was held may be old: another may have decided since.
            found = decision = journal.decision(migration, Role.TARGET) or found
        there, guest = None, Guest.DEAD
        controllers: list[Controller] = []
        if found and locked and found.details.get("domain"):
            there = _there(journal, settings, found)
            controllers = target_controllers(there.domain, there.incoming)
            guest = await _attached(there, found.record)
        side = TargetSide(
            journal=journal,
            decision=decision,
            state=Target(
                migration=migration,
                record=found.record if found else None,
                guest=guest,
                clean=found.clean if found else False,
                holds_lock=locked,
            ),
            there=there,
            controllers=controllers,
            send=send,
            on_failure=on_failure,
            on_resumed=lambda _moment: None,
        )
        if found and locked:
            await side.take(Event.RESTARTED)
        yield side


@contextlib.asynccontextmanager
async def taken_up_source(
    journal: Journal,
    settings: Settings,
    decision: Decision,
    *,
    send: Callable[[Message], None],
) -> AsyncGenerator[SourceSide]:
    """The source's side of a migration that another process began here; holds the domain's lock.

    Raises:
        DomainBusy: Another process works on it.
    """
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:
        run_dir = Path(settings.paths.run)
        stack.enter_context(domain_lock(run_dir, decision.domain, "recovers a departure"))
        # What was read before the lock was held may be old: another may have decided since.
        decision = journal.decision(decision.migration, Role.SOURCE) or decision
        details = decision.details
        domain = msgspec.convert(details["domain"], Domain)
        was_running = bool(details.get("was_running", True))
        hypervisor = open_hypervisor(settings, str(details.get("hypervisor", "qemu")))
        machine = await hypervisor.taken_up(domain)
        stack.push_async_callback(machine.close)
        guest = await machine.reattach(was_running=was_running)
        options = Options(keep_source_disks=bool(details.get("keep_source_disks")))

        def here(_controller: Controller, _half: str, settled: Callable[[], None]) -> Here:
            return Here(
                migration=decision.migration,
                source="this host",
                target=decision.peer_host,
                machine=machine,
                settings=settings,
                options=options,
                peer=_no_peer,
                emit=lambda _event: None,
                now=clock.now,
                settled=settled,
            )

        devices = Conductor(
            source_controllers(domain, settings, details.get("tool")),
            here,
            settings.migration,
            lambda _event: None,
            clock.now,
        )
        devices.take_up(Step(int(details.get("step", Step.NONE))), details.get("memos", {}))
        side = SourceSide(
            journal=journal,
            decision=decision,
            state=Source(
                migration=decision.migration,
                peer_journal=decision.peer_journal,
                record=decision.record,
                guest=guest,
                clean=decision.clean,
            ),
            machine=machine,
            send=send,
            recover_first=devices.recover_first,
            recover=devices.recover,
            let_go=devices.let_go,
            on_resumed=lambda _moment: None,
        )
        await side.take(Event.RESTARTED)
        yield side


async def _attached(there: There, record: Record) -> Guest:
    """What became of the machine; while nothing is decided, that need not be known.

    Where GO was never written down, nobody has let it run: NEVER can be decided without looking.
    """
    try:
        return await there.incoming.attach()
    except HypervisorError:
        if record is not Record.OPEN:
            raise
        return Guest.STOPPED


async def _no_peer(request: Any, reply: type[Reply]) -> Reply:  # noqa: ARG001 - see Peer
    raise LinkLost("there is no link while a migration is recovered")


def _locked(
    stack: contextlib.AsyncExitStack, settings: Settings, decision: Decision, doing: str
) -> bool:
    try:
        stack.enter_context(domain_lock(Path(settings.paths.run), decision.domain, doing))
    except DomainBusy:
        return False
    return True


def _there(journal: Journal, settings: Settings, decision: Decision) -> There:
    domain = msgspec.convert(decision.details["domain"], Domain)
    hypervisor = open_hypervisor(settings, str(decision.details.get("hypervisor", "qemu")))
    ledger = MigrationLedger(journal, decision.migration, Role.TARGET)
    return There(
        migration=decision.migration,
        host="this host",
        domain=domain,
        incoming=hypervisor.incoming(domain, ledger),
        ledger=ledger,
        settings=settings,
        run_dir=settings.paths.run,
        state_dir=settings.paths.state,
    )
