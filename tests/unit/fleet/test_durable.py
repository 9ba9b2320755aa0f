"""Campaigns by a real DBOS, in a real SQLite file; what runs one is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entourage.errors import EntourageError
from entourage.fleet.campaign import Phase
from entourage.fleet.database import open_engine
from entourage.fleet.durable import Durable, controller_name
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, MoveState, Plan
from entourage.settings.model import PathSettings, Settings

MOVE = Move(name="web1", uuid="u", source="a", target="b")


class Runner:
    """Runs a campaign by saying that all of it has moved, or fails."""

    def __init__(self, store: Store, owner: str) -> None:
        self.store, self.owner = store, owner
        self.fails = ""
        self.ran: list[str] = []

    async def drive(self, name: str) -> Phase:
        self.ran.append(name)
        self.store.claim(name, self.owner)
        if self.fails:
            raise EntourageError(self.fails)
        self.store.save(name, MoveState(move=MOVE, status="moved"), owner=self.owner)
        self.store.phase(name, "ended", owner=self.owner, reason="", in_a_row=0)
        return "ended"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))
    with store.planning() as planning:
        planning.add("c", Spec(plan=Plan(moves=[MOVE])))
    return store


async def test_one_runs_once_and_one_that_failed_again(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what failed is an error of ours, without a traceback on anybody's terminal."""
    runner: Any = Runner(store, "me")
    runner.fails = "a does not answer"
    async with Durable.open(runner, "me") as durable:
        with pytest.raises(EntourageError, match=r"cannot go on: .*a does not answer") as raised:
            await durable.run("c")
        assert "`entourage campaign resume c`" in raised.value.remedy
    assert store.living(10) == []  # nothing of it is left to be taken over
    runner.fails = ""
    async with Durable.open(runner, "me") as durable:
        assert await durable.run("c") == "ended"
        assert [state.status async for state in durable.watch("c")] == ["moved"]
    assert runner.ran == ["c", "c"]
    assert capfd.readouterr().err == ""


def test_controllers_of_one_host_have_names_of_their_own(tmp_path: Path) -> None:
    """Of one that has ended the next one has the name, and goes on with what it ran."""
    settings = Settings(paths=PathSettings(run=str(tmp_path)))
    with controller_name(settings) as first, controller_name(settings) as second:
        assert first != second
    with controller_name(settings) as third:
        assert third == first
