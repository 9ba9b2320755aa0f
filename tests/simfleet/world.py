"""A simulated fleet: hosts with room, domains that move or fail to, and what must always hold."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter, defaultdict
from typing import Any

from entourage.fleet.planner import Replanner
from entourage.fleet.values import FleetDomain, Host, Limits, Move, MoveState, Result

GIB = 1 << 30


_OWN = ("usb:1050:0407", "pci:8086:1572", "pci:10de:1b80+10de:10f0")
"""What some hosts have, and some domains, one each."""


class Violated(AssertionError):  # noqa: N818 - what the rule is then
    """A rule was broken."""


class _Jumps(selectors.SelectSelector):
    """Waits for nothing: the clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Violated("nothing is left that could happen, and the campaign is not over")
        self.now += max(1e-6, timeout) if timeout else 0.0  # a sum may be less than its parts
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which hours pass at once."""

    def __init__(self) -> None:
        self.jumps = _Jumps()
        super().__init__(self.jumps)

    def time(self) -> float:
        return self.jumps.now


class Fleet:
    """Hosts and domains of a seed.

    Args:
        seed: Of all that is drawn.
        hosts: How many.
        per_host: Domains on each of those that are emptied.
        emptied: Which part of the hosts.
    """

    def __init__(self, seed: int, hosts: int, *, per_host: int = 20, emptied: float = 0.5) -> None:
        self.draw = random.Random(seed)  # noqa: S311 - a seed's order, no secret
        draw = self.draw
        leaving = max(1, int(hosts * emptied))
        size = 512 * GIB
        self.emptied = [f"s{number}" for number in range(leaving)]
        self.targets = {
            name: Host(
                name=name,
                memory=size,
                free=size,
                devices=_drawn(draw, 0.1),
                labels={"net": str(number % 3), "rack": str(number % 40)},
                arrivals=draw.choice([None, None, 1, 3]),
            )
            for number, name in enumerate(f"t{number}" for number in range(hosts - leaving))
        }
        self.domains = [
            FleetDomain(
                name=f"d{number}",
                uuid=f"u{number}",
                host=self.emptied[number % leaving],
                memory=draw.choice([2, 4, 8, 16, 32, 64]) * GIB,
                devices=_drawn(draw, 0.001),
                require={"net": str(draw.randrange(3))} if draw.random() < 0.5 else {},
                together=f"g{number // 2}" if draw.random() < 0.02 else "",
                apart=f"a{number // 3}" if draw.random() < 0.1 else "",
            )
            for number in range(leaving * per_host)
        ]


def _drawn(draw: random.Random, chance: float) -> dict[str, int]:
    """The host's own devices that a host has, or a domain."""
    return {key: 1 for key in _OWN if draw.random() < chance}


class World:
    """What a campaign does to hosts; and the rules, looked at on each change.

    Args:
        fleet: The hosts and the domains.
        limits: The campaign's.
        refuses, fails, doubts: How often a target refuses, a move comes back, and is in doubt.
    """

    def __init__(
        self,
        fleet: Fleet,
        limits: Limits,
        *,
        refuses: float = 0.0,
        fails: float = 0.0,
        doubts: float = 0.0,
    ) -> None:
        self.fleet, self.limits = fleet, limits
        self.runs_on = {one.uuid: one.host for one in fleet.domains}
        self.known = {one.uuid: one for one in fleet.domains}
        self.under_way: dict[str, asyncio.Task[Result]] = {}
        self.used: Counter[str] = Counter()
        self.devices: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.leaving: Counter[str] = Counter()
        self.arriving: Counter[str] = Counter()
        self.replanners: list[Replanner] = []
        self.begun = 0
        self._chances = refuses, fails, doubts
        self.may_begin = True

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def elsewhere(self, state: MoveState) -> str | None:
        for replanner in self.replanners:
            if (found := replanner.elsewhere(state)) is not None:
                return found
        return None

    async def ensure(self, move: Move) -> Result:
        """What is under way outlives who has begun it; it is found, and waited for."""
        task = self.under_way.get(move.uuid)
        if task is None:
            if self.runs_on[move.uuid] == move.target:
                return Result(kind="moved")
            task = self.under_way[move.uuid] = asyncio.create_task(self._migrate(move))
        return await asyncio.shield(task)

    async def _migrate(self, move: Move) -> Result:
        draw, domain = self.fleet.draw, self.known[move.uuid]
        refuses, fails, doubts = self._chances
        if not self.may_begin:
            raise Violated(f"{move} was begun though nothing may begin")
        if self.runs_on[move.uuid] != move.source:
            raise Violated(f"{move}: it is on {self.runs_on[move.uuid]}")
        try:
            if draw.random() < refuses:
                return Result(kind="refused", message="TEST refused it")
            self._occupy(move, domain)
            await asyncio.sleep(draw.uniform(5, 120))
            chance = draw.random()
            if chance < fails:
                self._leave(move, domain, left=move.target)
                return Result(kind="back", message="it went back")
            if chance < fails + doubts:
                self._leave(move, domain, left="")
                return Result(kind="doubt", message="the link was lost")
            self.runs_on[move.uuid] = move.target
            self._leave(move, domain, left="")
            return Result(kind="moved", blackout=0.05)
        finally:
            del self.under_way[move.uuid]

    def _occupy(self, move: Move, domain: FleetDomain) -> None:
        """What arrives has its memory there from the beginning on."""
        host = self.fleet.targets[move.target]
        self.used[host.name] += domain.memory
        self.devices[host.name].update(domain.devices)
        self.leaving[move.source] += 1
        self.arriving[move.target] += 1
        self.begun += 1
        if self.used[host.name] > host.memory:
            raise Violated(f"{host.name} has less memory than its domains")
        if any(count > host.devices.get(key, 0) for key, count in self.devices[host.name].items()):
            raise Violated(f"{host.name} has fewer devices than its domains")
        if self.leaving[move.source] > self.limits.at_once:
            raise Violated(f"{self.leaving[move.source]} leave {move.source} at once")
        most = min(self.limits.per_target, host.arrivals or self.limits.per_target)
        if self.arriving[move.target] > most:
            raise Violated(f"{self.arriving[move.target]} arrive at {move.target} at once")

    def _leave(self, move: Move, domain: FleetDomain, *, left: str) -> None:
        self.leaving[move.source] -= 1
        self.arriving[move.target] -= 1
        if left:
            self.used[left] -= domain.memory
            self.devices[left].subtract(domain.devices)
