"""Each process and each host dies at chosen points; then ``recover``, then a move that succeeds.

Who is to run the guest afterwards is written down beforehand, in ``CASES``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.world import KEPT, PATIENCE, Run, Under, World

ARMED = "source.after.flush-armed"
PREPARE = "source.step-started.1"
PRE_COPY = "source.policy-changed"
STOPPED = "source.step-started.2"
LANDED = "source.memory-landed"
HELD = "source.after.hold-dead-hand"
GO_SAID = "source.go-sent"
OPENED = "target.after.flush-open"
GO_STANDS = "target.after.flush-go"
RELEASED = "target.after.let-run"
RAN = "target.after.flush-ran"
LETTING_GO = "source.before.destroy-source"
SLOWLY = ("--bandwidth", "4MiB/s")


@dataclass(frozen=True)
class Case:
    """What dies where, and who is to have the guest afterwards.

    Attributes:
        victim: What dies.
        point: Where the migration stands at that moment.
        owner: ``source`` or ``target``: whose the guest is afterwards.
        survives: False where the guest itself may die of it.
    """

    victim: str
    point: str
    owner: str
    survives: bool = True

    def __str__(self) -> str:
        return f"{self.victim}-{self.point}"


CASES = [
    Case("entourage", ARMED, "source"),
    Case("entourage", PREPARE, "source"),
    Case("entourage", PRE_COPY, "source"),
    Case("entourage", STOPPED, "source"),
    Case("entourage", LANDED, "source"),
    Case("entourage", HELD, "source"),
    Case("entourage", GO_SAID, "target"),
    Case("entourage", LETTING_GO, "target"),
    Case("agent", OPENED, "source"),
    Case("agent", PRE_COPY, "source"),
    Case("agent", STOPPED, "source"),
    Case("agent", LANDED, "source"),
    Case("agent", GO_STANDS, "target"),
    Case("agent", RELEASED, "target"),
    Case("agent", RAN, "target"),
    Case("ssh", PRE_COPY, "source"),
    Case("ssh", LANDED, "source"),
    Case("ssh", GO_STANDS, "target"),
    Case("source-qemu", PRE_COPY, "source", survives=False),
    Case("target-host", PRE_COPY, "source"),
    Case("target-host", STOPPED, "source"),
    Case("source-host", PRE_COPY, "source", survives=False),
    Case("source-host", GO_STANDS, "target"),
]


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen)
        yield world
        world.end()


def victim(world: World, name: str, under: Under) -> None:
    """Kill it, and wait until it is dead."""
    match name:
        case "entourage":
            under.process.kill()
            under.process.wait()
        case "agent":
            _kill(world.there, world, lambda words: words[-1:] == ["agent"])
        case "ssh":
            _kill(world.here, world, lambda words: Path(words[0]).name == "ssh")
        case "source-qemu":
            _kill(world.here, world, lambda words: Path(words[0]).name == "qemu-system-x86_64")
        case "target-host":
            under.far_points.let_go()
            world.there.power_cut()
        case "source-host":
            under.process.kill()  # it stands still at the point, and would go on now
            under.process.wait()
            under.points.let_go()
            world.here.power_cut()
        case _:
            raise AssertionError(name)


def _kill(host: Host, world: World, which: Callable[[list[str]], bool]) -> None:
    came = host.leftovers(world.clean[host.name]).processes
    found = [words for text in came if which((words := text.split())[1:])]
    assert found, came
    host.run(["kill", "-KILL", *(words[0] for words in found)])


def recover(host: Host) -> str:
    """``entourage recover`` there; what it says if anything is not settled afterwards."""
    done = host.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    shown = host.run(["entourage", "status", "--json"], timeout=PATIENCE)
    settled = all(one["settled"] for one in json.loads(shown.stdout))
    return "" if settled else f"{host.name}: {done.stdout}\n{done.stderr}\n{shown.stdout}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fault(world: World, case: Case) -> None:
    on_source = [case.point] if case.point.startswith("source.") else []
    on_target = [case.point] if case.point.startswith("target.") else []
    options = SLOWLY if case.point in {PRE_COPY, PREPARE, ARMED, OPENED} else ()
    source, target = world.here, world.there
    with world.under(*on_source, options=options, on_target=on_target) as under:
        under.wait(case.point)
        victim(world, case.victim, under)
        run: Run | None = None
        with contextlib.suppress(ValueError):  # it was killed in the middle of a line
            run = under.end()
        for host in (source, target):
            if not host.is_on:
                host.power_on()
                booted = host.snapshot().processes
                clean = world.clean[host.name]
                world.clean[host.name] = dataclasses.replace(clean, processes=booted)
    # Either order must do; the target first is the harder one.
    recover(target)
    recover(source)
    recover(target)
    said = recover(source)
    assert not said, f"{said}\n{run}"
    said = recover(target)
    assert not said, f"{said}\n{run}"
    if case.owner == "target":
        world.here, world.there = target, source
    if case.survives:
        world.lives()
    else:
        world.start_again()
    left = world.there.wait_clean(world.clean[world.there.name], ignore=KEPT)
    assert not left, f"left over on {world.there.name}:\n{left}\n{run}"
    world.moved(world.migrate())
