"""What is kept of campaigns for people, in a real SQLite file."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from entourage import events
from entourage.errors import EntourageError
from entourage.fleet import records as module
from entourage.fleet.database import DatabaseAwayError, changes, open_engine, reads
from entourage.fleet.homes import at_home
from entourage.fleet.records import Hearing, Records, copied, understood
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, MoveState, Plan

MOVE = Move(name="web1", uuid="u", source="a", target="b")


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    store = Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))
    with store.planning() as planning:
        planning.add("c", Spec(plan=Plan(moves=[MOVE])))
    yield store
    store.engine.dispose()


def test_each_attempt_is_kept_with_what_was_heard(store: Store) -> None:
    """Also after a retry, and where a controller has died in one."""
    records = Records(store.engine)
    hearing = Hearing(records, "c")
    begun = MoveState(move=MOVE, status="moves", attempts=1)
    hearing.changed(begun)
    hearing.heard(MOVE, {"event": "guest-stopped", "at": 1.0})
    hearing.heard(MOVE, {"event": "of-a-newer-version", "at": 1.0})
    hearing.heard(MOVE, {"event": "copy-progress", "what": "memory", "done": 1, "total": 2})
    hearing.write()
    assert records.under_way("c")["u"].percent == 50
    hearing.changed(MoveState(move=MOVE, status="waits", attempts=1, message="a \x00 b"))
    assert records.under_way("c") == {}
    Hearing(records, "c").changed(begun)  # whose controller dies
    again = Hearing(records, "c")
    again.changed(begun)
    again.changed(MoveState(move=MOVE, status="moved", blackout=0.02))
    last, died, first = records.attempts("u")
    assert [one.outcome for one in (last, died, first)] == ["moved", "", "back"]
    assert died.ended is not None
    assert (last.blackout, last.timed, first.timed) == (0.02, False, True)
    assert first.message == "a \\x00 b"
    assert records.events(first.number) == [events.GuestStopped(at=1.0)]
    assert records.pace("c") is not None
    assert records.pace("none") is None


def test_a_host_that_says_too_much(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVENTS", 3)
    monkeypatch.setattr(module, "_EVENT_BYTES", 100)
    records = Records(store.engine)
    hearing = Hearing(records, "c")
    hearing.changed(MoveState(move=MOVE, status="moves"))
    for _ in range(5):
        hearing.heard(MOVE, {"event": "guest-stopped", "at": 1.0})
    hearing.heard(MOVE, {"event": "x" * 200})
    hearing.heard(MOVE, {"event": "huge", "number": 1 << 70})
    hearing.changed(MoveState(move=MOVE, status="moved"))
    (one,) = records.attempts("u")
    assert len(records.events(one.number)) <= 3


def test_what_cannot_be_kept_ends_no_campaign(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, as soon as that can be kept."""
    records = Records(store.engine)
    hearing = Hearing(records, "c")
    deep: Any = {"event": "x"}
    for _ in range(100_000):
        deep = {"event": "x", "more": deep}

    def fail(*_: Any) -> None:
        raise EntourageError("the disk is full")

    with monkeypatch.context() as patched:
        for name in ("begin", "progress", "end", "say"):
            patched.setattr(Records, name, fail)
        hearing.changed(MoveState(move=MOVE, status="moves"))
        hearing.heard(MOVE, {"event": "copy-progress", "what": "memory", "done": 1, "total": 2})
        hearing.write()
        hearing.heard(MOVE, deep)
        hearing.changed(MoveState(move=MOVE, status="moved"))
    assert records.history("c") == []
    for _ in range(2):
        hearing.changed(MoveState(move=MOVE, status="moves"))
    (entry,) = records.history("c")
    assert (entry.who, entry.what) == (
        "controller", "could not keep all that was heard: the disk is full",
    )  # fmt: skip


def test_what_another_version_has_written(store: Store) -> None:
    """It is said, and hinders nobody who plans: of a promise its move is read alone."""
    text = '{"move": {"name": "x", "uuid": "u", "source": "a", "target": "b"}, "status": "flies"}'
    with changes(store.engine) as connection:
        connection.exec_driver_sql("update entourage_moves set state = ?", (text,))
        connection.exec_driver_sql("update entourage_campaigns set spec = '[]'")
    assert [one.name for one in store.promised()] == ["x"]
    for read in (
        lambda: store.states("c"),
        lambda: store.spec("c"),
        lambda: Records(store.engine).moves("c"),
        lambda: at_home(store, "a"),
    ):
        with changes(store.engine) as connection:
            connection.exec_driver_sql("update entourage_moves set status = 'moved'")
        with pytest.raises(EntourageError, match="written by another version") as raised:
            read()
        assert raised.value.remedy == "upgrade this controller"


@pytest.mark.parametrize(
    ("text", "count"),
    [("[" * 100_000, 0), ("[]", 0), ("{", 0), ('[{"event":"go-sent","at":1},{"event":5}]', 1)],
)
def test_what_can_be_understood_of_events(text: str, count: int) -> None:
    assert len(understood(text)) == count


def test_what_is_copied() -> None:
    assert copied({"what": "a\x1b", "done": 1, "total": 3}) == ("a\\x1b", 33)
    assert copied({"what": "a", "done": 4, "total": 3}) == ("", 0)
    assert copied({"what": "a", "done": True, "total": None}) == ("", 0)


def test_who_reads_keeps_nobody_from_writing(store: Store) -> None:
    """A page that looks every second is not to hold a campaign up."""
    records = Records(store.engine)
    with reads(store.engine) as reading:
        reading.exec_driver_sql("select count(*) from entourage_campaigns")
        with changes(store.engine):
            pass
        records.say("c", "alice", "paused it")
    with changes(store.engine):
        assert [one.who for one in records.history("c")] == ["alice"]


def test_a_database_that_is_away_is_waited_for_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many move; how far they are is kept once it is back, and nothing was missed."""
    records, asked = Records(store.engine), list[str]()
    hearing = Hearing(records, "c")
    moves = [Move(name=one, uuid=one, source="a", target="b") for one in ("u1", "u2", "u3")]
    progress = records.progress

    def heard(move: Move, done: int) -> None:
        event = {"event": "copy-progress", "what": "memory", "done": done, "total": 10}
        hearing.heard(move, event)

    def away(_campaign: str, uuid: str, what: str, percent: int) -> None:
        asked.append(uuid)
        if uuid == "u2":
            heard(moves[1], 9)  # that comes meanwhile, and is newer
            raise DatabaseAwayError("no route")
        progress("c", uuid, what, percent)

    monkeypatch.setattr(module, "_EVERY", 0)
    for move in moves:
        hearing.changed(MoveState(move=move, status="moves"))
        heard(move, 5)
    with monkeypatch.context() as patched:
        patched.setattr(records, "progress", away)
        hearing.write()
    assert asked == ["u1", "u2"]
    hearing.write()
    percents = {one.uuid: records.attempts(one.uuid)[0].percent for one in moves}
    assert percents == {"u1": 50, "u2": 90, "u3": 50}
    hearing.changed(MoveState(move=moves[0], status="moved"))
    assert records.history("c") == []
