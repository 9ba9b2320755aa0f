"""The source of an offline move: makes sure that the target alone has a domain that is off.

What is kept of it, and where, at each moment of a move that is killed:

| Killed                          | the source    | the target     | the same command then        |
| ------------------------------- | ------------- | -------------- | ---------------------------- |
| before the claim                | has it        | nothing        | begins                       |
| after the claim                 | has it        | a claim        | begins; the claim is renewed |
| after the source's journal says | has it; says  | a claim        | goes on                      |
| that it is gone                 | "not mine"    |                |                              |
| after the source has forgotten  | nothing       | a claim        | has it defined there, once   |
|                                 |               |                | no hypervisor here has it    |
| after the target has defined it | nothing       | has it         | finds that it is done        |

Where others move domains of that hypervisor as well (libvirt's), two moments are not known from
afterwards: after a hypervisor has forgotten or defined the domain, and before that is written down.
One that is found nowhere then is in doubt: somebody may have taken it to a third host.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from entourage.admission import manual_access, offline_again, offline_certain
from entourage.errors import DomainBusy, EntourageError, InDoubt, Refused, UsageError
from entourage.handover.values import Record, Role
from entourage.hosts import ssh
from entourage.hosts.link import Link
from entourage.hypervisors.base import HasDefinitions
from entourage.hypervisors.registry import (
    check_lacks,
    open_hypervisor,
    ours_alone,
)
from entourage.hypervisors.values import Definition
from entourage.journal.details import SourceDetails
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.offline.claims import key
from entourage.offline.leaving import PATIENCE, Asked, Leaving, against, find_leaving
from entourage.offline.values import ADOPT, CLAIM, DROP, Offer, Released
from entourage.steps import Refusal
from entourage.testpoints import reached

_AGENT: Final = ("agent", "--offline")
Result = TypeVar("Result")


async def test(asked: Asked) -> Sequence[Refusal]:
    """What speaks against the move; nothing is touched.

    Raises:
        UsageError: There is no such domain, or it is not off.
        DomainBusy: Another command works on it, or another hypervisor has it as well.
        InDoubt: It may be on a third host.
        EntourageError: A hypervisor of this host does not say whether it has it.
        LinkError: The target cannot be reached, or knows no offline moves.
    """
    with Journal.open(asked.journal) as journal:
        leaving = await find_leaving(asked, journal)
        if isinstance(leaving, Decision):
            await _check_gone(asked, leaving)
            return ()
        async with _opened(asked, leaving, "looks whether it can move off") as link:
            return await against(link, leaving.offer(journal), leaving, asked)


async def move(asked: Asked) -> None:
    """Make sure that the target alone has the domain.

    Raises:
        Refused: Something speaks against it; nothing has changed.
        UsageError: There is no such domain, or it is not off.
        DomainBusy: Another command works on it.
        InDoubt: It may be on a third host.
        EntourageError: It could not be done. Where the source has let go, the remedy is the same
            command.
    """
    settings = asked.settings
    with Journal.open(asked.journal, keep=settings.journal) as journal:
        leaving = await find_leaving(asked, journal)
        if isinstance(leaving, Decision):
            await _adopt_again(asked, leaving, journal)
            return
        async with _opened(asked, leaving, "moves it off") as link:
            await _hand_over(asked, leaving, journal, link)


@contextlib.asynccontextmanager
async def _opened(asked: Asked, leaving: Leaving, doing: str) -> AsyncGenerator[Link]:
    """The link to the target; meanwhile no other command works on the domain."""
    domain, settings = leaving.definition.domain, asked.settings
    with manual_access(settings, domain.name, key(domain.uuid), doing, starts=False):
        async with ssh.start_agent(asked.host, settings, _AGENT) as link:
            yield link


async def _hand_over(asked: Asked, leaving: Leaving, journal: Journal, link: Link) -> None:
    offer = leaving.offer(journal)
    released = Released(migration=offer.migration, uuid=key(offer.definition.domain.uuid))
    if found := await against(link, offer, leaving, asked):
        raise Refused(found)
    asked.told(f"nothing speaks against it, here or on {asked.host}")
    try:
        gone = await _claimed(asked, leaving, journal, link, offer)
        journal.begin(gone)  # on the disk when this returns
    except BaseException:  # also Ctrl-C: this host has it, and what is claimed is of no use
        await _drop(link, released)
        raise
    asked.told(f"this host's journal says that it is {asked.host}'s")
    with _given_away(asked):
        reached("offline-gone")
        kept = await _to_its_end(_forget(offer, leaving, journal, gone))
        if kept is None:
            asked.told(f"{leaving.hypervisor} here has forgotten it")
            reached("offline-forgotten")
            await _adopt(asked, link, released)
    if kept is not None:
        await _drop(link, released)
        raise kept


async def _claimed(
    asked: Asked, leaving: Leaving, journal: Journal, link: Link, offer: Offer
) -> Decision:
    """Have the target keep the definition; what the journal is to say then.

    Raises:
        UsageError: That host is this one; or it was started meanwhile.
        DomainBusy: It was changed meanwhile.
        EntourageError: The target does not keep it.
    """
    claimed = await link.call(CLAIM, offer)
    asked.told(f"{asked.host} keeps its definition, and cannot start it yet")
    reached("offline-claimed")
    if claimed.journal == journal.uuid:
        raise UsageError(f"{asked.host} is this host", remedy="name another host")
    again = await leaving.definitions.definition(asked.name)  # it may have been started just now
    if again != offer.definition:
        raise DomainBusy(f"{asked.name} was changed meanwhile", remedy="try again")
    return _gone(offer, asked, leaving, claimed.journal)


async def _drop(link: Link, released: Released) -> None:
    """Have the target keep nothing of it; where that is not heard, a later claim replaces it."""
    with contextlib.suppress(EntourageError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await link.call(DROP, released)


async def _adopt(asked: Asked, link: Link, released: Released) -> None:
    """Have the target define it; raises InDoubt where it may have, and has it no more."""
    if not await link.call(ADOPT, released):
        raise InDoubt(
            f"whether {asked.name} has been on {asked.host} since is not known: it was being"
            " defined there when that was cut",
            remedy=offline_certain(asked.name, asked.host),
        )
    asked.told(f"{asked.host} has it, off")


def _note_forgotten(journal: Journal, gone: Decision) -> None:
    """Write down that it was this command that has had the domain forgotten."""
    details = msgspec.structs.replace(gone.of_source, forgotten=True)
    journal.detail(gone.migration, gone.role, details)


async def _forget(
    offer: Offer, leaving: Leaving, journal: Journal, gone: Decision
) -> EntourageError | None:
    """Have its hypervisor forget it, and write that down; or why it is this host's again.

    Raises:
        HypervisorError: It may be forgotten, or not. It stays given away: the same command looks
            again.
    """
    try:
        await leaving.definitions.undefine(offer.definition)
    except EntourageError as error:
        if not isinstance(error, DomainBusy) and not await leaving.is_kept():
            raise
        _take_back(journal, gone)
        return error
    _note_forgotten(journal, gone)
    return None


async def _to_its_end(work: Coroutine[Any, Any, Result | None]) -> Result | None:
    """Do it also where this is cancelled: what was half done would have to be called in doubt.

    Returns:
        What comes of it; of one that was cancelled only what is not None, with which its caller
        ends as well.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if task.exception() is not None or task.result() is None:
            raise
        return task.result()


@contextlib.contextmanager
def _given_away(asked: Asked) -> Generator[None]:
    """Say what to type where it fails: perhaps no host has the domain, but for a claim.

    Raises:
        UsageError: The target keeps nothing of the move: to type it again is of no use.
        InDoubt: The same; only its user can know where the domain is.
        EntourageError: Else; also in the place of a cancellation, as by Ctrl-C.
    """
    again = offline_again(asked.name, asked.host)
    try:
        yield
    except (UsageError, InDoubt):
        raise
    except EntourageError as error:
        error.remedy = f"{error.remedy}; {again}" if error.remedy else again
        raise
    except asyncio.CancelledError as error:
        raise EntourageError(
            f"interrupted after {asked.name} was given to {asked.host}", remedy=again
        ) from error


def _gone(offer: Offer, asked: Asked, leaving: Leaving, there: str) -> Decision:
    """That this host has it no more: settled at once, as nothing of it is to be asked later."""
    domain = offer.definition.domain
    return Decision(
        migration=offer.migration,
        role=Role.SOURCE,
        domain=key(domain.uuid),
        name=domain.name,
        generation=offer.generation,
        record=Record.GONE,
        clean=True,
        peer_host=asked.host,
        peer_journal=there,
        details=SourceDetails(
            domain=domain,
            hypervisor=leaving.hypervisor,
            hypervisor_there=offer.hypervisor,
            peer_was_told=True,
            offline=True,
        ),
    )


def _take_back(journal: Journal, gone: Decision) -> None:
    """Write down that this host keeps it after all; that is newer than that it was gone."""
    generation = journal.next_generation(gone.domain)
    back = replace(gone, migration=str(uuid.uuid4()), generation=generation, record=Record.BACK)
    journal.begin(back)


async def _adopt_again(asked: Asked, gone: Decision, journal: Journal) -> None:
    """This host has it no more, and gave it to that target: have it defined there."""
    certain = asked.certain
    released = Released(migration=gone.migration, uuid=gone.domain, certain=certain)
    busy = domain_lock(Path(asked.settings.paths.run), gone.domain, "moves it off")
    with _given_away(asked), busy:
        await _check_gone(asked, gone)
        await _sync_forgotten(asked, gone)
        _note_forgotten(journal, gone)
        async with ssh.start_agent(asked.host, asked.settings, _AGENT) as link:
            await _adopt(asked, link, released)


async def _sync_forgotten(asked: Asked, gone: Decision) -> None:
    """That it was forgotten is on the disk when this returns."""
    hypervisor, domain = open_hypervisor(asked.settings, gone.hypervisor), gone.of_source.domain
    if isinstance(hypervisor, HasDefinitions) and domain is not None:
        await hypervisor.undefine(Definition(domain=domain))


async def _check_gone(asked: Asked, gone: Decision) -> None:
    """See that no hypervisor of this host has it: one that was silent, or under another name.

    Raises:
        DomainBusy: One has it.
        HypervisorError: One does not say.
        InDoubt: It may be that nobody has forgotten it here, but somebody has taken it away.
    """
    must_say = [one for one in (gone.hypervisor, asked.connect) if one]
    await check_lacks(asked.settings, gone.domain, name=asked.name, must_say=must_say)
    if not (gone.of_source.forgotten or asked.certain or ours_alone(gone.hypervisor)):
        raise InDoubt(
            f"where {asked.name} is is not known: it was being given to {asked.host} when that was"
            " cut, and is not here any more",
            remedy=offline_certain(asked.name, asked.host),
        )
