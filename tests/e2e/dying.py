"""A process or a host dies at a chosen point of a migration; then who has the guest is settled."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lab.host import Host
from tests.e2e.faults.inflict import Fault
from tests.e2e.faults.matrix import POINTS
from tests.e2e.run import PATIENCE, Run, Under
from tests.e2e.world import World

ARMED = POINTS["armed"]
PREPARE = POINTS["prepare"]
PRE_COPY = POINTS["pre-copy"]
STOPPED = POINTS["stopped"]
LANDED = POINTS["landed"]
HELD = POINTS["held"]
GO_SAID = POINTS["go-said"]
OPENED = POINTS["opened"]
GO_STANDS = POINTS["go-stands"]
RELEASED = POINTS["released"]
RAN = POINTS["ran"]
LETTING_GO = POINTS["letting-go"]

Kill: TypeAlias = Callable[[World, str, Under], None]
"""Kills what a case names, and waits until it is dead."""


@dataclass(frozen=True)
class Case:
    """What dies where, and who is to have the guest afterwards.

    Attributes:
        victim: What dies.
        point: Where the migration stands at that moment.
        owner: ``source`` or ``target``: whose the guest is afterwards; or ``either``.
        survives: False where the guest itself may die of it.
    """

    victim: str
    point: str
    owner: str
    survives: bool = True

    def __str__(self) -> str:
        return f"{self.victim}-{self.point}"


def strike(
    world: World, case: Case, *, options: Sequence[str] = (), kill: Kill | None = None
) -> Run | None:
    """Begin a migration, let it happen, and let what survives come to its end.

    Args:
        world: The guest and its hosts.
        case: What dies, and where.
        options: Of ``entourage migrate``.
        kill: Kills it; None: ``victim``.

    Returns:
        What ``entourage migrate`` said; None where it was killed in the middle of a line.
    """
    on_source = [case.point] if case.point.startswith("source.") else []
    on_target = [case.point] if case.point.startswith("target.") else []
    run: Run | None = None
    source, target = world.here, world.there
    with world.under(*on_source, options=options, on_target=on_target) as under:
        under.wait(case.point)
        (kill or victim)(world, case.victim, under)
        with contextlib.suppress(ValueError):
            run = under.end()
        for host in (source, target):
            if not host.is_on:
                host.power_on()
                world.booted(host)
    return run


def settle(world: World, case: Case, run: Run | None) -> None:
    """``recover`` on both hosts: then the guest is whole, where it was to be, and nowhere else."""
    source, target = world.here, world.there
    # Either order must do; the target first is the harder one.
    recover(target)
    recover(source)
    recover(target)
    for host in (source, target):
        said = recover(host)
        assert not said, f"{said}\n{run}"
    owner = world.find() if case.owner == "either" else case.owner
    if owner == "target":
        world.here, world.there = target, source
    if case.survives:
        world.lives()
    else:
        world.start_again()
    world.is_clean(world.there)


def victim(world: World, name: str, under: Under) -> None:
    """Kill it, and wait until it is dead."""
    match name:
        case "source-qemu":
            world.kill(world.here, "qemu-system-x86_64")
        case "target-qemu":
            world.kill(world.there, "qemu-system-x86_64")
        case _:
            Fault(world, name, "").inflict(under)


def recover(host: Host) -> str:
    """``entourage recover`` there; what it says if anything is not settled afterwards."""
    done = host.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    shown = host.run(["entourage", "status", "--json"], timeout=PATIENCE)
    settled = not json.loads(shown.stdout)
    return "" if settled else f"{host.name}: {done.stdout}\n{done.stderr}\n{shown.stdout}"
