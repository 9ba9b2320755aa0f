"""What a terminal does about campaigns that it runs beside its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from entourage.cli import campaign_run, campaigns
from entourage.cli.campaign_run import Others, left
from entourage.cli.campaign_shown import Screen
from entourage.fleet import outage
from entourage.fleet.database import DatabaseAwayError, open_engine
from entourage.fleet.spec import Summary
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, MoveState, Plan
from entourage.hosts.threads import in_thread

MOVE = Move(name="web1", uuid="u", source="a", target="b")


class Durable:
    """Runs what a test says; each look at it is one of a list."""

    def __init__(self, *looks: Sequence[str]) -> None:
        self._looks = [set(look) for look in looks]

    async def pending(self) -> set[str]:
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]


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


async def test_who_interrupts_leaves_once_it_is_paused_and_nothing_moves(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database may be slow: to say so is a thread's, and the terminal hears Ctrl-C again."""
    monkeypatch.setattr(campaign_run, "_LOOK_EVERY", 0.01)
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
