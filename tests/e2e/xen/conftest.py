"""The two Xen hosts that these tests share, Entourage on them, and a guest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from lab.xen.hosts import XenLab
from lab.xen.wheels import install
from tests.e2e.xen.world import LOG, XenWorld

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@pytest.fixture(scope="session")
def session_world() -> Generator[XenWorld]:
    """Boot both hosts, put Entourage on them from its wheels, and start the guest on a."""
    with XenLab.up() as lab:
        install((lab.a, lab.b))
        yield XenWorld.begin(lab)


@pytest.fixture
def world(session_world: XenWorld, has_failed: Callable[[], bool]) -> Generator[XenWorld]:
    """Return the guest and its hosts; after a test that failed, the guest begins anew on a."""
    for host in (session_world.here, session_world.there):
        host.run(["rm", "-f", LOG])
    yield session_world
    if has_failed():
        sys.stdout.write(session_world.what_is_there())
        session_world.start_over()
