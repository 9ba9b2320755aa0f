"""The target of an offline move: looks, claims, defines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

import msgspec

from entourage.admission import arrival_generation, unsettled
from entourage.devices.block import storage
from entourage.devices.block.storage import Seen, Spot
from entourage.devices.net import bridges
from entourage.errors import DomainBusy, EntourageError, Refused, UsageError
from entourage.handover.values import Record, Role
from entourage.hosts.link import Link
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import HasDefinitions, Hypervisor
from entourage.hypervisors.registry import all_domains, open_hypervisor, ours_alone, unseen
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.offline.claims import Claim, Claims, key
from entourage.offline.values import ADOPT, CLAIM, DROP, LOOK, TEST, Claimed, Offer, Released
from entourage.settings.model import Settings
from entourage.steps import Refusal
from entourage.target.caller import Caller
from entourage.target.checks import Checks
from entourage.target.room import admitted, no_room
from entourage.target.serve import agents_link

_NOT_HERE: Final = frozenset({Record.OPEN, Record.GO, Record.NEVER})
"""By these a domain has not come, or may not have."""
_OFF: Final = frozenset({"shut off", "crashed"})
_SETTLES_WITHIN: Final = 30.0
"""Seconds that what is being done has once this process is told to end."""


async def serve(settings: Settings, caller: Caller) -> None:
    """Be the target on standard input and output, until the link ends.

    What is being done then is done to its end; where a signal ends it, within some seconds.

    Args:
        settings: This host's.
        caller: The source's side of the link.

    Raises:
        JournalError: The journal cannot be used.
        UsageError: Standard input and output are none of ssh's.
    """
    path = Path(settings.paths.state, "journal.db")
    with Journal.open(path, keep=settings.journal) as journal:
        async with agents_link(settings) as link:
            Target(link, settings, journal, caller)
            over = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, over.set)
            serving = asyncio.create_task(link.serve())
            ended = asyncio.create_task(over.wait())
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            settling = asyncio.create_task(link.settle())
            await asyncio.wait({settling, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not settling.done():
                await asyncio.wait({settling}, timeout=_SETTLES_WITHIN)
            if not settling.done():
                _end_at_once()
            link.close()
            for task in (serving, ended):
                task.cancel()
            await asyncio.gather(serving, ended, return_exceptions=True)


def _end_at_once() -> None:
    """End as by SIGTERM: what is being done waits for a hypervisor that hangs, and cannot be ended.

    What it may have done is on the disk already (``Claim.defining``).
    """
    sys.stderr.flush()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


class Target:
    """Answers one source.

    Args:
        link: To it.
        settings: This host's.
        journal: This host's.
        caller: The source's side of the link.
    """

    def __init__(self, link: Link, settings: Settings, journal: Journal, caller: Caller) -> None:
        self._settings = settings
        self._caller = caller
        self._journal = journal
        self._host = socket.gethostname()
        self._claims = Claims(settings.paths.state, self._host)
        link.on(LOOK, self.look)
        link.on(TEST, self.test)
        link.on(CLAIM, self.claim)
        link.on(ADOPT, self.adopt)
        link.on(DROP, self.drop)

    async def look(self, spots: list[Spot]) -> list[Seen]:
        """What this host sees at the source's paths."""
        return list(await asyncio.gather(*map(storage.look, spots)))

    async def test(self, offer: Offer) -> list[Refusal]:
        """What speaks against the domain here: its settings, as of one that runs, and the rest.

        Raises:
            UsageError: That source, or its hypervisor, is not among those that are taken here.
        """
        definition, host = offer.definition, self._host
        self._caller.check(offer.source, offer.hypervisor, self._settings.agent, host)
        domain = definition.domain
        hypervisor, _ = self._hypervisor(offer.hypervisor)
        if await _has(hypervisor, key(domain.uuid)):
            reason = f"there is a domain {domain.name} of that UUID here already"
            return [Refusal("domain", host, reason, "see which of the two is the right one")]
        checks = Checks(self._settings, proxy=False)
        checks.begin(domain, definition.facts)
        told = await checks.refusals(hypervisor, domain, host)
        found = [one for one in told if not one.only_warns]
        known = await in_thread(bridges)
        found += [
            Refusal(net.label, host, f"there is no bridge {net.bridge}", "make it there")
            for net in domain.net
            if net.attach == "bridge" and net.bridge not in known
        ]
        found += await no_room(self._settings, self._journal, domain, host)
        found += self._outdated(offer)
        return found + unsettled(self._settings, self._journal, domain, host, host)

    async def claim(self, offer: Offer) -> Claimed:
        """Keep what is to be defined; it is on the disk when this returns.

        Raises:
            Refused: Something speaks against it now.
        """
        domain = offer.definition.domain
        if found := await self.test(offer):
            raise Refused(found)
        with domain_lock(self._run, key(domain.uuid), f"takes {domain.name} from {offer.source}"):
            async with admitted(self._settings, self._journal, domain, self._host):
                known = self._journal.decisions(key(domain.uuid))
                seen = max((one.began for one in known), default=0)
                await in_thread(self._claims.write, Claim(offer=offer, seen=seen))
        return Claimed(journal=self._journal.uuid)

    async def adopt(self, released: Released) -> bool:
        """Define what was claimed, once: it is this host's from now on.

        What this host has known of the domain since the claim is newer than that: it has come by
        it already, whoever was killed then, and may have left. Then the claim is of no use.

        Returns:
            False where that is not known: it may have been defined, and be on another host by now.
            Nothing is done then; the claim stays.

        Raises:
            UsageError: Nothing of that move is kept here, and the domain is not here either.
            DomainBusy: Another migration of it is not settled here; the claim stays.
            EntourageError: The source has forgotten migrations of it; the claim stays.
            HypervisorError: It cannot be defined; the claim stays.
        """
        uuid = key(released.uuid)
        with domain_lock(self._run, uuid, "takes a domain that is off"):
            claim = await in_thread(self._claims.read, uuid)
            if claim is None or claim.offer.migration != released.migration:
                await self._must_have(uuid)
                return True
            if self._has_come(claim, uuid):
                await in_thread(self._claims.remove, uuid)
                await self._must_have(uuid)
                return True
            with _claim_stays():
                return await self._take(claim, uuid, certain=released.certain)

    async def _take(self, claim: Claim, uuid: str, *, certain: bool) -> bool:
        """Have it defined, and write that down; see ``adopt``."""
        offer = claim.offer
        for one in self._outdated(offer):
            raise EntourageError(
                one.reason,
                host=self._host,
                remedy=f"{one.remedy}; its definition is in {self._claims.path(uuid)}",
            )
        hypervisor, definitions = self._hypervisor(offer.hypervisor)
        state = await _state(hypervisor, uuid) if claim.defining else None
        if state is None and claim.defining and not (certain or ours_alone(offer.hypervisor)):
            return False
        # One that is here, and off, may be half defined: whether it is started with the host comes
        # after its definition.
        if state is None or state in _OFF:
            await self._define(claim, hypervisor, definitions)
        self._record(offer)
        await in_thread(self._claims.remove, uuid)
        return True

    async def _define(
        self, claim: Claim, hypervisor: Hypervisor, definitions: HasDefinitions
    ) -> None:
        """Have it defined; that this was begun is on the disk before."""
        definition = claim.offer.definition
        await in_thread(self._claims.write, msgspec.structs.replace(claim, defining=True))
        try:
            await definitions.define(definition)
        except EntourageError:
            with contextlib.suppress(EntourageError):  # then it is not known
                if not await _has(hypervisor, key(definition.domain.uuid)):
                    undefined = msgspec.structs.replace(claim, defining=False)
                    await in_thread(self._claims.write, undefined)
            raise

    async def drop(self, released: Released) -> None:
        """The source keeps it after all."""
        uuid = key(released.uuid)
        with domain_lock(self._run, uuid, "drops a claim"):
            claim = await in_thread(self._claims.read, uuid)
            if claim is not None and claim.offer.migration == released.migration:
                await in_thread(self._claims.remove, uuid)

    def _has_come(self, claim: Claim, uuid: str) -> bool:
        """Whether the journal says of the domain what it did not when it was claimed.

        Raises:
            DomainBusy: What it says is not decided.
        """
        known = self._journal.decisions(uuid)
        if any(one.began > claim.seen and one.record not in _NOT_HERE for one in known):
            return True
        for one in known:
            if not one.settled:
                raise DomainBusy(
                    f"a migration of {one.name} ({one.peer_host}) is not settled: {one.record}",
                    host=self._host,
                    remedy=f"`entourage recover {one.name}` there first",
                )
        return False

    def _outdated(self, offer: Offer) -> list[Refusal]:
        """Whether this host knows a newer migration of the domain than its source does."""
        counted = self._generation(offer)
        return [
            Refusal(
                "domain",
                self._host,
                f"this host knows a newer migration of it: {one.migration}",
                "a journal was restored or replaced: see docs/recovery.md",
            )
            for one in self._journal.decisions(key(offer.definition.domain.uuid))[:1]
            if one.generation >= counted and not one.never_came
        ]

    def _generation(self, offer: Offer) -> int:
        uuid = key(offer.definition.domain.uuid)
        return arrival_generation(
            self._journal, uuid, offer.generation, unseen=unseen(offer.hypervisor)
        )

    async def _must_have(self, uuid: str) -> None:
        for state in await all_domains(self._settings):
            if state.uuid.lower() == uuid:
                return
        raise UsageError(
            f"nothing of {uuid} is kept here", host=self._host, remedy="`entourage list --all`"
        )

    def _hypervisor(self, name: str) -> tuple[Hypervisor, HasDefinitions]:
        hypervisor = open_hypervisor(self._settings, name)
        if not isinstance(hypervisor, HasDefinitions):
            raise UsageError(
                f"{name} takes no domain that is off",
                host=self._host,
                remedy="define it there by hand",
            )
        return hypervisor, hypervisor

    def _record(self, offer: Offer) -> None:
        """Write into the journal that the domain came: older words of its leaving count no more.

        Settled at once: of it there is nothing that is to be found out later.
        """
        domain = offer.definition.domain
        decision = Decision(
            migration=offer.migration,
            role=Role.TARGET,
            domain=key(domain.uuid),
            name=domain.name,
            generation=self._generation(offer),
            record=Record.OWNS,
            clean=True,
            peer_host=offer.source,
            peer_journal=offer.journal,
            details=TargetDetails(domain=domain, hypervisor=offer.hypervisor),
        )
        self._journal.begin(decision)

    @property
    def _run(self) -> Path:
        return Path(self._settings.paths.run)


@contextlib.contextmanager
def _claim_stays() -> Generator[None]:
    """Say so of what fails; the source has let go: nothing of that is how it was typed.

    Raises:
        EntourageError: In the place of a UsageError, after which there is nothing to type again.
    """
    try:
        yield
    except UsageError as error:
        message = f"{error.message}; the claim stays"
        raise EntourageError(message, host=error.host, remedy=error.remedy) from error
    except EntourageError as error:
        error.message = f"{error.message}; the claim stays"
        raise


async def _state(hypervisor: Hypervisor, uuid: str) -> str | None:
    """How a domain stands with a hypervisor of this host; None: it has none; HypervisorError."""
    found = (one.state for one in await hypervisor.domains() if one.uuid.lower() == uuid)
    return next(found, None)


async def _has(hypervisor: Hypervisor, uuid: str) -> bool:
    """Whether a hypervisor of this host has a domain; raises HypervisorError."""
    return await _state(hypervisor, uuid) is not None
