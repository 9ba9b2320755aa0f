"""Reattach to a migration to this host that another process began, or that was never begun."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from entourage.devices.base import AnyController, There
from entourage.domain import Domain
from entourage.errors import DomainBusy, EntourageError, HypervisorError
from entourage.handover.rules import Target
from entourage.handover.values import Guest, Input, Message, Record, Role
from entourage.hosts.allowed import Allowed
from entourage.hypervisors.registry import open_hypervisor
from entourage.journal.journal import Journal, MigrationLedger
from entourage.journal.lock import domain_lock
from entourage.journal.rows import Decision
from entourage.settings.model import Settings
from entourage.target.controllers import target_controllers
from entourage.target.role import TargetSide


@contextlib.asynccontextmanager
async def reattach_target(
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
        controllers: list[AnyController] = []
        if found and locked and found.of_target.domain is not None:
            there = _there(journal, settings, found, found.of_target.domain)
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
            await side.take(Input.RESTARTED)
        yield side


async def _attached(there: There, record: Record) -> Guest:
    """The state of the machine; STOPPED where it cannot be asked and GO is not recorded.

    Where GO was never written down, nobody has let it run: NEVER can be decided without looking.
    """
    try:
        return await there.incoming.attach()
    except HypervisorError:
        if record is not Record.OPEN:
            raise
        return Guest.STOPPED


def _locked(
    stack: contextlib.AsyncExitStack, settings: Settings, decision: Decision, doing: str
) -> bool:
    try:
        stack.enter_context(domain_lock(Path(settings.paths.run), decision.domain, doing))
    except DomainBusy:
        return False
    return True


def _there(journal: Journal, settings: Settings, decision: Decision, domain: Domain) -> There:
    hypervisor = open_hypervisor(settings, decision.of_target.hypervisor)
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
        allowed=Allowed(settings.agent),
        source=decision.peer_host,
    )
