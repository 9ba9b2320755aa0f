"""The two libvirtd that these tests share, and what a test that failed must not do to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.libvirtd import start_all
from lab.observer import Observer
from tests.e2e.libvirt.world import LibvirtWorld

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from lab.hosts import Lab


@pytest.fixture(scope="session")
def libvirt_lab(lab: Lab) -> Lab:
    """Hosts a and b, each with its libvirtd. A test that kills one starts it again."""
    start_all([lab["a"], lab["b"]])
    return lab


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    """Return the usual guest and hosts; a module that wants others has its own."""
    with Observer.start(libvirt_lab) as seen:
        world = LibvirtWorld.begin(libvirt_lab, seen)
        yield world
        world.end()


@pytest.fixture
def world(module_world: LibvirtWorld, has_failed: Callable[[], bool]) -> Generator[LibvirtWorld]:
    """Return the module's guest and hosts; after a test that failed, new ones."""
    yield module_world
    if has_failed():
        module_world.start_over()
