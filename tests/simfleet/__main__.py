"""Campaigns of a simulated fleet: ``python -m tests.simfleet --seeds 100``, ``--size 100000``.

The planner, the rules and the engine are those of a real fleet; hosts, and what happens to a move,
are drawn from a seed. Moves are refused, come back and are in doubt; campaigns are paused, go on,
are aborted and tried again; who runs them dies and another one takes them up, while what was under
way goes on. After each change the rules are looked at (``tests/simfleet/world.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from entourage.fleet.campaign import OVER, Campaign, FleetSlots
from entourage.fleet.engine import InProcess
from entourage.fleet.planner import Replanner, plan
from entourage.fleet.values import Limits, MoveState, Plan
from tests.simfleet.growth import growth
from tests.simfleet.world import Fleet, Violated, VirtualLoop, World

_SIZES = (40, 100, 300)


class Controller:
    """A process that runs campaigns; one that is killed is followed by one that knows as much."""

    def __init__(self, world: World, plans: dict[str, Plan], limits: Limits) -> None:
        self.world, self.plans, self.limits = world, plans, limits
        self.told: dict[str, dict[str, MoveState]] = {name: {} for name in plans}
        self.wishes: dict[str, Any] = dict.fromkeys(plans, "run")
        self.campaigns: dict[str, Campaign] = {}

    async def run(self) -> None:
        """Run all that are not over, from where they are."""
        hosts = self.world.fleet.targets
        slots = FleetSlots({name: host.arrivals for name, host in hosts.items() if host.arrivals})
        engine = InProcess(self.world)
        self.world.replanners = []
        for name, each in self.plans.items():
            known = self.told[name]
            campaign = Campaign(name, each, self.limits, slots, known.values())
            campaign.wish = self.wishes[name]
            for move in campaign.under_way:
                slots.leaving[move.source] += 1
                slots.arriving[move.target] += 1
            self.campaigns[name] = campaign
            engine.add(campaign)
        moves = [
            state.move
            for campaign in self.campaigns.values()
            for state in campaign.moves.values()
            if state.status in {"waits", "moves", "moved", "doubt"}
        ]
        self.world.replanners.append(
            Replanner(list(hosts.values()), self.world.fleet.domains, moves)
        )
        self.engine = engine
        async with asyncio.TaskGroup() as group:
            for name in self.plans:
                group.create_task(self._listen(engine, name))
                group.create_task(engine.run(name))

    async def _listen(self, engine: InProcess, name: str) -> None:
        async for state in engine.watch(name):
            self.told[name][state.move.uuid] = state


async def story(seed: int, size: int, *, calm: bool = False) -> Counter[str]:
    """One fleet's: two campaigns, and what happens to them; how their moves ended."""
    draw = random.Random(seed)  # noqa: S311 - a seed's order, no secret
    hosts = max(4, size // 10)
    fleet = Fleet(seed, hosts)
    limits = Limits(
        at_once=draw.choice([1, 2, 4]),
        per_target=draw.choice([1, 2]),
        attempts=draw.choice([1, 3]),
        in_a_row=draw.choice([3, 1000]) if not calm else 1_000_000,
    )
    world = World(
        fleet,
        limits,
        refuses=draw.choice([0, 0.02, 0.2]) if not calm else 0.01,
        fails=draw.choice([0, 0.05, 0.5]) if not calm else 0.02,
        doubts=draw.choice([0, 0.01]) if not calm else 0.001,
    )
    both = [fleet.emptied[::2], fleet.emptied[1::2]]
    plans: dict[str, Plan] = {}
    taken: list[Any] = []
    for name, emptied in zip(("first", "second"), both, strict=True):
        leaving = [one for one in fleet.domains if one.host in set(emptied)]
        left = _left(fleet, taken)
        plans[name] = plan(left, leaving, _promised(fleet, taken), emptied=emptied)
        taken += plans[name].moves
    _check_plans(fleet, plans)
    controller = Controller(world, plans, limits)
    await _run(controller, draw, calm=calm)
    return _check_end(world, controller)


def _left(fleet: Fleet, taken: list[Any]) -> list[Any]:
    """What the first campaign's plan leaves of the hosts."""
    used: Counter[str] = Counter()
    devices: dict[str, Counter[str]] = {}
    known = {one.uuid: one for one in fleet.domains}
    for move in taken:
        used[move.target] += move.memory
        devices.setdefault(move.target, Counter()).update(known[move.uuid].devices)
    return [
        msgspec.structs.replace(
            host,
            free=host.free - used[name],
            devices=dict(Counter(host.devices) - devices.get(name, Counter())),
        )
        for name, host in fleet.targets.items()
    ]


def _promised(fleet: Fleet, taken: list[Any]) -> list[Any]:
    known = {one.uuid: one for one in fleet.domains}
    return [msgspec.structs.replace(known[move.uuid], host=move.target) for move in taken]


async def _run(controller: Controller, draw: random.Random, *, calm: bool) -> None:
    """Until all are over; who runs them dies now and then, and they are paused and aborted."""
    rounds = 0
    while True:
        running = asyncio.create_task(controller.run())
        if calm:
            await running
        else:
            await asyncio.wait({running}, timeout=draw.uniform(10, 600))
            if not running.done() and draw.random() < 0.5:
                await _disturb(controller, draw, running)
            if not running.done() and draw.random() < 0.7:
                running.cancel()  # killed: what is under way goes on
        with contextlib.suppress(asyncio.CancelledError):
            await running
        if all(one.phase in OVER for one in controller.campaigns.values()):
            return
        rounds += 1
        if rounds > 500:
            raise Violated("it does not end")


async def _disturb(
    controller: Controller, draw: random.Random, running: asyncio.Task[None]
) -> None:
    """Pause one, see that it begins nothing more, and let it go on; or abort it."""
    name = draw.choice(list(controller.plans))
    campaign = controller.campaigns[name]
    if draw.random() < 0.2:
        controller.wishes[name] = "abort"
        await controller.engine.signal(name, "abort")
        return
    await controller.engine.signal(name, "pause")
    begun = {uuid for uuid, one in campaign.moves.items() if one.status == "waits"}
    await asyncio.wait({running}, timeout=1000)
    still = {uuid for uuid, one in campaign.moves.items() if one.status == "waits"}
    if not begun <= still:
        raise Violated(f"{name} is paused, and began {sorted(begun - still)}")
    await controller.engine.signal(name, "run")


def _check_plans(fleet: Fleet, plans: dict[str, Plan]) -> None:
    """What is planned fits, all of it at once."""
    known = {one.uuid: one for one in fleet.domains}
    used: Counter[str] = Counter()
    where: dict[str, str] = {}
    for each in plans.values():
        for move in each.moves:
            used[move.target] += move.memory
            where[move.uuid] = move.target
            for key, value in known[move.uuid].require.items():
                if fleet.targets[move.target].labels[key] != value:
                    raise Violated(f"{move}: {key} is not {value} there")
        told = {one.uuid for one in (*each.moves, *each.stays)}
        if len(told) != len(each.moves) + len(each.stays):
            raise Violated("a domain is planned twice")
        if not all(one.why for one in each.stays):
            raise Violated("a domain stays, and nothing says why")
    for name, size in used.items():
        if size > fleet.targets[name].memory:
            raise Violated(f"{name} is planned over its memory")
    together: dict[tuple[str, str], str] = {}
    apart: Counter[tuple[str, str]] = Counter()
    for name, each in plans.items():
        for move in each.moves:
            one = known[move.uuid]
            if (
                one.together
                and together.setdefault((name, one.together), move.target) != move.target
            ):
                raise Violated(f"{one.together} is torn apart")
            if one.apart:
                apart[(one.apart, move.target)] += 1
    if any(count > 1 for count in apart.values()):
        raise Violated("two that are to be apart are planned onto one host")


def _check_end(world: World, controller: Controller) -> Counter[str]:
    """Each campaign has ended, and each of its domains is where it is said to be."""
    counted: Counter[str] = Counter()
    if world.under_way:
        raise Violated("something moves though all is over")
    for campaign in controller.campaigns.values():
        for state in campaign.moves.values():
            counted[state.status] += 1
            runs_on = world.runs_on[state.move.uuid]
            if state.status == "moved" and runs_on != state.move.target:
                raise Violated(f"{state}: it runs on {runs_on}")
            if state.status in {"stays", "waits"} and runs_on != state.move.source:
                raise Violated(f"{state}: it runs on {runs_on}")
            if state.status == "waits" and campaign.phase == "ended":
                raise Violated(f"{state}: its campaign has ended")
        counted[campaign.phase] += 1
    return counted


def run(seed: int, size: int, *, calm: bool = False) -> Counter[str]:
    """``story`` on a clock of its own."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(story(seed, size, calm=calm))
    finally:
        loop.close()


def grow(sizes: list[int], out: Path) -> None:
    """How time and memory grow with the fleet; written as JSON, and drawn beside it."""
    rows: list[dict[str, float]] = []
    for size in sizes:
        fleet = Fleet(1, max(4, size // 10))
        began = time.process_time()
        plan(list(fleet.targets.values()), fleet.domains, emptied=fleet.emptied)
        planned = time.process_time() - began
        began = time.process_time()
        counted = run(1, size, calm=True)
        ran = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"machines": size, "plan_s": planned, "campaign_s": ran, "peak_mib": peak})
        sys.stdout.write(
            f"{size:>7} machines on {size // 10} hosts: plan {planned:.2f} s, both campaigns"
            f" {ran:.1f} s, {peak:.0f} MiB; {dict(counted)}\n"
        )
        sys.stdout.flush()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    out.with_suffix(".svg").write_text(growth(rows))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--size", type=int, action="append", help="machines; draws how it grows")
    parser.add_argument("--out", type=Path, default=Path("var/sim-fleet.json"))
    given = parser.parse_args()
    if given.size:
        grow(given.size, given.out)
        return 0
    counted: Counter[str] = Counter()
    for seed in range(given.first, given.first + given.seeds):
        try:
            counted += run(seed, _SIZES[seed % len(_SIZES)])
        except (Violated, ExceptionGroup) as error:
            sys.stdout.write(f"seed {seed}: {error!r}\n")
            raise
    sys.stdout.write(f"{given.seeds} seeds: {dict(counted)}; nothing found\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
