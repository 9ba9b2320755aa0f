"""The power is cut while a guest is saved or restored: what was not on the disk is lost."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.saves import KEPT, cut_power, names, recovered, run
from tests.e2e.world import World

DIR = "/srv/cut"

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest that is saved on the disk of its host."""
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen, "saved6", disks=("/srv/s6.raw",))
        world.kept = (*world.kept, *KEPT, f"{DIR}*")  # type: ignore[misc] - of this one
        yield world
        world.end()
        for host in (world.here, world.there):
            host.run(["sh", "-c", f"rm -rf {' '.join(KEPT)}"])


@pytest.fixture
def ready(world: World) -> Generator[World]:
    world.lives()
    yield world
    world.here.run(["rm", "-rf", DIR])


def cut(world: World, point: str, *words: str) -> None:
    """Cut the power of the host at a point of a command; it boots again, and is recovered."""
    cut_power(world, point, words)
    recovered(world)
    left = [name for name in names(world.here, "/srv") if name.endswith(".partial")]
    assert not left


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("source.step-started.2", "guest"),
        ("source.memory-landed", "guest"),
        ("target.after.flush-go", "save"),
        ("source.go-sent", "save"),
    ],
)
def test_while_it_is_saved(ready: World, point: str, left: str) -> None:
    """There is a whole save, which is restored; or none, and the guest is started from its disk."""
    world = ready
    cut(world, point, "save", "--", world.name, DIR)
    assert world.here.path(DIR).exists() == (left == "save")
    if left == "save":
        assert names(world.here, DIR) == ["manifest.json", "memory"]
        done = run(world, "restore", "--", DIR)
        assert done.status == 0, str(done)
        world.lives()
    else:
        world.restart()


@pytest.mark.parametrize(
    ("point", "left"),
    [("source.after.disarm-deadman", "save"), ("target.after.flush-go", "guest")],
)
def test_while_it_is_restored(ready: World, point: str, left: str) -> None:
    """The claim is given up, and it is restored; or the guest had run, and is started again."""
    world = ready
    assert run(world, "save", "--", world.name, DIR).status == 0
    cut(world, point, "restore", "--", DIR)
    assert (world.here.path(DIR) / "claim.json").exists() == (left == "guest")
    if left == "save":
        done = run(world, "restore", "--", DIR)
        assert done.status == 0, str(done)
        world.lives()
    else:
        world.restart()
