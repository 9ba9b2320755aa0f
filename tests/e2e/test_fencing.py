"""A host that is declared off for good, truly or not, and that comes back all the same."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest

from lab import settings
from lab.host import Host
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.faults.inflict import Fault
from tests.e2e.run import PATIENCE, Run
from tests.e2e.world import KEPT, World

QUICK = f'[migration]\nlink-silence = "3s"\ndoubt-timeout = "5s"\n{settings.SETTINGS}'
CONFIG = "/etc/entourage/entourage.toml"


@pytest.fixture
def world(lab: Lab, a: Host, b: Host) -> Generator[World]:
    for host in (a, b):
        host.write_files({CONFIG: QUICK})
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen)
        yield world
        world.end()
    for host in (a, b):
        host.write_files({CONFIG: settings.SETTINGS})


def entourage(host: Host, *words: str) -> tuple[int, str]:
    done = host.run(["entourage", *words], check=False, timeout=PATIENCE)
    return done.returncode, done.stdout + done.stderr


def standing(host: Host) -> list[dict[str, Any]]:
    return json.loads(host.run(["entourage", "status", "--json"]).stdout)


def test_a_fenced_target_comes_back(world: World) -> None:
    a, b = world.here, world.there
    # Before the guest has run there: what it did on b would be lost with the user's word.
    run = handed_over(world, "target.after.flush-go", "target-host")
    assert run.status == 6, str(run)
    status, said = entourage(a, "recover")
    assert status == 6, said
    assert "b cannot be reached: what it decided is not known" in said
    status, said = entourage(a, "recover", "web1", "--target-is-fenced")
    assert status == 0, said
    world.lives()

    b.power_on()
    world.booted(b)
    # It was told to run the guest, and cannot know that this was taken back.
    assert "`entourage recover web1` first" in entourage(b, "start", "web1")[1]
    status, said = entourage(b, "recover")
    assert status == 5, said
    assert "`entourage recover` on a" in entourage(b, "start", "web1")[1]
    refused = world.migrate()
    assert refused.status == 3, str(refused)
    assert "run `entourage recover web1` on a" in refused.refusals["domain"]
    [known] = standing(a)
    assert "whether b knows that is not certain" in known["meaning"]

    status, said = entourage(a, "recover")
    assert (status, standing(a), standing(b)) == (0, [], []), said
    left = b.wait_clean(world.clean["b"], ignore=KEPT)
    assert not left, left
    world.moved(world.migrate())


@pytest.mark.matrix
def test_a_target_that_was_not_off_after_all(world: World) -> None:
    a, b = world.here, world.there

    run = handed_over(world, "target.after.flush-go", "link-drop")
    assert run.status == 6, str(run)
    status, said = entourage(a, "recover", "web1", "--target-is-fenced")
    assert status == 0, said
    world.lives()

    world.lab.mend("a", "b")
    status, said = entourage(a, "recover")
    assert "ALARM: web1 ran there although that host was declared off; it was stopped" in said
    [known] = standing(b)
    assert (known["record"], known["guest"]) == ("fenced", "paused")
    world.lab.mend("b", "client")
    world.lives()
    status, said = entourage(b, "recover")
    assert (status, standing(a), standing(b)) == (0, [], []), said
    left = b.wait_clean(world.clean["b"], ignore=KEPT)
    assert not left, left
    world.moved(world.migrate())


def handed_over(world: World, point: str, fault: str) -> Run:
    """A migration that is struck after GO; what it ended with."""
    strike = Fault(world, fault, point)
    with world.under(on_target=[point]) as under:
        under.wait(point)
        if fault == "link-drop":
            world.lab.cut("b", "client")  # two copies of one guest would quarrel over its address
        strike.inflict(under)
        return under.end()
