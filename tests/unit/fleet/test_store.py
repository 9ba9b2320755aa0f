"""What is kept of campaigns, in a real SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import psycopg.errors
import pytest
import sqlalchemy as sa
import sqlalchemy.exc

from entourage.errors import EntourageError, UsageError
from entourage.fleet import database
from entourage.fleet.campaign import Wish
from entourage.fleet.database import DatabaseAwayError, open_engine
from entourage.fleet.records import Records
from entourage.fleet.slots import StoreSlots
from entourage.fleet.store import FencedError, Spec, Store
from entourage.fleet.values import Limits, Move, MoveState, Plan
from entourage.hosts.threads import InOrder


def takes(store: Store, name: str, move: Move, limits: Limits | None = None) -> bool:
    """Whether a campaign takes a slot for it."""
    slots = StoreSlots(store, name, "me", InOrder())
    return asyncio.run(slots.take(move, limits or Limits()))


def move(name: str, source: str = "a", target: str = "b") -> Move:
    return Move(name=name, uuid=name, source=source, target=target, memory=7)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/fleet.db"


@pytest.fixture
def store(url: str) -> Store:
    return Store(open_engine(url))


def begin(store: Store, name: str, *moves: Move) -> None:
    with store.planning() as planning:
        planning.add(name, Spec(plan=Plan(moves=moves)))
    store.claim(name, "me")


def test_a_campaign_is_kept(store: Store, url: str) -> None:
    begin(store, "c", move("x"), move("y"))
    state = MoveState(move=move("x", target="d"), status="moved", blackout=0.5)
    store.save("c", state, owner="me")
    store.phase("c", "stopped", owner="me", reason="why", in_a_row=3)
    again = Store(open_engine(url))
    assert again.spec("c").plan.moves == [move("x"), move("y")]
    assert state in again.states("c")
    summary = again.summary("c")
    assert (summary.phase, summary.reason, summary.owner) == ("stopped", "why", "me")
    assert summary.counts == {"moved": 1, "waits": 1}
    assert [one.name for one in again.summaries()] == ["c"]
    assert again.in_a_row("c") == 3
    with pytest.raises(UsageError, match="there is a campaign 'c' already"):
        begin(store, "c")
    with pytest.raises(UsageError, match="there is no campaign 'd'"):
        store.summary("d")


def test_slots_are_those_of_all_campaigns(store: Store) -> None:
    begin(store, "first", move("x"), move("y", target="c"))
    begin(store, "second", move("z", source="s"))
    limits = Limits(at_once=1)
    assert takes(store, "first", move("x"), limits)
    assert not takes(store, "first", move("y", target="c"), limits)  # one leaves a already
    assert not takes(store, "second", move("z", source="s"), limits)  # one arrives at b already
    store.save("first", MoveState(move=move("x"), status="moved"), owner="me")
    assert takes(store, "second", move("z", source="s"), limits)


def test_a_slot_that_was_taken_by_a_process_that_died_is_seen(store: Store) -> None:
    begin(store, "c", move("x"))
    assert takes(store, "c", move("x"))
    assert [one.status for one in store.states("c")] == ["moves"]


def test_who_was_thought_dead_begins_nothing(store: Store) -> None:
    begin(store, "c", move("x"))
    store.claim("c", "another")
    with pytest.raises(FencedError, match="run by another now"):
        takes(store, "c", move("x"))
    with pytest.raises(FencedError):
        store.standing("c", "me")
    with pytest.raises(FencedError):
        store.save("c", MoveState(move=move("x"), status="moved"), owner="me")
    with pytest.raises(FencedError):
        store.phase("c", "ended", owner="me", reason="", in_a_row=0)
    assert [one.status for one in store.states("c")] == ["waits"]
    assert store.standing("c", "another") == "run"


def test_of_two_of_one_name_the_first_is_fenced(store: Store, url: str) -> None:
    """Two processes may have had one name: the lock of it was taken away."""
    begin(store, "c", move("x"))
    other = Store(open_engine(url))
    other.claim("c", "me")
    with pytest.raises(FencedError, match="run by me now"):
        store.save("c", MoveState(move=move("x"), status="moved"), owner="me")
    with pytest.raises(FencedError):
        takes(store, "c", move("x"))
    assert other.standing("c", "me") == "run"
    assert store.summary("c").owner == "me"


def test_what_others_have_promised_is_known_while_one_plans(store: Store) -> None:
    begin(store, "c", move("x"), move("y"))
    store.save("c", MoveState(move=move("y"), status="moved"), owner="me")
    with store.planning() as planning:
        assert planning.promised() == [move("x")]


def test_what_one_that_is_over_has_left_waiting_is_promised_no_more(store: Store) -> None:
    begin(store, "c", move("x"), move("y"))
    takes(store, "c", move("x"))
    store.phase("c", "aborted", owner="me", reason="", in_a_row=0)
    with store.planning() as planning:
        assert planning.promised() == [move("x")]


def test_one_that_is_aborted_stays_so_and_one_that_is_paused_begins_nothing(store: Store) -> None:
    begin(store, "c", move("x"))
    store.wish("c", "pause")
    assert not takes(store, "c", move("x"))
    store.wish("c", "abort")
    wishes: tuple[Wish, Wish] = ("run", "pause")
    for wish in wishes:
        with pytest.raises(UsageError, match="is being aborted") as raised:
            store.wish("c", wish)
        assert "`entourage campaign resume c`" in raised.value.remedy
    assert store.summary("c").wish == "abort"
    store.phase("c", "aborted", owner="me", reason="", in_a_row=0)
    with pytest.raises(UsageError, match=r"is over \(aborted\)"):
        store.wish("c", "run")
    assert store.try_again("c") == 1
    assert store.summary("c").wish == "run"


def test_what_stayed_is_tried_again(store: Store) -> None:
    begin(store, "c", move("x"), move("y"))
    stays = MoveState(move=move("x"), status="stays", attempts=3, tried=("b",), message="why")
    store.save("c", stays, owner="me")
    store.save("c", MoveState(move=move("y"), status="moved"), owner="me")
    with pytest.raises(UsageError, match="is not over"):
        store.try_again("c")
    store.phase("c", "ended", owner="me", reason="", in_a_row=0)
    assert store.try_again("c") == 1
    fresh = msgspec.structs.replace(stays, status="waits", attempts=0, tried=())
    assert fresh in store.states("c")
    assert store.summary("c").phase == "runs"


def test_of_two_who_try_again_at_once_one_does(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second would say of a move that has begun meanwhile that it waits."""
    begin(store, "c", move("x"))
    store.save("c", MoveState(move=move("x"), status="stays"), owner="me")
    store.phase("c", "ended", owner="me", reason="", in_a_row=0)
    alone = store.alone

    def late() -> Any:
        monkeypatch.undo()
        assert store.try_again("c") == 1
        assert takes(store, "c", move("x"))
        return alone()

    monkeypatch.setattr(store, "alone", late)
    with pytest.raises(UsageError, match="is not over"):
        store.try_again("c")
    assert [one.status for one in store.states("c")] == ["moves"]


def test_controllers_that_are_silent(store: Store) -> None:
    store.beat("me")
    assert store.silent(10) == []
    assert store.silent(-1) == ["me"]
    store.gone("me")
    assert store.silent(-1) == []


def test_who_finds_all_tables_takes_no_lock(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`campaign list` waits for nobody who writes; what an older version has not made is made."""
    monkeypatch.setattr(database, "_BUSY", 1)
    begin(store, "c", move("x"))
    with store.alone():
        assert [one.name for one in Store(open_engine(url)).summaries()] == ["c"]
    with store.alone() as connection:
        connection.exec_driver_sql("drop table entourage_attempts")
    assert Records(Store(open_engine(url)).engine).attempts("x") == []


def test_tables_are_made_beside_nobody_else(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL has two who make the same one fail."""
    made: list[sa.Connection] = []
    taken = database.alone

    @contextlib.contextmanager
    def alone(engine: sa.Engine) -> Generator[sa.Connection]:
        with taken(engine) as connection:
            made.append(connection)
            yield connection

    monkeypatch.setattr(database, "alone", alone)
    Store(open_engine(url))
    Store(open_engine(url))
    assert len(made) == 1


def test_a_host_of_postgresql_that_is_away_is_soon_known_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the URL itself says counts; left to the kernel, it is a quarter of an hour."""
    asked: list[dict[str, Any]] = []

    make = sa.create_engine

    def create_engine(url: sa.URL, **more: Any) -> sa.Engine:
        asked.append({**url.query, **more["connect_args"]})
        return make("sqlite://")

    monkeypatch.setattr(sa, "create_engine", create_engine)
    open_engine("postgresql://u@h/d?connect_timeout=3")
    assert asked[0]["connect_timeout"] == "3"
    assert asked[0]["tcp_user_timeout"] == 30_000
    assert asked[0]["keepalives_idle"] == 10


def test_a_database_that_is_none() -> None:
    for url in ("nonsense", "mysql://x/y"):
        with pytest.raises(UsageError, match="--database"):
            open_engine(url)


def test_what_was_written_outlives_a_power_cut(store: Store) -> None:
    """A campaign has cordoned hosts, which it has to lift."""
    with store.engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
    assert mode == 2  # FULL


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (psycopg.OperationalError("connection refused"), True),
        (psycopg.errors.AdminShutdown("as the administrator wants"), True),
        (psycopg.errors.IdleInTransactionSessionTimeout("it was stopped"), True),
        (psycopg.errors.UndefinedTable("no such table"), False),
        (psycopg.DataError("a zero in a text"), False),
        (psycopg.ProgrammingError("a bug"), False),
        (sqlite3.OperationalError("database is locked"), False),
    ],
)
def test_what_may_be_over_soon(error: Exception, *, away: bool) -> None:
    with pytest.raises(EntourageError) as raised, database.told():
        raise sqlalchemy.exc.DBAPIError("select 1", {}, error)
    assert isinstance(raised.value, DatabaseAwayError) is away


def test_a_slot_that_was_not_needed_after_all_is_free_again(store: Store) -> None:
    """It waits as before; not where another controller runs the campaign by now."""
    begin(store, "c", move("x"), move("y"))
    slots = StoreSlots(store, "c", "me", InOrder())

    async def take_and_put_back() -> None:
        assert await slots.take(move("x"), Limits(at_once=1))
        assert not await slots.take(move("y"), Limits(at_once=1))
        await slots.put_back(move("x"))

    asyncio.run(take_and_put_back())
    assert [one.status for one in store.states("c")] == ["waits", "waits"]
    assert takes(store, "c", move("y"), Limits(at_once=1))
    store.claim("c", "other")
    with pytest.raises(FencedError):
        asyncio.run(slots.put_back(move("y")))
    assert [one.status for one in store.states("c")] == ["waits", "moves"]
