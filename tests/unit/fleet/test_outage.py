"""What is said while the database is away, and how long it is waited for."""

from __future__ import annotations

import asyncio

import pytest

from entourage.fleet import outage as module
from entourage.fleet.database import DatabaseAwayError, NotLetInError
from entourage.fleet.outage import Outage

AGAIN = "the fleet's database answers again: it goes on"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0)
    monkeypatch.setattr(module, "_SAYS_SO_AFTER", 0.02)


class Database:
    """Fails by what a test says, one after the other; then it answers."""

    def __init__(self, *fails: DatabaseAwayError) -> None:
        self._fails = list(fails)

    async def ask(self) -> str:
        if self._fails:
            raise self._fails.pop(0)
        return "answer"


@pytest.mark.parametrize("drives", [True, False])
async def test_each_reason_is_said_once_and_what_it_means_here(*, drives: bool) -> None:
    notes: list[str] = []
    away, shut = DatabaseAwayError("no route"), NotLetInError("no such user")
    outage = Outage(notes.append, lambda: drives)
    assert await outage.through(Database(away, away, shut, away).ask) == "answer"
    what = "it is waited for, and nothing more is begun" if drives else "it is waited for"
    assert notes == [f"no route: {what}", f"no such user: {what}", AGAIN]


async def test_why_is_said_also_after_it_was_said_that_there_is_no_answer() -> None:
    notes: list[str] = []
    may_end = asyncio.Event()
    database = Database(DatabaseAwayError("no route"))

    def note(message: str) -> None:
        notes.append(message)
        may_end.set()

    async def ask() -> str:
        await may_end.wait()
        return await database.ask()

    assert await Outage(note).through(ask) == "answer"
    silent = "the fleet's database has not answered for 0.02 s: it is waited for"
    assert notes == [silent, "no route: it is waited for", AGAIN]


async def test_who_only_looks_on_gives_up_and_who_runs_it_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_WAITS", -1.0)
    away = [DatabaseAwayError("no route")] * 9
    with pytest.raises(DatabaseAwayError, match="no route"):
        await Outage(lambda _: None).through(Database(*away).ask)
    notes: list[str] = []
    assert await Outage(notes.append, lambda: True).through(Database(*away).ask) == "answer"
    assert notes[-1] == AGAIN
