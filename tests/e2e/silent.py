"""The link falls silent before the guest's stop: no guest notices, and Ctrl-C goes back."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.e2e.run import PATIENCE, Run
from tests.e2e.world import World

if TYPE_CHECKING:
    from lab.network import Traffic

_LOG = logging.getLogger(__name__)
# What the issue promises, in seconds: for the guest, and until the prompt is back.
GUEST_WAITS, PROMPT_WAITS = 1.0, 2.0


@dataclass(frozen=True)
class Silence:
    """Where the link falls silent.

    Attributes:
        point: At which the migration is held meanwhile.
        traffic: What is lost: everything, or memory and disks while ssh goes on.
        undoes: Whether the target has anything to undo that it may not have been told of.
    """

    point: str
    traffic: Traffic = "all"
    undoes: bool = True

    def __str__(self) -> str:
        return f"{self.point.removeprefix('source.')}-{self.traffic}"


def interrupted(world: World, case: Silence, *, options: Sequence[str] = ()) -> None:
    """Ctrl-C, once a packet was lost: everything is as before, and nobody has waited."""
    run, gap, took = _under(world, case, options, interrupt=True)
    assert run.status == 4, str(run)
    assert "given up" in run.finished["message"], str(run)
    target = world.there.name
    told = [one for one in run.finished["problems"] if f"{target} undoes by itself" in one]
    if case.undoes and case.traffic == "all":
        assert told, str(run)
    else:
        assert not run.finished["problems"], str(run)
    assert gap < GUEST_WAITS, f"the guest stood still for {gap:.2f} s\n{run}"
    assert took < PROMPT_WAITS, f"{took:.2f} s until the prompt was back\n{run}"
    world.is_as_before()


def left_alone(world: World, case: Silence, *, options: Sequence[str] = ()) -> Run:
    """Nobody says anything: it goes back by itself, and the guest has not noticed."""
    run, gap, _ = _under(world, case, options, interrupt=False)
    assert run.status == 4, str(run)
    assert gap < GUEST_WAITS, f"the guest stood still for {gap:.2f} s\n{run}"
    world.is_as_before()
    return run


def _under(
    world: World, case: Silence, options: Sequence[str], *, interrupt: bool
) -> tuple[Run, float, float]:
    source, target = world.here.name, world.there.name
    on_source, on_target = [case.point], list[str]()
    if case.point.startswith("target."):
        on_source, on_target = on_target, on_source
    mark = world.seen.mark()
    with world.under(*on_source, options=options, on_target=on_target) as under:
        under.wait(case.point)
        world.lab.cut(source, target, traffic=case.traffic)
        under.open()
        world.lab.wait_dropped(source, target, PATIENCE)
        began = time.monotonic()
        if interrupt:
            under.signal("INT")
        run = under.end()
        took = time.monotonic() - began
    gap = world.seen.longest_gap(mark).seconds
    world.lab.mend(source, target)
    _await_undone(world)
    _LOG.info("%s: the guest stood still for %.3f s, the end came after %.3f s", case, gap, took)
    return run, gap, took


def _await_undone(world: World) -> None:
    """The target's agent undoes by itself what it made, once it has found the link silent."""
    deadline = time.monotonic() + PATIENCE
    while json.loads(world.there.run(["entourage", "status", "--json"]).stdout):
        assert time.monotonic() < deadline
        time.sleep(0.1)  # it tells nobody
