"""The four hosts that these tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator

import pytest

from lab.hosts import Lab
from tests.e2e.fleet.world import HOSTS, FleetWorld


@pytest.fixture(scope="session")
def lab() -> Generator[Lab]:
    """Hosts a to d. Of one that a test breaks, the next begins anew."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with Lab.up(hosts=HOSTS, name=f"fleet-{os.getpid()}") as lab:
        yield lab


_worlds: list[FleetWorld] = []


@pytest.fixture
def world(lab: Lab, has_failed: Callable[[], bool]) -> Generator[FleetWorld]:
    """All guests on a, no settings but the usual, no campaign."""
    if not _worlds:
        _worlds.append(FleetWorld.begin(lab))
    (world,) = _worlds
    world.bring_home()
    yield world
    # What is left of a test that failed, or ended with its hosts' power, would fail the next.
    if has_failed() or world.is_spent:
        _worlds.clear()
        for name in HOSTS:
            if lab[name].is_on:
                lab[name].power_cut()
            lab[name].power_on()
            for what in ("/var/lib/entourage", "/srv"):  # a guest's disk is where it was last
                lab[name].run(["find", what, "-mindepth", "1", "-delete"])
    for name in HOSTS:
        world.settings(name)
