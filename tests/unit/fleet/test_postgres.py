"""A PostgreSQL that says nothing, goes away and comes back; it is a real one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from entourage.errors import EntourageError
from entourage.fleet import controller, database, outage
from entourage.fleet.bounded import SILENT, Bounded
from entourage.fleet.controller import Runner, Told
from entourage.fleet.database import (
    LOCK,
    DatabaseAwayError,
    NotLetInError,
    open_engine,
    reads,
)
from entourage.fleet.durable import Away, Durable
from entourage.fleet.store import FencedError, Spec, Store
from entourage.fleet.values import Limits, Move, Plan
from tests.postgres import MISSING, PROGRAMS, Postgres, postgres
from tests.unit.fleet.test_controller import MOVES, Hosts

SOON = 1.0  # seconds
MUCH_LATER = 10.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounded, "silent", SOON)
    # Two seconds are psycopg's shortest.
    monkeypatch.setitem(vars(database)["_CONNECTION"], "connect_timeout", 2)


@pytest.fixture
def store(database: str) -> Generator[Store]:
    store = Store(open_engine(database))
    yield store
    store.engine.dispose()


def late(ask: Callable[[], object]) -> float:
    """Seconds until it is said that the database does not answer."""
    began = time.monotonic()
    with pytest.raises(DatabaseAwayError, match="the fleet's database: ") as raised:
        ask()
    assert raised.value.remedy
    return time.monotonic() - began


def test_one_that_accepts_and_says_nothing_blocks_nobody(store: Store, server: Postgres) -> None:
    """Neither who is connected, nor who connects; once it answers, all goes on."""
    store.beat("me")
    with server.frozen():
        assert late(lambda: store.beat("me")) < MUCH_LATER
        assert late(lambda: store.living(10)) < MUCH_LATER
        fresh = open_engine(server.url)
        assert late(lambda: Store(fresh)) < MUCH_LATER
        fresh.dispose()
    store.beat("me")
    assert store.living(10) == ["me"]


def test_one_that_is_silent_in_a_statement(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that is taken here; by the server's own as well, where it still has one."""

    def sleep() -> None:
        with reads(store.engine) as connection:
            connection.exec_driver_sql("select pg_sleep(30)")

    assert SOON < late(sleep) < MUCH_LATER
    monkeypatch.setattr(Bounded, "silent", 30.0)
    monkeypatch.setattr(database, "_SESSION", {"statement_timeout": 100})
    engine = open_engine(store.engine.url.render_as_string(hide_password=False))
    with pytest.raises(DatabaseAwayError, match="statement timeout"), reads(engine) as connection:
        connection.exec_driver_sql("select pg_sleep(30)")
    engine.dispose()


def test_much_that_is_written_is_not_silence(store: Store) -> None:
    """The server answers each of many rows; that takes longer than it may be silent."""
    moves = [
        Move(name=f"web{number}", uuid=f"u{number}", source="a", target="b")
        for number in range(20_000)
    ]
    with store.planning() as planning:
        planning.add("large", Spec(plan=Plan(moves=moves)))
    assert len(store.promised()) == len(moves)


def test_a_lock_that_another_one_keeps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOCKED_WITHIN", 0.1)
    with store.engine.begin() as other:
        other.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))

        def plan() -> None:
            with store.planning():
                raise AssertionError

        assert late(plan) < MUCH_LATER
    with store.planning():
        pass


def test_what_is_no_outage_is_not_waited_for(store: Store) -> None:
    with pytest.raises(EntourageError) as raised, reads(store.engine) as connection:
        connection.exec_driver_sql("select * from nothing")
    assert not isinstance(raised.value, DatabaseAwayError)


# Campaigns


class Heard(Told):
    """What was said of a campaign."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, campaign: str, message: str) -> None:
        self.notes.append(f"{campaign}: {message}")


class SlowHosts(Hosts):
    """Migrations that end when a test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def migrate(self, *words: Any, **named: Any) -> Any:
        self.begun.set()
        await self.may_end.wait()
        return await super().migrate(*words, **named)


@contextlib.asynccontextmanager
async def opened(runner: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Durable]:
    """DBOS makes its tables first, and is given the time for that."""
    monkeypatch.setattr(Bounded, "silent", SILENT)
    async with Durable.open(runner, "me") as engine:
        monkeypatch.setattr(Bounded, "silent", 2 * SOON)
        yield engine


@pytest.fixture
def own() -> Generator[Postgres]:
    """One that a test stops."""
    if not PROGRAMS:
        pytest.skip(MISSING)
    with postgres() as server:
        yield server


@pytest.fixture
def log() -> Iterator[None]:
    yield
    logging.getLogger("dbos").handlers.clear()


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_a_campaign_goes_on_by_itself(
    own: Postgres, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Also one that a terminal waits for; nobody types anything."""
    monkeypatch.setattr(controller, "_LOOK_AGAIN", 0.1)
    monkeypatch.setattr(outage, "_LOOK_AGAIN", 0.1)
    store, hosts, told = Store(open_engine(own.url)), SlowHosts(), Heard()
    with store.planning() as planning:
        limits = Limits(at_once=1, wait=0.0)
        planning.add("c", Spec(plan=Plan(hosts=["a"], moves=MOVES), limits=limits))
    remote: Any = hosts
    runner = Runner(store, remote, "me", told)
    async with opened(runner, monkeypatch) as engine:
        running = asyncio.create_task(engine.run("c"))
        await hosts.begun.wait()
        with contextlib.ExitStack() as away:
            if how == "frozen":
                away.enter_context(own.frozen())
            else:
                own.stop()
            hosts.may_end.set()
            held_up = 0.0
            while not told.notes:
                before = time.monotonic()
                await asyncio.sleep(0.05)  # as the page, which answers meanwhile
                held_up = max(held_up, time.monotonic() - before)
            assert held_up < SOON
        if how == "stopped":
            own.start()
        assert await asyncio.wait_for(running, 60) == "ended"
    assert hosts.on == {"web1": "b", "web2": "b"}
    first, last = told.notes
    assert first.startswith("c: the fleet's database: ")
    assert first.endswith("it is waited for, and nothing more is begun")
    assert last == "c: the fleet's database answers again: it goes on"
    store.engine.dispose()


OTHER = "alter role fleet password '{}'"


@pytest.fixture
def by_password(own: Postgres) -> str:
    """The URL of one that wants a password, but of its own user."""
    own.ask_password_of("fleet")
    own.say("create role fleet superuser login")
    own.say(OTHER.format("first"))
    return own.url.replace("nobody@", "fleet:first@")


def test_a_log_in_that_is_wrong_is_told_at_once(own: Postgres, by_password: str) -> None:
    wrong = {
        by_password.replace("first", "second"): "password authentication failed",
        by_password.replace("/postgres?", "/nothing?"): 'database "nothing" does not exist',
        own.url.replace("nobody@", "nobody-else@"): 'role "nobody-else" does not exist',
    }
    for url, said in wrong.items():
        began = time.monotonic()
        engine = open_engine(url)
        with pytest.raises(NotLetInError, match="does not let this controller in") as raised:
            Store(engine)
        assert said in str(raised.value)
        assert "first" not in str(raised.value)
        assert "mend the user, the password or the database" in raised.value.remedy
        assert time.monotonic() - began < SOON
        engine.dispose()


async def test_a_password_that_is_changed_in_the_middle_is_told_and_waited_for(
    own: Postgres, by_password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be changed back; what moves moves on meanwhile."""
    monkeypatch.setattr(controller, "_LOOK_AGAIN", 0.1)
    store, hosts, told = Store(open_engine(by_password)), SlowHosts(), Heard()
    with store.planning() as planning:
        limits = Limits(at_once=1, wait=0.0)
        planning.add("c", Spec(plan=Plan(hosts=["a"], moves=MOVES), limits=limits))
    remote: Any = hosts
    running = asyncio.create_task(Runner(store, remote, "me", told).drive("c"))
    await hosts.begun.wait()
    own.say(OTHER.format("second"))
    own.say("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'fleet'")
    hosts.may_end.set()
    while not any("does not let this controller in" in one for one in told.notes):  # noqa: ASYNC110 - it says so when it has noticed
        await asyncio.sleep(0.05)
    own.say(OTHER.format("first"))
    assert await asyncio.wait_for(running, 60) == "ended"
    assert hosts.on == {"web1": "b", "web2": "b"}
    # Once that it was cut, where that was seen; once that nobody is let in; and that it goes on.
    assert len(told.notes) == len(set(told.notes)) <= 3
    assert told.notes[-1] == "c: the fleet's database answers again: it goes on"
    store.engine.dispose()


async def test_one_that_another_controller_has_taken_over_is_left_to_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database was away for this one."""
    monkeypatch.setattr(controller, "_LOOK_AGAIN", 0.0)
    with store.planning() as planning:
        planning.add("c", Spec(plan=Plan(hosts=["a"], moves=MOVES)))
    hosts = Hosts()

    async def away(_host: str, _name: str, _reason: str) -> None:
        Store(store.engine).claim("c", "other")
        raise DatabaseAwayError("it is away")

    hosts.cordon = away  # type: ignore[method-assign]
    remote: Any = hosts
    with pytest.raises(FencedError, match="c is run by other now"):
        await Runner(store, remote, "me", Told()).drive("c")
    assert hosts.on == {"web1": "a", "web2": "a"}


def test_nobody_is_dead_who_could_not_say_that_he_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    away = Away()
    assert away.answered()
    now += 2
    assert away.answered()
    now += 60  # nobody was answered meanwhile
    assert not away.answered()
    for _ in range(7):
        now += 2
        assert not away.answered()
    now += 2
    assert away.answered()


@pytest.mark.usefixtures("log")
async def test_a_controller_does_not_take_over_from_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = Runner(store, Hosts(), "me", Told())  # type: ignore[arg-type]
    async with opened(runner, monkeypatch) as engine:
        with store.engine.begin() as connection:
            connection.exec_driver_sql("update entourage_controllers set seen = 0")
        assert await engine.take_over() == []
