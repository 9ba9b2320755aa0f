"""What others do to the domain with virsh meanwhile: never do two machines run."""

from __future__ import annotations

import time

import pytest

from lab.libvirtd import LOCAL, Libvirtd
from tests.e2e.dying import (
    GO_SAID,
    GO_STANDS,
    HELD,
    LANDED,
    LETTING_GO,
    PRE_COPY,
    RELEASED,
    STOPPED,
    Case,
    settle,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE

SLOWLY = ("--bandwidth", "20MiB/s")  # disks come first, at the same pace


@pytest.mark.matrix  # virsh waits half a minute for libvirt's job before it gives up
@pytest.mark.parametrize("point", [STOPPED, LANDED, HELD, GO_SAID, GO_STANDS, RELEASED, LETTING_GO])
def test_a_foreign_resume(world: LibvirtWorld, point: str) -> None:
    """It waits for libvirt's job, is refused, or is noticed before GO; the guest runs once."""
    here = [point] if point.startswith("source.") else []
    there = [point] if point.startswith("target.") else []
    source = world.here
    with world.under(*here, on_target=there) as under:
        under.wait(point)
        resume = source.popen(["virsh", "--connect", LOCAL, "resume", world.name])
        run = under.end()
        resume.communicate(timeout=PATIENCE)
    settle(world, Case("resume", point, "either"), run)
    world.moved(world.migrate())


@pytest.mark.matrix
def test_a_foreign_abort(world: LibvirtWorld) -> None:
    """`virsh domjobabort` while memory is copied: a failure like any other."""
    with world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        Libvirtd(world.here).virsh("domjobabort", world.name)
        run = under.end()
    world.stayed(run)


@pytest.mark.matrix
def test_the_client_stands_still_meanwhile(world: LibvirtWorld) -> None:
    """Stopped by job control until libvirt has stopped the guest by itself: it goes on."""
    with world.under(PRE_COPY) as under:
        under.wait(PRE_COPY)
        under.signal("STOP")
        under.pass_on(PRE_COPY)
        deadline = time.monotonic() + PATIENCE
        while world.domains(world.here) == {world.name: "running"}:
            assert time.monotonic() < deadline
            time.sleep(0.02)  # virsh has no word for waiting for that
        under.signal("CONT")
        run = under.end()
    world.moved(run)
