"""`entourage` on the source is frozen, and not dead: its deadman resumes the guest in time."""

from __future__ import annotations

import pytest

from tests.e2e.dying import LANDED, STOPPED
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE

BUDGET = 2  # seconds


@pytest.mark.parametrize("point", [LANDED, pytest.param(STOPPED, marks=pytest.mark.matrix)])
def test_a_frozen_client_holds_the_guest_no_longer_than_its_budget(
    world: LibvirtWorld, point: str
) -> None:
    """Until then libvirt goes on by itself, as far as to the end of Perform."""
    with world.under(point, options=("--max-blackout", f"{BUDGET}s")) as under:
        under.wait(point)
        began = world.seen.mark()
        under.signal("STOP")
        under.open()
        world.seen.wait_answer(PATIENCE)
        gap = world.seen.longest_gap(began).seconds
        under.signal("CONT")
        run = under.end()
    assert gap < BUDGET + 1, f"{gap} s without the guest\n{run}"
    world.stayed(run)
