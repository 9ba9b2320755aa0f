"""After a save that was given up or killed: a guest that full storage has stopped goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from entourage.errors import DomainBusy, plain_words
from entourage.handover.values import Guest, Record
from entourage.hosts.route import host_of
from entourage.hypervisors.registry import backend_of, in_directory, open_hypervisor
from entourage.hypervisors.saved.manifest import is_of
from entourage.hypervisors.saved.storage import Storage
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.settings.model import Settings

GOES_ON_WITHIN: Final = 10.0
"""Seconds for a hypervisor, and the storage, to answer."""


def not_known(name: str, hypervisor: str, why: str) -> str:
    """A sentence: whether a domain of a hypervisor stands still is not known, and what to do."""
    remedy = backend_of(hypervisor).resume_hint(hypervisor, name)
    return (
        f"whether {name} stands still for want of room is not known: {why} (if it does: {remedy})"
    )


async def have_go_on(settings: Settings, decision: Decision) -> list[str]:
    """Let a guest go on that QEMU has stopped for want of room; what a save took is removed.

    Nothing is done where the save was kept (a checkpoint), where its user had paused the guest,
    where another process works on the domain, or where it was not the last that was begun with it:
    a later migration may have given the guest away.

    Args:
        settings: This host's.
        decision: A save's, on the host that the guest runs on.

    Returns:
        What is in the way of that, a sentence; empty where nothing is.
    """
    if decision.record is not Record.BACK or not decision.settled or not decision.peer_is_a_save:
        return []
    # What is saved on another host, and whether it was kept there, is not seen from here.
    if host_of(decision.peer_host) or not decision.of_source.was_running:
        return []
    asking = asyncio.create_task(_go_on(settings, decision))
    await asyncio.wait({asking}, timeout=GOES_ON_WITHIN)
    if not asking.done():
        asking.cancel()
        why = f"there was no answer within {GOES_ON_WITHIN:g} s"
    elif error := asking.exception():
        why = plain_words(error)
    else:
        return []
    return [not_known(decision.name, decision.hypervisor, why)]


async def _go_on(settings: Settings, decision: Decision) -> None:
    domain, details = decision.of_source.domain, decision.of_source
    directory = in_directory(details.hypervisor_there)
    if domain is None or not directory:
        return
    storage = Storage(Path(directory), decision.name)
    if await storage.do(is_of, Path(directory), domain, decision.generation):
        return
    try:
        with domain_lock(Path(settings.paths.run), decision.domain, "has its guest go on"):
            if not _is_last(settings, decision):
                return
            machine = await open_hypervisor(settings, details.hypervisor).reattach_machine(domain)
            try:
                if await machine.reattach(was_running=True) is not Guest.DEAD:
                    await machine.go_on()
            except Exception:
                await machine.close()
                raise
            # Not where it was cancelled: what does not answer may not let go of it either.
            await machine.close()
    except DomainBusy:  # who works on it has it go on, or moves it as it is
        return


def _is_last(settings: Settings, decision: Decision) -> bool:
    """Whether nothing was begun with the domain since, and nothing of it is undecided."""
    path = Path(settings.paths.state, "journal.db")
    if not path.exists():
        return False
    with Journal.open(path, read_only=True) as journal:
        known = journal.decisions(decision.domain)
    others = [one for one in known if one.migration != decision.migration]
    return all(one.settled and one.began < decision.began for one in others)
