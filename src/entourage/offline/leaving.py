"""A domain that is off, and is to leave this host: which it is, and what speaks against it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from entourage.admission import offline_again
from entourage.devices.block.sameness import compare
from entourage.devices.block.storage import Seen, Spot
from entourage.errors import EntourageError, UsageError
from entourage.handover.values import Record, Role
from entourage.hosts.link import Link
from entourage.hosts.route import Route
from entourage.hypervisors.base import HasDefinitions, Hypervisor
from entourage.hypervisors.registry import check_lacks, counterpart, find_domain, usual
from entourage.hypervisors.values import Definition
from entourage.journal.journal import Decision, Journal
from entourage.offline.claims import key
from entourage.offline.values import LOOK, TEST, Offer
from entourage.settings.model import Settings
from entourage.steps import Refusal

PATIENCE: Final = 5.0
"""Seconds for a hypervisor that did not forget a domain to say whether it has it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which domain is to go where.

    Attributes:
        name: The domain's.
        route: How the target is reached.
        connect: The hypervisor that has it; None: whichever does.
        settings: This host's.
        certain: The user has vouched that no host has it.
        told: Is told each step that was done, a sentence.
    """

    name: str
    route: Route
    connect: str | None
    settings: Settings
    certain: bool = False
    told: Callable[[str], None] = lambda _: None

    @property
    def host(self) -> str:
        """The target, as its user names it."""
        return self.route.host

    @property
    def journal(self) -> Path:
        """Where this host's journal is."""
        return Path(self.settings.paths.state, "journal.db")


@dataclass(frozen=True, slots=True)
class Leaving:
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
            async with asyncio.timeout(PATIENCE):
                return any(one.uuid.lower() == ours for one in await self.domains.domains())
        return False


async def find_leaving(asked: Asked, journal: Journal) -> Leaving | Decision:
    """The domain; or, of one that this host has no more, the move that gave it to that target.

    Raises:
        UsageError: There is neither, or it is not off.
    """
    if asked.route.agentless is not None:
        raise UsageError(
            "what is off moves to a host that has Entourage", remedy="name it as ssh does"
        )
    connect = asked.connect
    if connect is None and asked.route.there is not None:
        connect = usual(asked.route.there)
    try:
        asking, _ = await find_domain(asked.settings, asked.name, connect)
    except UsageError as error:
        return _gave_away(journal, asked, error)
    if not isinstance(asking, HasDefinitions):
        raise UsageError(
            f"{asking.name} lets no domain that is off be moved by Entourage",
            remedy="define it on the other host with its own tools, then forget it here",
        )
    there = counterpart(asking.name, asked.route.there)
    definition = await asking.definition(asked.name)
    return Leaving(asking.name, asking, there, asking, definition)


def _gave_away(journal: Journal, asked: Asked, otherwise: UsageError) -> Decision:
    """The move by which this host gave the domain to that target.

    Args:
        journal: This host's.
        asked: The move that is asked for.
        otherwise: What is raised where there is none.

    Raises:
        UsageError: There is none; or it was given to another host, or has moved in another way.
    """
    mine = [one for one in journal.decisions() if one.name == asked.name and not one.never_came]
    newest = max(mine, key=lambda one: one.began, default=None)
    if newest is None or newest.role is not Role.SOURCE or newest.record is not Record.GONE:
        raise otherwise
    if not newest.settled:
        raise UsageError(
            f"{otherwise.message}; its move to {newest.peer_host} is not settled",
            remedy=f"`entourage recover {asked.name}`",
        ) from otherwise
    if newest.peer_is_a_save:
        raise otherwise
    if not newest.of_source.offline:
        raise UsageError(
            f"{otherwise.message}; it moved to {newest.peer_host} as it ran",
            remedy=f"see `entourage list --all` on {newest.peer_host}",
        ) from otherwise
    if newest.peer_host != asked.host:
        raise UsageError(
            f"{asked.name} was given to {newest.peer_host}",
            remedy="see `entourage list --all` there; if that was cut, "
            + offline_again(asked.name, newest.peer_host),
        )
    return newest


async def against(link: Link, offer: Offer, one: Leaving, asked: Asked) -> list[Refusal]:
    """What speaks against it, on both hosts.

    Raises:
        DomainBusy: Another hypervisor of this host has it as well.
        HypervisorError: One does not say, and may have it.
    """
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
    if not found:
        uuid = key(offer.definition.domain.uuid)
        await check_lacks(asked.settings, uuid, but=one.hypervisor)
    return found
