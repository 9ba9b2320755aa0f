"""The link falls silent before the guest's stop, which libvirt's QEMU would wait for in its loop.

Also the target's QEMU, in the moment in which the copies of the disks are connected to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.e2e.dying import PRE_COPY
from tests.e2e.faults.inflict import kill
from tests.e2e.faults.matrix import POINTS
from tests.e2e.libvirt.world import QEMU, LibvirtWorld
from tests.e2e.silent import GUEST_WAITS, Silence, interrupted, left_alone

PREPARED = POINTS["prepared"]  # QEMU connects the copies next
COPYING = "source.copy-progress"
SLOWLY = ("--bandwidth", "20MiB/s")
SILENCES = [
    Silence(PREPARED, "data"),
    *(
        pytest.param(case, marks=pytest.mark.matrix)
        for case in (
            Silence(POINTS["test"], undoes=False),
            Silence(POINTS["armed"]),
            Silence(POINTS["opened"]),
            Silence(POINTS["prepare"]),
            Silence(PREPARED),
            Silence(COPYING),
            Silence(COPYING, "data"),
            Silence(PRE_COPY),
            Silence(PRE_COPY, "data"),
        )
    ),
]


@pytest.mark.parametrize("case", SILENCES, ids=str)
def test_interrupted_while_the_link_is_silent(world: LibvirtWorld, case: Silence) -> None:
    interrupted(world, case, options=SLOWLY)


def test_the_way_closes_before_the_copies_are_connected(world: LibvirtWorld) -> None:
    """TEST has proven it; QEMU waits in its main loop for what does not answer."""
    run = left_alone(world, Silence(PREPARED, "data"))
    assert "fell silent while the copies of the disks were connected" in run.finished["message"]


@pytest.mark.matrix
def test_the_link_falls_silent_while_disks_are_copied(world: LibvirtWorld) -> None:
    left_alone(world, Silence(COPYING), options=SLOWLY)


@pytest.mark.matrix
def test_the_targets_qemu_greets_nobody(world: LibvirtWorld) -> None:
    """Its host takes the connection, and it says nothing."""
    mark = world.seen.mark()
    with world.under(PREPARED, "source.rollback-started") as under:
        under.wait(PREPARED)
        assert kill(world, world.there, _is_qemu, "STOP")
        under.pass_on(PREPARED)
        under.wait("source.rollback-started")
        kill(world, world.there, _is_qemu, "CONT")
        run = under.end()
    gap = world.seen.longest_gap(mark).seconds
    world.stayed(run)
    assert "fell silent while the copies of the disks were connected" in run.finished["message"]
    assert gap < GUEST_WAITS, f"the guest stood still for {gap:.2f} s\n{run}"


def _is_qemu(words: Sequence[str]) -> bool:
    return words[0] == QEMU
