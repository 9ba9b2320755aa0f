"""A controller runs campaigns of a real SQLite file; its hosts are stand-ins."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy.event

from entourage.errors import EntourageError
from entourage.fleet import controller as module
from entourage.fleet.campaign import Phase
from entourage.fleet.controller import Runner, Told
from entourage.fleet.database import DatabaseAwayError, open_engine
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.records import Records
from entourage.fleet.remote import DomainThere, Ended, RoomThere, StandingThere
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Limits, Move, MoveState, Plan

MOVES = [Move(name=name, uuid=name, source="a", target="b") for name in ("web1", "web2")]
QUESTIONS = {"status a", "room a", "room b"}


class Hosts:
    """Two of them; every migration goes well, but for those that a test has fail."""

    def __init__(self) -> None:
        self.fleet = FleetFile(host=tuple(HostEntry(name=name) for name in "ab"))
        self.on = {move.uuid: move.source for move in MOVES}
        self.asked: list[str] = []
        self.fails = set[str]()

    def with_hosts(self, _entries: Iterable[HostEntry]) -> Hosts:
        return self

    async def cordon(self, _host: str, _name: str, _reason: str) -> None:
        pass

    async def uncordon(self, _host: str, _name: str) -> None:
        pass

    async def room(self, host: str) -> RoomThere:
        self.asked.append(f"room {host}")
        domains = [DomainThere(name=one, uuid=one) for one, at in self.on.items() if at == host]
        return RoomThere(host=host, memory=0, free=0, domains=domains)

    async def standing(self, host: str) -> list[StandingThere]:
        self.asked.append(f"status {host}")
        return []

    async def migrate(
        self,
        name: str,
        _source: str,
        target: str,
        _options: Sequence[str],
        _heard: Callable[[Mapping[str, Any]], None],
    ) -> Ended:
        if name in self.fails:
            self.fails.remove(name)
            return Ended(status=4, events={"outcome": "rolled-back"}, said="")
        self.on[name] = target
        return Ended(status=0, events={"outcome": "moved"}, said="")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))
    with store.planning() as planning:
        planning.add("c", Spec(plan=Plan(hosts=["a"], moves=MOVES), limits=Limits(wait=0.0)))
    return store


def runner(store: Store, hosts: Hosts) -> Runner:
    remote: Any = hosts
    return Runner(store, remote, "me", Told())


async def test_a_campaign_that_nobody_has_run_asks_nothing_first(store: Store) -> None:
    hosts = Hosts()
    assert await runner(store, hosts).drive("c") == "ended"
    assert (hosts.on, hosts.asked) == ({"web1": "b", "web2": "b"}, [])


async def test_a_second_attempt_asks_both_hosts_first(store: Store) -> None:
    hosts = Hosts()
    hosts.fails = {"web1"}
    assert await runner(store, hosts).drive("c") == "ended"
    assert hosts.on == {"web1": "b", "web2": "b"}
    # And once whether another one moves what went back.
    assert sorted(hosts.asked) == ["room a", "room b", "status a", "status a"]


@pytest.mark.parametrize("left", ["nothing was begun", "one was begun", "it is tried again"])
async def test_a_campaign_that_was_run_before_asks_both_hosts_first(
    store: Store, left: str
) -> None:
    """Whoever has run it may have begun anything; what moved meanwhile is not begun again."""
    store.claim("c", "other")
    hosts = Hosts()
    if left == "one was begun":
        moves = MoveState(move=MOVES[0], status="moves", attempts=1)
        store.save("c", moves, owner="other")
        hosts.on["web1"] = "b"
    if left == "it is tried again":
        for move in MOVES:
            store.save("c", MoveState(move=move, status="stays", attempts=3), owner="other")
        store.phase("c", "ended", owner="other", reason="", in_a_row=0)
        assert store.try_again("c") == 2
    assert await runner(store, hosts).drive("c") == "ended"
    assert hosts.on == {"web1": "b", "web2": "b"}
    assert {one: hosts.asked.count(one) for one in hosts.asked} == dict.fromkeys(QUESTIONS, 2)


async def test_one_that_could_not_be_begun_is_run_as_before(store: Store) -> None:
    """Its first controller has claimed it, and failed before anything moved."""
    hosts = Hosts()

    async def silent(host: str, _name: str, _reason: str) -> None:
        raise EntourageError("ssh does not reach it", host=host)

    cordon, hosts.cordon = hosts.cordon, silent  # type: ignore[method-assign]
    with pytest.raises(EntourageError, match="ssh does not reach it"):
        await runner(store, hosts).drive("c")
    hosts.cordon = cordon  # type: ignore[method-assign]
    assert await runner(store, hosts).drive("c") == "ended"
    assert set(hosts.asked) == QUESTIONS


class ChattyHosts(Hosts):
    """One move goes back, and is refused at its target then; each says how far it is.

    Attributes:
        until: What has to have happened before the second one has moved.
    """

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.fails = {"web1"}
        self._store = store
        self.until: Sequence[threading.Event] = ()

    async def migrate(
        self,
        name: str,
        source: str,
        target: str,
        options: Sequence[str],
        heard: Callable[[Mapping[str, Any]], None],
    ) -> Ended:
        heard({"event": "copy-progress", "what": "memory", "done": 1, "total": 2})
        if name == "web2":  # until somebody looks what is wanted
            await asyncio.to_thread(self._store.wish, "c", "abort")
            for one in self.until:
                assert await asyncio.to_thread(one.wait, 10)
        return await super().migrate(name, source, target, options, heard)


async def test_no_question_to_the_database_holds_up_the_page(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be silent: each is asked in a thread, as the page's own questions are."""
    loops, asked = threading.current_thread(), 0
    wrong: list[str] = []

    def begun(_connection: object) -> None:
        nonlocal asked
        asked += 1
        if threading.current_thread() is loops:
            wrong.append("".join(traceback.format_stack(limit=8)))

    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    kept, aborting = threading.Event(), threading.Event()
    progress, phase = Records.progress, store.phase

    def keep(records: Records, campaign: str, uuid: str, what: str, percent: int) -> None:
        progress(records, campaign, uuid, what, percent)
        if uuid == "web2":
            kept.set()

    def say_phase(name: str, now: Phase, **more: Any) -> None:
        phase(name, now, **more)
        if now == "aborting":
            aborting.set()

    monkeypatch.setattr(Records, "progress", keep)
    monkeypatch.setattr(store, "phase", say_phase)
    hosts = ChattyHosts(store)
    hosts.until = (kept, aborting)
    sqlalchemy.event.listen(store.engine, "begin", begun)
    assert await runner(store, hosts).drive("c") == "aborted"
    assert wrong == []
    assert asked > 20
    (attempt,) = Records(store.engine).attempts("web2")
    assert (attempt.outcome, attempt.percent) == ("moved", 50)


class GoesBack(Hosts):
    """Its migration can be aborted once it has begun there, which takes a while."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._aborted = asyncio.Event()
        self.aborts: list[int] = []

    async def migrate(self, *_: Any, **__: Any) -> Ended:
        await asyncio.to_thread(self._store.wish, "c", "take-back")
        await self._aborted.wait()
        await asyncio.sleep(0.05)  # it goes back, and is not to be asked again
        return Ended(status=4, events={"outcome": "rolled-back"}, said="")

    async def abort(self, _name: str, host: str) -> Ended:
        self.aborts.append(2 if not self.aborts else 0)
        if len(self.aborts) == 2:
            raise EntourageError("ssh cannot be run", host=host)
        if len(self.aborts) > 2:
            self._aborted.set()
        return Ended(status=self.aborts[-1], events={}, said="no migration is under way")


async def test_what_could_not_be_taken_back_yet_is_taken_back_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The abort may be there before the migration has begun."""
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    store.claim("c", "me")
    store.save("c", MoveState(move=MOVES[1], status="moved"), owner="me")
    hosts = GoesBack(store)
    assert await runner(store, hosts).drive("c") == "aborted"
    assert len(hosts.aborts) == 3
    assert [one.status for one in store.states("c")] == ["waits", "moved"]


class Mixed(Hosts):
    """One is off, the other one runs; an abort is heard by either, if it is told."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._aborted = asyncio.Event()
        self._moves = 0
        self.aborts: list[str] = []

    async def room(self, host: str) -> RoomThere:
        known = [DomainThere(name="web1", uuid="web1")] if self.on["web1"] == host else []
        return RoomThere(host=host, memory=0, free=0, off_domains=known)

    async def migrate(
        self,
        name: str,
        _source: str,
        target: str,
        _options: Sequence[str],
        _heard: Callable[[Mapping[str, Any]], None],
    ) -> Ended:
        self._moves += 1
        if self._moves == len(MOVES):
            await asyncio.to_thread(self._store.wish, "c", "take-back")
        await self._aborted.wait()
        if name == "web2":
            return Ended(status=4, events={"outcome": "rolled-back"}, said="")
        self.on[name] = target
        return Ended(status=0, events={"outcome": "moved"}, said="")

    async def abort(self, name: str, _host: str) -> Ended:
        self.aborts.append(name)
        self._aborted.set()
        return Ended(status=0, events={}, said="")


async def test_what_is_off_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its move there is nothing that could go back: it is finished."""
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    store = Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))
    moves = [msgspec.structs.replace(MOVES[0], off=True), MOVES[1]]
    with store.planning() as planning:
        limits = Limits(per_target=2, wait=9.0)
        planning.add("c", Spec(plan=Plan(moves=moves), limits=limits))
    hosts = Mixed(store)
    assert await runner(store, hosts).drive("c") == "aborted"
    assert hosts.aborts == ["web2"]
    assert [one.status for one in store.states("c")] == ["moved", "waits"]


async def test_who_runs_a_campaign_says_that_nothing_more_is_begun(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN", 0)
    hosts, notes, tries = Hosts(), list[str](), list[str]()

    async def cordon(host: str, _name: str, _reason: str) -> None:
        tries.append(host)
        if len(tries) < 3:
            raise DatabaseAwayError("no route")

    class Notes(Told):
        def note(self, campaign: str, message: str) -> None:
            notes.append(f"{campaign}: {message}")

    hosts.cordon = cordon  # type: ignore[method-assign]
    remote: Any = hosts
    assert await Runner(store, remote, "me", Notes()).drive("c") == "ended"
    assert notes[0] == "c: no route: it is waited for, and nothing more is begun"
