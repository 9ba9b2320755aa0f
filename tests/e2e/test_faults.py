"""Each process and each host dies at chosen points; then ``recover``, then a move that succeeds.

Who is to run the guest afterwards is written down beforehand, in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.dying import (
    ARMED,
    GO_SAID,
    GO_STANDS,
    HELD,
    LANDED,
    LETTING_GO,
    OPENED,
    PRE_COPY,
    PREPARE,
    RAN,
    RELEASED,
    STOPPED,
    Case,
    settle,
    strike,
)
from tests.e2e.world import World

SLOWLY = ("--bandwidth", "4MiB/s")

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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fault(world: World, case: Case) -> None:
    options = SLOWLY if case.point in {PRE_COPY, PREPARE, ARMED, OPENED} else ()
    settle(world, case, strike(world, case, options=options))
    world.moved(world.migrate())
