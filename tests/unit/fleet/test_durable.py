"""Campaigns by a real DBOS, in a real SQLite file; what runs one is a stand-in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.event
import sqlalchemy.exc
from dbos import DBOS
from dbos import error as dbos_errors

from entourage.errors import EntourageError, UsageError
from entourage.fleet import durable as module
from entourage.fleet import outage
from entourage.fleet.campaign import Phase
from entourage.fleet.database import DatabaseAwayError, open_engine
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
        self.notes: list[str] = []
        self.driven = set[str]()

    def note(self, _name: str, message: str) -> None:
        self.notes.append(message)

    def drives(self, name: str) -> bool:
        return name in self.driven

    async def drive(self, name: str) -> Phase:
        self.ran.append(name)
        self.store.claim(name, self.owner)
        if self.fails:
            raise EntourageError(self.fails)
        self.store.save(name, MoveState(move=MOVE, status="moved"), owner=self.owner)
        self.store.phase(name, "ended", owner=self.owner, reason="", in_a_row=0)
        return "ended"


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """DBOS's handler keeps the standard error of the first test, which is closed after it."""
    yield
    logging.getLogger("dbos").handlers.clear()


@pytest.fixture(autouse=True)
def ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sends a notice; as DBOS ends it waits until it has next looked for some."""
    monkeypatch.setattr(module, "_NOTICES_EVERY", 0.05)


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


@pytest.mark.parametrize("how", ["hangs", "is away", "is odd"])
async def test_a_database_that_goes_away(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """DBOS would try for ever: it is an error of ours, and a controller ends all the same."""
    runner: Any = Runner(store, "me")
    back = threading.Event()

    def fails(*_: Any, **__: Any) -> Any:
        if how == "hangs":
            back.wait()
        if how == "is odd":
            raise dbos_errors.DBOSException("a table is missing")
        raise sqlalchemy.exc.OperationalError("select", {}, Exception("no route"))

    try:
        async with Durable.open(runner, "me") as durable:
            store.beat("dead")
            monkeypatch.setattr(module, "SILENT_AFTER", -1)
            monkeypatch.setattr(module, "_ANSWERS_WITHIN", 0.2)
            for name in ("list_workflows", "get_workflow_status", "resume_workflow"):
                monkeypatch.setattr(DBOS, name, fails)
            for ask in (durable.pending, durable.take_over, lambda: durable.run("c")):
                with pytest.raises(EntourageError, match="the fleet's database: "):
                    await ask()
            # DBOS ends in a thread, which is not to end that of the next test.
            monkeypatch.setattr(module, "_ANSWERS_WITHIN", 60.0)
            back.set()
    finally:
        back.set()
    assert "me" in store.living(3600)  # nobody knows what it leaves: another one takes it over


async def test_no_question_to_the_database_holds_up_the_page(store: Store) -> None:
    runner: Any = Runner(store, "me")
    loops = threading.current_thread()
    asked: list[bool] = []

    def begun(_connection: object) -> None:
        asked.append(threading.current_thread() is loops)

    async with Durable.open(runner, "me") as durable:
        assert await durable.run("c") == "ended"
        asked.clear()
        sqlalchemy.event.listen(store.engine, "begin", begun)
        with pytest.raises(UsageError, match="c is over"):
            await durable.signal("c", "pause")
        assert [state.status async for state in durable.watch("c")] == ["moved"]
        assert await durable.take_over() == []
    async with Durable.open(runner, "me"):
        pass
    assert asked
    assert not any(asked)


@pytest.mark.parametrize("how", ["away", "silent", "here"])
async def test_who_only_looks_on_is_told_that_the_database_is_away(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """At once where it says so, else after some seconds; whoever runs it is told by what does.

    And waits for as long as it takes.
    """
    monkeypatch.setattr(outage, "_SAYS_SO_AFTER", 0.05)
    monkeypatch.setattr(outage, "_LOOK_AGAIN", 0.01)
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    runner: Any = Runner(store, "me")
    told = threading.Event()
    has, tries = store.has, list[str]()

    def note(_name: str, message: str) -> None:
        runner.notes.append(message)
        told.set()

    def asked(name: str) -> bool:
        tries.append(name)
        if len(tries) <= 3:
            if how != "silent":
                raise DatabaseAwayError("the fleet's database: no route")
            assert told.wait(10)
        return has(name)

    runner.note = note
    if how == "here":
        runner.driven = {"c"}
        monkeypatch.setattr(outage, "_WAITS", -1.0)  # it is not given up
    async with Durable.open(runner, "me") as durable:
        monkeypatch.setattr(store, "has", asked)
        assert await durable.run("c") == "ended"
    if how == "here":
        assert runner.notes == []
        return
    why = {"away": "the fleet's database: no route", "silent": "has not answered for 0.05 s"}[how]
    assert why in runner.notes[0]
    assert runner.notes[0].endswith(": it is waited for")
    assert runner.notes[1:] == ["the fleet's database answers again: it goes on"]


async def test_who_ends_tries_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DBOS itself tries ends with it; there is only an attribute of its own for that."""
    runner: Any = Runner(store, "me")
    tries: list[bool] = []
    name = "_try_no_more"
    really: Callable[[DBOS], None] = getattr(module, name)

    def still(made: object) -> bool:
        for name in ("_sys_db_field", "_retry_connection_errors"):
            made = getattr(made, name)
        return made is True

    def try_no_more(made: DBOS) -> None:
        tries.append(still(made))
        really(made)
        tries.append(still(made))

    def pending(*_: Any, **__: Any) -> list[Any]:
        assert tries == [True, False], "it is not to be waited for"
        return []

    monkeypatch.setattr(module, name, try_no_more)
    monkeypatch.setattr(DBOS, "list_workflows", pending)
    async with Durable.open(runner, "me"):
        pass
    assert tries[:2] == [True, False]


def test_controllers_of_one_host_have_names_of_their_own(tmp_path: Path) -> None:
    """Of one that has ended the next one has the name, and goes on with what it ran."""
    settings = Settings(paths=PathSettings(run=str(tmp_path)))
    with controller_name(settings) as first, controller_name(settings) as second:
        assert first != second
    with controller_name(settings) as third:
        assert third == first
