"""Reattach to a migration from this host that another process began."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from entourage.clock import Clock
from entourage.device_steps import DeviceSteps, source_controllers
from entourage.devices.base import AnyController, Here, Options
from entourage.errors import LinkLost
from entourage.handover.rules import Source
from entourage.handover.values import Input, Message, Role
from entourage.hypervisors.registry import in_directory, open_hypervisor
from entourage.journal.file import not_understood
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.settings.model import Settings
from entourage.source.role import SourceSide

Reply = TypeVar("Reply")


@contextlib.asynccontextmanager
async def reattach_source(
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
        details = decision.of_source
        domain = details.domain
        if domain is None:
            raise not_understood(journal.path, f"decision {decision.migration}", "it has no domain")
        if details.tools is not None:  # as they were, by whichever file that was
            settings = msgspec.structs.replace(settings, tool=details.tools)
        hypervisor = open_hypervisor(settings, details.hypervisor)
        machine = await hypervisor.reattach_machine(domain)
        if in_directory(details.hypervisor_there):
            machine = machine.saving or machine
        stack.push_async_callback(machine.close)
        guest = await machine.reattach(was_running=details.was_running)
        options = Options(keep_source_disks=details.keep_source_disks)

        def here(_controller: AnyController, _half: str, settled: Callable[[], None]) -> Here:
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

        devices = DeviceSteps(
            source_controllers(domain, settings, details.tool),
            here,
            settings.migration,
            lambda _event: None,
            clock.now,
        )
        devices.reattach(details.step, details.memos)
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
        await side.take(Input.RESTARTED)
        yield side


async def _no_peer(request: Any, reply: type[Reply]) -> Reply:  # noqa: ARG001 - see Peer
    raise LinkLost("there is no link while a migration is recovered")
