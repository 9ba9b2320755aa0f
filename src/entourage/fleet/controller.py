"""Runs campaigns on real hosts: what a terminal, a controller and the tests have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from entourage.errors import EntourageError
from entourage.fleet.campaign import Campaign, Phase
from entourage.fleet.database import DatabaseAwayError
from entourage.fleet.engine import Driver, RealTime
from entourage.fleet.ensure import Ensure
from entourage.fleet.outage import Outage
from entourage.fleet.planner import Replanner
from entourage.fleet.records import Hearing, Records
from entourage.fleet.remote import Remote
from entourage.fleet.slots import StoreSlots
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, MoveState, Result
from entourage.hosts.threads import InOrder, in_thread

_LOOK_EVERY: Final = 0.5  # seconds
_LOOK_AGAIN: Final = 2.0  # seconds, where the database is away
_GOES: Final = frozenset({"waits", "moves", "moved", "doubt"})


class Told:
    """Is told what happens in a campaign; a screen overrides what it shows."""

    def changed(self, campaign: str, state: MoveState) -> None:
        """A move has come further."""

    def heard(self, campaign: str, move: Move, event: Mapping[str, Any]) -> None:
        """`entourage migrate --json` said something on a move's source."""

    def note(self, campaign: str, message: str) -> None:
        """Something to know."""


class RealWorld(RealTime):
    """The hosts of a fleet, for one campaign.

    Args:
        ensure: Makes sure of a move.
        replanner: Finds another target.
        promised: Asks the database what other campaigns have yet to move.
        fresh: UUIDs of those with which nobody can have begun anything.
    """

    def __init__(
        self,
        ensure: Ensure,
        replanner: Replanner,
        promised: Callable[[], Awaitable[Iterable[Move]]],
        fresh: set[str],
    ) -> None:
        self._ensure = ensure
        self._replanner = replanner
        self._ask_promised = promised
        self._promised: Iterable[Move] = ()
        self._fresh = fresh

    async def ensure(self, move: Move) -> Result:
        """See ``engine.World``; raises EntourageError where the database is not to be asked."""
        first = move.uuid in self._fresh
        self._fresh.discard(move.uuid)
        result = await self._ensure(move, first=first)
        if result.kind in {"back", "refused"}:  # another target may be looked for
            self._promised = await self._ask_promised()
        return result

    def elsewhere(self, state: MoveState) -> str | None:
        """See ``engine.World``."""
        return self._replanner.elsewhere(state, self._promised)


class Runner:
    """Runs campaigns of a store.

    Args:
        store: Where they are.
        remote: The hosts.
        owner: What this controller is called.
        told: Is told what happens.
    """

    def __init__(self, store: Store, remote: Remote, owner: str, told: Told) -> None:
        self.store = store
        self._remote = remote
        self._owner = owner
        self._told = told
        self._records = Records(store.engine)
        self._driven = set[str]()

    def note(self, name: str, message: str) -> None:
        """Something to know of a campaign."""
        self._told.note(name, message)

    def drives(self, name: str) -> bool:
        """Whether it runs a campaign, and so says itself what that waits for."""
        return name in self._driven

    async def drive(self, name: str) -> Phase:
        """Run a campaign until it is over, from where it is; the hosts' cordons with it.

        A database that goes away is waited for: what moves on hosts moves on meanwhile.

        Raises:
            FencedError: Another controller runs it now.
            EntourageError: The store cannot be read, or a source not be reached.
        """
        first: bool | None = None
        order, outage = InOrder(), Outage(partial(self.note, name), drives=lambda: True)
        self._driven.add(name)
        try:
            while True:
                try:
                    if first is None:
                        first = await order(self.store.claim, name, self._owner)
                    else:  # it may be another one's by now
                        first = False
                        await order(self.store.standing, name, self._owner)
                    outage.over()
                    return await self._run(name, order, first=first)
                except DatabaseAwayError as error:
                    outage.waits(error)
                    await asyncio.sleep(_LOOK_AGAIN)
        finally:
            self._driven.discard(name)

    async def _run(self, name: str, order: InOrder, *, first: bool) -> Phase:
        spec = await order(self.store.spec, name)
        remote = self._remote.with_hosts(spec.besides)
        await self._cordon(name, spec, remote)
        phase = await self._drive(name, spec, remote, order, first=first)
        # Another one's cordons are not ours to lift.
        await order(self.store.standing, name, self._owner)
        await self._uncordon(name, spec, remote)
        return phase

    async def _drive(
        self, name: str, spec: Spec, remote: Remote, order: InOrder, *, first: bool
    ) -> Phase:
        hearing = Hearing(self._records, name)
        made = order(self._made, name, spec, remote, hearing, order, first=first)
        campaign, world = await made
        await order(self._phase_of(campaign))

        async def told(state: MoveState) -> None:
            say_phase = self._phase_of(campaign)

            def keep() -> None:
                self.store.save(name, state, owner=self._owner)
                say_phase()
                hearing.changed(state)

            await order(keep)
            self._told.changed(name, state)

        async def heard() -> None:
            await order(hearing.write)

        driver = Driver(campaign, world, told)
        watching = asyncio.create_task(self._watch(name, driver, remote, order, heard))
        running = asyncio.create_task(driver.run())
        try:
            await asyncio.wait({watching, running}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()  # raises
            phase = await running
        finally:
            for task in (watching, running):
                task.cancel()
            await asyncio.gather(watching, running, return_exceptions=True)
        await order(self._phase_of(campaign))
        return phase

    def _phase_of(self, campaign: Campaign) -> Callable[[], None]:
        """What says in the store where a campaign is now."""
        return partial(
            self.store.phase,
            campaign.name,
            campaign.phase,
            owner=self._owner,
            reason=campaign.reason,
            in_a_row=campaign.in_a_row,
        )

    def _made(
        self,
        name: str,
        spec: Spec,
        remote: Remote,
        hearing: Hearing,
        order: InOrder,
        *,
        first: bool,
    ) -> tuple[Campaign, RealWorld]:
        arrivals = {one.name: one.arrivals for one in spec.hosts if one.arrivals is not None}
        slots = StoreSlots(self.store, name, self._owner, order, arrivals)
        states = self.store.states(name)
        campaign = Campaign(name, spec.plan, spec.limits, slots, states)
        campaign.in_a_row = self.store.in_a_row(name)
        summary = self.store.summary(name)
        campaign.reason, campaign.wish = summary.reason, summary.wish
        refused: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for uuid, host, reason, remedy in spec.refused:
            refused.setdefault((uuid, host), []).append((reason, remedy))
        moves = [one.move for one in campaign.moves.values() if one.status in _GOES]
        replanner = Replanner(spec.hosts, spec.domains, moves, refused, style=spec.style)
        ensure = Ensure(remote, tuple(spec.options), self._heard(name, hearing))

        async def promised() -> Iterable[Move]:
            found = await in_thread(self.store.promised)
            return [move for move in found if move.uuid not in campaign.moves]

        # What is tried again has no attempts either: then somebody has run the campaign before.
        never = [one for one in states if one.status == "waits" and not one.attempts]
        fresh = {one.move.uuid for one in never} if first else set[str]()
        return campaign, RealWorld(ensure, replanner, promised, fresh)

    def _heard(self, name: str, hearing: Hearing) -> Callable[[Move, Mapping[str, Any]], None]:
        def heard(move: Move, event: Mapping[str, Any]) -> None:
            hearing.heard(move, event)
            self._told.heard(name, move, event)

        return heard

    async def _watch(
        self,
        name: str,
        driver: Driver,
        remote: Remote,
        order: InOrder,
        heard: Callable[[], Awaitable[None]],
    ) -> None:
        """See what its user wants, and what other campaigns have freed; returns never.

        Args:
            name: The campaign's.
            driver: What runs it.
            remote: The hosts.
            order: In which what is written of it is.
            heard: Keeps what was heard meanwhile.

        Raises:
            FencedError: Another controller runs it.
        """
        taken_back: set[str] = set()
        while True:
            wish = await in_thread(self.store.standing, name, self._owner)
            if wish != driver.campaign.wish:
                driver.campaign.wish = wish
                await order(self._phase_of(driver.campaign))
            if wish == "take-back":
                for move in driver.campaign.under_way:
                    if move.off or move.uuid in taken_back:
                        continue  # of what is off there is nothing that could go back
                    if await self._take_back(move, remote):
                        taken_back.add(move.uuid)
            driver.wake()
            await heard()
            await asyncio.sleep(_LOOK_EVERY)

    async def _take_back(self, move: Move, remote: Remote) -> bool:
        """Have what moves go back, if it still can.

        Returns:
            Whether it was heard. Else it is said again, as long as it moves: its migration may not
            have begun on its host, or that may not answer.
        """
        with contextlib.suppress(EntourageError):
            return not (await remote.abort(move.name, move.source)).status
        return False

    async def _cordon(self, name: str, spec: Spec, remote: Remote) -> None:
        """What is emptied takes nothing meanwhile; raises EntourageError."""
        for host in spec.plan.hosts:
            await remote.cordon(host, name, "a campaign empties this host")

    async def _uncordon(self, name: str, spec: Spec, remote: Remote) -> None:
        for host in spec.plan.hosts:
            try:
                await remote.uncordon(host, name)
            except EntourageError as error:
                self._told.note(name, f"{error}; `entourage uncordon --name {name}` on {host}")
