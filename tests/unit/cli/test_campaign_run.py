"""What a terminal does about campaigns that it runs beside its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from entourage.cli import campaign_run, campaigns
from entourage.cli.campaign_run import Others, left, pause
from entourage.cli.campaign_shown import Screen
from entourage.fleet import outage
from entourage.fleet.campaign import Wish
from entourage.fleet.database import DatabaseAwayError, open_engine
from entourage.fleet.spec import Summary
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, MoveState, Plan
from entourage.hosts.threads import in_thread
from entourage.settings.model import PathSettings, Settings
from tests.unit.eventually import eventually

MOVE = Move(name="web1", uuid="u", source="a", target="b")


class Durable:
    """Runs what a test says; each look at it is one of a list."""

    def __init__(self, *looks: Sequence[str]) -> None:
        self._looks = [set(look) for look in looks]

    async def pending(self) -> set[str]:
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_run, "_LOOK_EVERY", 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    store = Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))
    with store.planning() as planning:
        for name in ("mine", "other"):
            planning.add(name, Spec(plan=Plan(moves=[MOVE])))
    yield store
    store.engine.dispose()


def others(store: Store, *looks: Sequence[str]) -> Others:
    durable: Any = Durable(*looks)
    return Others(durable, store, "mine", Screen(store, "mine"))


async def test_what_goes_on_here_is_waited_for(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = others(store, ["mine", "other"], ["other"], ["mine"])
    await beside.wait([])
    assert capsys.readouterr().err == (
        "entourage: other, which was begun before, goes on here and is waited for (Ctrl-C leaves"
        " it)\n"
    )
    assert await beside.names() == set()


async def test_what_is_paused_is_waited_for_only_while_something_moves(store: Store) -> None:
    store.claim("other", "me")
    store.save("other", MoveState(move=MOVE, status="moves"), owner="me")
    store.wish("other", "pause")
    looks = [["other"], ["other"], []]
    await others(store, *looks).wait([])
    store.save("other", MoveState(move=MOVE), owner="me")
    beside = others(store, ["other"])
    await beside.wait([])
    assert await beside.names() == {"other"}


async def test_ctrl_c_leaves_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted: list[int] = []

    class Interrupts(Durable):
        async def pending(self) -> set[str]:
            interrupted.append(2)
            return {"other"}

    durable: Any = Interrupts([])
    await Others(durable, store, "mine", Screen(store, "mine")).wait(interrupted)
    assert "is waited for" in capsys.readouterr().err


async def test_who_interrupts_leaves_once_it_is_paused_and_nothing_moves(store: Store) -> None:
    """The database may be slow: to say so is a thread's, and the terminal hears Ctrl-C again."""
    store.claim("mine", "me")
    store.save("mine", MoveState(move=MOVE, status="moves"), owner="me")
    interrupted: list[int] = []
    may_answer = threading.Event()

    def pause() -> None:
        may_answer.wait()
        store.wish("mine", "pause")

    pausing = [in_thread(pause)]
    leaving = asyncio.create_task(left(store, "mine", interrupted, pausing))
    again = asyncio.create_task(left(store, "mine", [2, 2], pausing))
    await again  # without either
    interrupted.append(2)
    store.save("mine", MoveState(move=MOVE), owner="me")
    _, waits = await asyncio.wait({leaving}, timeout=0.2)
    assert waits == {leaving}
    store.save("mine", MoveState(move=MOVE, status="moves"), owner="me")
    may_answer.set()
    await pausing[0]
    _, waits = await asyncio.wait({leaving}, timeout=0.2)
    assert waits == {leaving}
    store.save("mine", MoveState(move=MOVE), owner="me")
    await leaving
    assert store.summary("mine").wish == "pause"


class Fails:
    """Fails by what a test says as something is wished for, one after the other; then it does it.

    Attributes:
        asked: How often it was wished for.
    """

    def __init__(self, store: Store, *fails: Exception) -> None:
        self._wish, self._fails, self.asked = store.wish, list(fails), 0

    def __call__(self, name: str, wish: Wish) -> None:
        self.asked += 1
        if self._fails:
            raise self._fails.pop(0)
        self._wish(name, wish)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "_LOOK_AGAIN", 0.01)


AWAY = DatabaseAwayError("the fleet's database: no route", remedy="see it")


async def test_a_pause_is_wished_for_until_the_database_has_heard_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "wish", Fails(store, AWAY, AWAY))
    await pause(store, "mine")
    assert store.summary("mine").wish == "pause"
    assert capsys.readouterr().err == (
        "entourage: pausing mine: the fleet's database: no route (see it): it is waited for\n"
        "entourage: pausing mine: the fleet's database answers again: it goes on\n"
        "entourage: mine is paused now\n"
    )
    await pause(store, "mine")
    assert capsys.readouterr().err == ""


async def test_a_pause_that_is_never_heard_is_told_and_raised_by_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outage, "_WAITS", -1.0)
    wish = Fails(store, AWAY, AWAY)
    monkeypatch.setattr(store, "wish", wish)
    await pause(store, "mine")
    assert (wish.asked, store.summary("mine").wish) == (1, "run")
    said = "entourage: mine is not paused: the fleet's database: no route (see it)\n"
    assert capsys.readouterr().err.endswith(said)
    monkeypatch.undo()
    store.wish("mine", "abort")
    await pause(store, "mine")  # a campaign that is being aborted is not paused
    said = capsys.readouterr().err
    assert said.startswith("entourage: mine is not paused: mine is being aborted")


class Runs:
    """Runs a campaign in which nothing moves until the terminal leaves; Ctrl-C is heard at once."""

    def __init__(self, again: Callable[[], bool] | None = None) -> None:
        self._again = again

    @contextlib.asynccontextmanager
    async def open(self, *_: object) -> AsyncGenerator[Runs]:
        yield self

    async def run(self, _name: str) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        if self._again is not None:
            await eventually(self._again)
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        return ""

    async def pending(self) -> set[str]:
        return {"mine"}


class Terminal:
    """What a command was given."""

    def __init__(self, paths: Path) -> None:
        self.settings = Settings(paths=PathSettings(state=str(paths), run=str(paths)))
        self.remote = None


def test_ctrl_c_pauses_it_also_where_the_database_is_away(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(campaign_run, "Durable", Runs())
    monkeypatch.setattr(store, "wish", Fails(store, AWAY, AWAY))
    terminal: Any = Terminal(tmp_path)
    assert campaign_run.run(terminal, store, "mine") == 4
    told = capsys.readouterr()
    assert [line.split(":")[1].strip() for line in told.err.splitlines()] == [
        "nothing more is begun; what moves is waited for (again",
        "pausing mine",
        "pausing mine",
        "mine is paused now",
    ]
    assert "it is paused; `entourage campaign resume mine`" in told.out
    assert store.summary("mine").wish == "pause"


def test_who_leaves_before_that_was_heard_is_told_so(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wish = Fails(store, *[AWAY] * 10_000)
    monkeypatch.setattr(campaign_run, "Durable", Runs(lambda: wish.asked > 1))
    monkeypatch.setattr(store, "wish", wish)
    terminal: Any = Terminal(tmp_path)
    assert campaign_run.run(terminal, store, "mine") == 4
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == (
        "entourage: whether mine is paused is not known: `entourage campaign pause mine`"
    )
    assert "it is not over; `entourage campaign resume mine` goes on with it" in told.out


def test_a_bug_of_what_pauses_it_is_raised(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_run, "Durable", Runs())
    monkeypatch.setattr(store, "wish", Fails(store, RuntimeError("a bug")))
    terminal: Any = Terminal(tmp_path)
    with pytest.raises(RuntimeError, match="a bug"):
        campaign_run.run(terminal, store, "mine")


def test_who_watches_waits_for_a_database_that_is_away(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outage, "_LOOK_AGAIN", 0.01)
    summary, looks = store.summary, list[str]()

    def away(name: str) -> Summary:
        looks.append(name)
        if len(looks) < 3:
            raise DatabaseAwayError("the fleet's database: no route")
        if len(looks) == 3:
            store.claim("mine", "me")
            store.save("mine", MoveState(move=MOVE, status="moved"), owner="me")
            store.phase("mine", "ended", owner="me", reason="", in_a_row=0)
        return summary(name)

    monkeypatch.setattr(store, "summary", away)

    class Asked:
        def store(self) -> Store:
            return store

    asked: Any = Asked()
    assert campaigns.watch(asked, "mine") == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("entourage: note: mine: the fleet's database: no route: it is waited")
    assert said[1] == "entourage: note: mine: the fleet's database answers again: it goes on"
    assert said[2].startswith("web1 moved to b")
