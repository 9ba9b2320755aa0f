"""A guest goes back on another host to what it was, by a checkpoint that was made there."""

from __future__ import annotations

import pytest

from tests.e2e.saves import run
from tests.e2e.test_checkpoint import (
    CHECKPOINT,
    DIR,
    out_of_the_way,
    ready,
    restore,
    went_back,
    world,
)
from tests.e2e.world import World

__all__ = ["ready", "world"]


@pytest.mark.matrix
def test_back_to_what_it_was_on_another_host(ready: World) -> None:
    """Its disks are on this host alone, and are copied by the agent there."""
    world = ready
    there = f"{world.there.name}:{DIR}"
    done = run(world, *CHECKPOINT, "--tool", str(world.tool()), "--", world.name, there)
    assert done.status == 0, str(done)
    world.lives()
    assert not world.here.path(DIR).exists()
    # It is older than what is recorded of it since.
    late = world.migrate("--tool", str(world.tool()), "--max-blackout", "1ms")
    assert late.status == 4, str(late)
    world.here.run(["entourage", "stop", "--force", world.name])
    out_of_the_way(world)
    world.here, world.there = world.there, world.here
    went_back(world, restore(world, "--revert"))
