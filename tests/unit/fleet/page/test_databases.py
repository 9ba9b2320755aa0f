"""The page, the metrics and what is kept say the same from SQLite and from PostgreSQL."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from entourage.fleet.database import open_engine
from entourage.fleet.homes import at_home
from entourage.fleet.page import metrics
from entourage.fleet.page.views import Views
from entourage.fleet.records import Hearing, Records
from entourage.fleet.spec import Spec
from entourage.fleet.store import Store
from entourage.fleet.values import Host, Limits, Move, MoveState, Obstacle, Plan, Stay
from tests.postgres import Postgres
from tests.unit.fleet.conftest import emptied
from tests.unit.fleet.page.world import World

WHY = Obstacle(constraint="test", hosts=["b"], count=1, reason="nö ☃", remedy="")
# What English and the order of bytes put elsewhere: capitals, a dash, digits, an umlaut.
UUIDS = ("a-2", "B-1", "a1", "ä", "Z", "b", "-c", "_d")
NAMES = ("first", "second", "of nobody")


def moves(campaign: str) -> list[Move]:
    return [
        Move(name=f"{campaign} {uuid}", uuid=uuid, source="a", target="bc"[number % 2], memory=1)
        for number, uuid in enumerate(UUIDS)
    ]


def fill(store: Store) -> None:
    """Two campaigns with each kind of move, what was heard of them, and who did what."""
    records = Records(store.engine)
    for name in NAMES:
        stays = [Stay(name="odd", uuid="s", host="a", why=[WHY])]
        hosts = [Host(name="b", memory=8, free=4), Host(name="c", memory=8, free=0, closed="x")]
        plan = Plan(hosts=["a"], moves=moves(name), stays=stays)
        refused = [("s", "b", "nö ☃", "")]
        with store.planning() as planning:
            planning.add(name, Spec(plan=plan, limits=Limits(), hosts=hosts, refused=refused))
        records.say(name, "alice", "began it")
    for owner in ("one", "two"):
        store.beat(owner)
    for name, owner in zip(NAMES, ("one", "two"), strict=False):
        store.claim(name, owner)
        hearing = Hearing(records, name)
        ends: list[tuple[str, float | None]] = [
            ("moved", 0.25), ("moved", 0.5), ("stays", None), ("doubt", None), ("off", None),
            ("elsewhere", None),
        ]  # fmt: skip
        for move, (status, blackout) in zip(moves(name), ends, strict=False):
            begun = MoveState(move=move, status="moves", attempts=1)
            store.save(name, begun, owner=owner)
            hearing.changed(begun)
            hearing.heard(move, {"event": "guest-stopped", "at": 1.0})
            ended = MoveState(move=move, status=status, attempts=1, blackout=blackout)  # type: ignore[arg-type]
            store.save(name, ended, owner=owner)
            hearing.changed(ended)
        *_, last = moves(name)
        begun = MoveState(move=last, status="moves", attempts=1)
        store.save(name, begun, owner=owner)
        hearing.changed(begun)
        records.progress(name, last.uuid, "memory", 50)
        store.phase(name, "runs", owner=owner, reason="", in_a_row=1)
    store.wish("second", "pause")
    store.phase("second", "paused", owner="two", reason="", in_a_row=0)


class Filled:
    """A database, and all that is asked of it."""

    def __init__(self, url: str) -> None:
        self.store = Store(open_engine(url))
        self.records = Records(self.store.engine)
        self.views = Views(self.store, self.records)
        fill(self.store)

    def pages(self, addresses: Sequence[str], path: Path) -> dict[str, str]:
        """What the page shows, by the address; forms without what is another one in each."""
        path.mkdir()
        world = World(path)
        world.store.engine.dispose()
        world.store, world.records = self.store, self.records
        client = world.client("alice")
        return {
            address: re.sub(r'name="token" value="[^"]+"', "", client.get(address).text)
            for address in addresses
        }


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, server: Postgres
) -> Generator[tuple[Filled, Filled]]:
    """The same has happened in both, at the same moments; and time stands still."""
    path = tmp_path_factory.mktemp("both")
    found: list[Filled] = []
    with pytest.MonkeyPatch.context() as patched:
        for url in (f"sqlite:///{path}/fleet.db", emptied(server)):
            ticks = itertools.count(1_700_000_000)
            patched.setattr(time, "time", partial(_next, ticks))
            found.append(Filled(url))
        patched.setattr(time, "time", lambda: 1_700_001_000.0)
        sqlite, postgres = found
        yield sqlite, postgres
    for each in found:
        each.store.engine.dispose()


def _next(ticks: Iterator[int]) -> float:
    return float(next(ticks))


QUESTIONS: dict[str, Callable[[Filled], Any]] = {
    "campaigns": lambda here: here.views.campaigns(),
    "summaries": lambda here: here.store.summaries(),
    "states": lambda here: {one.move.uuid: one for one in here.store.states("first")},
    "promised": lambda here: sorted(here.store.promised(), key=lambda one: (one.name, one.uuid)),
    "living": lambda here: sorted(here.store.living(2000)),
    "silent": lambda here: sorted(here.store.silent(15)),
    "in a row": lambda here: here.store.in_a_row("first"),
    "home": lambda here: at_home(here.store, "a"),
    "metrics": lambda here: metrics.exposed(here.store.engine, time.time(), ["a"], {}),
    "metrics of living": lambda here: metrics.exposed(here.store.engine, 1_700_000_020.0, [], {}),
    "history": lambda here: here.records.history("first", 1),
    "under way": lambda here: here.records.under_way("first"),
    "pace": lambda here: here.records.pace("first"),
    "pace of none": lambda here: here.records.pace("of nobody"),
    "events": lambda here: [
        here.records.events(one.number) for one in here.records.attempts(UUIDS[0])
    ],
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_is_the_same(both: tuple[Filled, Filled], question: str) -> None:
    ask = QUESTIONS[question]
    sqlite, postgres = map(ask, both)
    assert sqlite == postgres


def test_every_page_is_the_same(both: tuple[Filled, Filled], tmp_path: Path) -> None:
    """Also each part of a list that is shown in parts, and each status of moves."""
    statuses = ("", "moved", "stays", "doubt", "off", "elsewhere", "waits", "moves")
    campaign = [
        f"/campaigns/{name}?status={status}&first={first}"
        for name in NAMES
        for status in statuses
        for first in (0, 1, 5)
    ]
    plans = [f"/campaigns/{name}/plan?row={row}" for name in NAMES for row in (0, 3)]
    domains = [f"/domains/{uuid}" for uuid in UUIDS]
    addresses = ("/", *campaign, *plans, *domains, "/metrics", "/domains/none")
    sqlite, postgres = (
        each.pages(addresses, tmp_path / str(number)) for number, each in enumerate(both)
    )
    assert [one for one in addresses if sqlite[one] != postgres[one]] == []
    assert "first B-1" in sqlite["/campaigns/first?status=&first=0"]


@pytest.mark.parametrize("status", ["moved", None])
def test_moves_come_in_one_order_in_parts_as_in_whole(
    both: tuple[Filled, Filled], status: Any
) -> None:
    sqlite, postgres = (
        [
            one.move.uuid
            for first in range(len(UUIDS))
            for one in each.records.moves("first", status, first=first, most=1)
        ]
        for each in both
    )
    assert sqlite == postgres
    assert len(set(sqlite)) == len(sqlite) == (2 if status else len(UUIDS))
