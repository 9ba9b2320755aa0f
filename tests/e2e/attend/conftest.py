"""The two libvirtd and the two daemons that these tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.libvirtd import start_all
from lab.observer import Observer
from tests.e2e.attend.world import DEVICES, Attend, AttendWorld, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from lab.hosts import Lab


@pytest.fixture(scope="session")
def attend_lab(lab: Lab) -> Lab:
    """Hosts a and b, each with its libvirtd, which knows our hook."""
    for name in ("a", "b"):
        Attend.of(lab[name]).install_hook()
        settings(lab[name])
    start_all([lab["a"], lab["b"]])
    return lab


@pytest.fixture(scope="module")
def daemons(attend_lab: Lab) -> Generator[dict[str, Attend]]:
    """The daemon of each host. A test that kills one starts it again."""
    found = {name: Attend.of(attend_lab[name]) for name in ("a", "b")}
    yield found
    for each in found.values():
        if each.runs:
            each.stop()


@pytest.fixture(scope="module")
def module_world(attend_lab: Lab, daemons: dict[str, Attend]) -> Generator[AttendWorld]:
    with Observer.start(attend_lab) as seen:
        world = AttendWorld.begin(attend_lab, seen, extra=DEVICES)
        assert isinstance(world, AttendWorld)
        yield world
        world.end()


@pytest.fixture
def world(
    module_world: AttendWorld, daemons: dict[str, Attend], has_failed: Callable[[], bool]
) -> Generator[AttendWorld]:
    """Return the module's guest and hosts; after a test that failed, new ones."""
    yield module_world
    for name in ("a", "b"):
        host = module_world.lab[name]
        if not host.is_on:  # the test that cut its power has failed
            host.power_on()
        settings(host)
    if has_failed():
        module_world.start_over()
    for each in daemons.values():
        if not each.runs:
            each.start()
