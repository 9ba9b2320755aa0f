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
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from entourage.admission import manual_access, offline_again
from entourage.devices.block.sameness import compare
from entourage.devices.block.storage import Seen, Spot
from entourage.errors import DomainBusy, EntourageError, Refused, UsageError
from entourage.handover.values import Record, Role
from entourage.hosts import ssh
from entourage.hosts.link import Link
from entourage.hosts.route import Route
from entourage.hypervisors.base import HasDefinitions, Hypervisor
from entourage.hypervisors.registry import (
    check_lacks,
    counterpart,
    find_domain,
    open_hypervisor,
    usual,
)
from entourage.hypervisors.values import Definition
from entourage.journal.details import SourceDetails
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.offline.claims import key
from entourage.offline.values import ADOPT, CLAIM, DROP, LOOK, TEST, Offer, Released
from entourage.settings.model import Settings
from entourage.steps import Refusal
from entourage.testpoints import reached

_AGENT: Final = ("agent", "--offline")
_PATIENCE: Final = 5.0
"""Seconds for a hypervisor that did not forget a domain to say whether it has it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which domain is to go where.

    Attributes:
        name: The domain's.
        route: How the target is reached.
        connect: The hypervisor that has it; None: whichever does.
        settings: This host's.
    """

    name: str
    route: Route
    connect: str | None
    settings: Settings

    @property
    def host(self) -> str:
        """The target, as its user names it."""
        return self.route.host


async def test(asked: Asked) -> Sequence[Refusal]:
    """What speaks against the move; nothing is touched.

    Raises:
        UsageError: There is no such domain, or it is not off.
        LinkError: The target cannot be reached, or knows no offline moves.
    """
    leaving = await _leaving(asked)
    if leaving is None:
        with Journal.open(asked_journal(asked.settings)) as journal:
            await _check_gone(asked, _gave_away(journal, asked))
        return ()
    with Journal.open(asked_journal(asked.settings)) as journal:
        offer = leaving.offer(journal)
        async with ssh.start_agent(asked.host, asked.settings, _AGENT) as link:
            return await _refusals(link, offer, asked)


async def move(asked: Asked) -> None:
    """Make sure that the target alone has the domain.

    Raises:
        Refused: Something speaks against it; nothing has changed.
        UsageError: There is no such domain, or it is not off.
        DomainBusy: Another command works on it.
        EntourageError: It could not be done. Where the source has let go, the remedy is the same
            command.
    """
    leaving = await _leaving(asked)
    settings = asked.settings
    with Journal.open(asked_journal(settings), keep=settings.journal) as journal:
        if leaving is None:
            await _adopt_again(asked, journal)
            return
        domain = leaving.definition.domain
        with manual_access(settings, domain.name, key(domain.uuid), "moves it off", starts=False):
            async with ssh.start_agent(asked.host, settings, _AGENT) as link:
                await _hand_over(asked, leaving, journal, link)


async def _hand_over(asked: Asked, leaving: _Leaving, journal: Journal, link: Link) -> None:
    offer = leaving.offer(journal)
    released = Released(migration=offer.migration, uuid=key(offer.definition.domain.uuid))
    if found := await _refusals(link, offer, asked):
        raise Refused(found)
    domain = offer.definition.domain
    await check_lacks(asked.settings, key(domain.uuid), but=leaving.hypervisor)
    claimed = await link.call(CLAIM, offer)
    reached("offline-claimed")
    if claimed.journal == journal.uuid:
        await link.call(DROP, released)
        raise UsageError(f"{asked.host} is this host", remedy="name another host")
    again = await leaving.definitions.definition(asked.name)  # it may have been started just now
    if again != offer.definition:
        await link.call(DROP, released)
        raise DomainBusy(f"{asked.name} was changed meanwhile", remedy="try again")
    gone = _gone(offer, asked, leaving, claimed.journal)
    journal.begin(gone)  # on the disk when this returns
    with _given_away(asked):
        reached("offline-gone")
        kept = await _forget(offer, leaving, journal, gone)
        if kept is None:
            reached("offline-forgotten")
            await link.call(ADOPT, released)
    if kept is not None:
        with contextlib.suppress(EntourageError):  # a later claim replaces that one
            await link.call(DROP, released)
        raise kept


async def _forget(
    offer: Offer, leaving: _Leaving, journal: Journal, gone: Decision
) -> EntourageError | None:
    """Have its hypervisor forget it; returns why it is this host's again, where it is.

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
    return None


@contextlib.contextmanager
def _given_away(asked: Asked) -> Generator[None]:
    """Say what to type where it fails: perhaps no host has the domain, but for a claim.

    Raises:
        UsageError: The target keeps nothing of the move: to type it again is of no use.
        EntourageError: Else; also in the place of a cancellation, as by Ctrl-C.
    """
    again = offline_again(asked.name, asked.host)
    try:
        yield
    except UsageError:
        raise
    except EntourageError as error:
        error.remedy = f"{error.remedy}; {again}" if error.remedy else again
        raise
    except asyncio.CancelledError as error:
        raise EntourageError(
            f"interrupted after {asked.name} was given to {asked.host}", remedy=again
        ) from error


def _gone(offer: Offer, asked: Asked, leaving: _Leaving, there: str) -> Decision:
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


async def _adopt_again(asked: Asked, journal: Journal) -> None:
    """This host has it no more: if it was given to that target, have it defined there."""
    gone = _gave_away(journal, asked)
    released = Released(migration=gone.migration, uuid=gone.domain)
    busy = domain_lock(Path(asked.settings.paths.run), gone.domain, "moves it off")
    with _given_away(asked), busy:
        await _check_gone(asked, gone)
        await _sync_forgotten(asked, gone)
        async with ssh.start_agent(asked.host, asked.settings, _AGENT) as link:
            await link.call(ADOPT, released)


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
    """
    must_say = [one for one in (gone.hypervisor, asked.connect) if one]
    await check_lacks(asked.settings, gone.domain, name=asked.name, must_say=must_say)


def _gave_away(journal: Journal, asked: Asked) -> Decision:
    """The move by which this host gave the domain to that target; raises UsageError."""
    mine = [one for one in journal.decisions() if one.name == asked.name and not one.never_came]
    newest = max(mine, key=lambda one: one.began, default=None)
    if newest is None or newest.role is not Role.SOURCE or newest.record is not Record.GONE:
        raise UsageError(
            f"there is no domain {asked.name!r} on this host",
            remedy="`entourage list --all` shows what there is",
        )
    if newest.peer_host != asked.host:
        raise UsageError(
            f"{asked.name} was given to {newest.peer_host}",
            remedy="see `entourage list --all` there",
        )
    return newest


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A domain that this host has, off.

    Attributes:
        hypervisor: The name of whose it is.
        domains: That of this host, to ask.
        there: The name of the target's that is to have it.
        definitions: The same hypervisor, as one that keeps what is off.
    """

    hypervisor: str
    domains: Hypervisor
    there: str
    definitions: HasDefinitions
    definition: Definition

    def offer(self, journal: Journal) -> Offer:
        """What the target is told."""
        return Offer(
            migration=str(uuid.uuid4()),
            source=socket.gethostname(),
            journal=journal.uuid,
            generation=journal.next_generation(key(self.definition.domain.uuid)),
            hypervisor=self.there,
            definition=self.definition,
        )

    async def is_kept(self) -> bool:
        """Whether its hypervisor shows that it has it; False also where that does not answer."""
        ours = key(self.definition.domain.uuid)
        with contextlib.suppress(EntourageError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                return any(one.uuid.lower() == ours for one in await self.domains.domains())
        return False


async def _leaving(asked: Asked) -> _Leaving | None:
    """The domain; None where this host has none of that name."""
    if asked.route.agentless is not None:
        raise UsageError(
            "what is off moves to a host that has Entourage", remedy="name it as ssh does"
        )
    connect = asked.connect
    if connect is None and asked.route.there is not None:
        connect = usual(asked.route.there)
    try:
        asking, _ = await find_domain(asked.settings, asked.name, connect)
    except UsageError:
        with Journal.open(asked_journal(asked.settings)) as journal:
            try:
                _gave_away(journal, asked)
            except UsageError:
                pass
            else:
                return None
        raise
    if not isinstance(asking, HasDefinitions):
        raise UsageError(
            f"{asking.name} lets no domain that is off be moved by Entourage",
            remedy="define it on the other host with its own tools, then forget it here",
        )
    there = counterpart(asking.name, asked.route.there)
    definition = await asking.definition(asked.name)
    return _Leaving(asking.name, asking, there, asking, definition)


async def _refusals(link: Link, offer: Offer, asked: Asked) -> list[Refusal]:
    """What speaks against it, on both hosts."""
    here = socket.gethostname()
    found = [
        Refusal(device, here, reason, remedy)
        for device, reason, remedy in offer.definition.objections
    ]
    found += await link.call(TEST, offer)

    async def ask(spots: Sequence[Spot]) -> list[Seen]:
        return await link.call(LOOK, list(spots))

    pairs = [(path, path) for path in offer.definition.images]
    for match in await compare(pairs, offer.migration, ask):
        if not match.same:
            found.append(
                Refusal(
                    "domain",
                    asked.host,
                    f"{match.path} is not seen to be the same there: {match.reason}",
                    "what is off moves where its disks are shared; start it and move it then,"
                    " or copy them yourself",
                )
            )
    return found


def asked_journal(settings: Settings) -> Path:
    """Where this host's journal is."""
    return Path(settings.paths.state, "journal.db")
