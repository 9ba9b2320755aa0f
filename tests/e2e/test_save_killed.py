"""Who saves or restores a guest is killed: there is a save, or a guest, never both or none."""

from __future__ import annotations

import json

import pytest

from tests.e2e.saves import (
    DIR,
    is_gone,
    killed_at,
    partial,
    ready,
    reasons,
    recovered,
    restore,
    save,
    save_without_room,
    wants_room,
    went_on,
    world,
)
from tests.e2e.world import World

__all__ = ["ready", "world"]


KILLED = [
    # Who is killed where, and what there is then: a save, or a guest that runs.
    ("entourage", "source.step-started.2", "guest"),
    ("agent", "target.after.flush-go", "save"),
    pytest.param("entourage", "source.after.flush-armed", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "save", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), KILLED)
def test_killed_while_it_is_saved(ready: World, victim: str, point: str, left: str) -> None:
    world = ready
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
    killed_at(world, argv, victim, point)
    recovered(world)
    assert world.here.path(DIR).exists() == (left == "save")
    assert not partial(world)
    if left == "save":
        is_gone(world)
        went_on(world, restore(world))
    world.lives()


RESTORED = [
    pytest.param("entourage", "source.after.disarm-deadman", "save", marks=pytest.mark.matrix),
    ("agent", "target.after.flush-go", "guest"),
    pytest.param("entourage", "source.after.flush-armed", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), RESTORED)
def test_killed_while_it_is_restored(ready: World, victim: str, point: str, left: str) -> None:
    world = ready
    assert save(world).status == 0
    argv = ["entourage", "restore", "--json", "--tool", str(world.tool()), "--", DIR]
    killed_at(world, argv, victim, point)
    if point == "source.after.disarm-deadman":
        lost = restore(world, host=world.there)
        assert f"is being restored on {world.here.name}" in reasons(lost), str(lost)
    recovered(world)
    if left == "save":
        is_gone(world)  # nothing is left of the one that was to go on, nor of its TPM
        went_on(world, restore(world))
    world.lives()
    assert json.loads(world.here.path(f"{DIR}/claim.json").read_text())["restored"]


def test_killed_with_the_storage_full(ready: World) -> None:
    """The guest goes on once `recover` has removed what was saved, on the storage of its disks."""
    world = ready
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
    done = save_without_room(world.here, argv, lambda: wants_room(world), killed=True)
    assert done.status == 4, str(done)
    assert partial(world)
    assert wants_room(world)
    recovered(world)
    assert not partial(world)
    assert not world.here.path(DIR).exists()
    world.lives()
