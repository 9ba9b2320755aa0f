"""What is kept of campaigns for people: who wished for what, and how each attempt of a move went.

No rule of a campaign reads any of it. What a host has said is kept as it said it, up to a size, and
is looked at when it is shown.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from entourage.errors import EntourageError
from entourage.events import AnyEvent
from entourage.fleet.campaign import Wish
from entourage.fleet.database import (
    ATTEMPTS,
    CAMPAIGNS,
    HISTORY,
    MOVES,
    DatabaseAwayError,
    by_bytes,
    changes,
    reads,
)
from entourage.fleet.decoded import NotUnderstoodError, json_of
from entourage.fleet.values import Move, MoveState, Status, Value
from entourage.report.text import clean

_EVENTS: Final = 2000  # of one attempt
_EVENT_BYTES: Final = 1 << 18  # of one attempt, in sum
_PASSING: Final = frozenset({"copy-progress", "tool-said"})
"""Events that are not kept: they say how far it is, or what a tool printed."""
_SAID: Final = 500  # characters of what is kept of one entry
_EVERY: Final = 1.0  # seconds between two figures of one move
_MOST: Final = 1 << 62  # bytes: what a host says may be any number
DONE: Final[Mapping[Wish, str]] = {
    "run": "resumed it",
    "pause": "paused it",
    "abort": "aborted it: what moves is finished",
    "take-back": "aborted it: what moves is to go back",
}
RETRIED: Final = "had what stayed be tried again"
PACE_OF: Final = 20
"""So many of the last attempts tell how fast a campaign goes."""


class Entry(Value, frozen=True):
    """Something that somebody has done to a campaign, or that its controller has to say.

    Attributes:
        at: Seconds since 1970.
        who: A user's name, or a controller's.
    """

    at: float
    who: str
    what: str


class Attempt(Value, frozen=True):
    """One attempt of a move.

    Attributes:
        begun, ended: Seconds since 1970; not ended: None.
        outcome: How it ended: ``moved``, ``back``, …; empty where that was not heard.
        what, percent: What is copied, and how much of it was when that was last heard.
        blackout: Seconds; None where that is not known.
        timed: Whether its events are kept.
    """

    number: int
    campaign: str
    source: str
    target: str
    begun: float
    ended: float | None = None
    outcome: str = ""
    message: str = ""
    what: str = ""
    percent: int = 0
    blackout: float | None = None
    timed: bool = False


class Hearing:
    """Hears what is said of the moves of one campaign, and keeps it.

    What cannot be kept ends no campaign: its history says so once. Only ``changed`` and ``write``
    ask the database, which may be silent: in threads, one after the other.

    Args:
        records: Where.
        campaign: Its name.
    """

    def __init__(self, records: Records, campaign: str) -> None:
        self._records = records
        self._campaign = campaign
        self._events: dict[str, list[bytes]] = {}
        self._sizes: dict[str, int] = {}
        self._last: dict[str, tuple[float, str, int]] = {}
        self._unwritten: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()  # of the last one
        self._missed, self._told = "", False

    def heard(self, move: Move, event: Mapping[str, Any]) -> None:
        """`entourage migrate --json` said something."""
        with self._kept():
            self._hear(move, event)

    def write(self) -> None:
        """Keep how far moves are, as far as that is news; where the database is away, later."""
        with self._lock:
            news, self._unwritten = self._unwritten, {}
        while news:
            uuid = next(iter(news))
            with self._kept():
                try:
                    self._records.progress(self._campaign, uuid, *news[uuid])
                except DatabaseAwayError:  # each would be waited for as long
                    with self._lock:
                        self._unwritten = {**news, **self._unwritten}
                    return
            del news[uuid]

    def changed(self, state: MoveState) -> None:
        """A move has begun, or has ended."""
        with self._kept():
            self._change(state)
        if self._missed and not self._told:
            what = f"could not keep all that was heard: {self._missed}"
            with self._kept():
                self._records.say(self._campaign, "controller", what)
                self._told = True

    @contextlib.contextmanager
    def _kept(self) -> Generator[None]:
        """No rule of a campaign reads any of it."""
        try:
            yield
        except (EntourageError, RecursionError) as error:  # nothing, or an event nested too deep
            self._missed = self._missed or str(error)

    def _hear(self, move: Move, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "copy-progress":
            self._progress(move, event)
        elif kind not in _PASSING:
            kept = self._events.setdefault(move.uuid, [])
            try:
                line = msgspec.json.encode(event)
            except (OverflowError, UnicodeEncodeError):  # a host may say any number, or no text
                return
            size = self._sizes.get(move.uuid, 0) + len(line)
            if len(kept) < _EVENTS and size <= _EVENT_BYTES:
                kept.append(line)
                self._sizes[move.uuid] = size

    def _change(self, state: MoveState) -> None:
        if state.status == "moves":
            self._forget(state.move.uuid)
            self._records.begin(self._campaign, state.move)
        else:
            events = b"[" + b",".join(self._events.get(state.move.uuid, ())) + b"]"
            self._records.end(self._campaign, state, events.decode() if len(events) > 2 else "")  # noqa: PLR2004 - not empty
            self._forget(state.move.uuid)

    def _progress(self, move: Move, event: Mapping[str, Any]) -> None:
        what, percent = copied(event)
        now = time.monotonic()
        last, *same = self._last.get(move.uuid, (0.0, "", -1))
        if what and now - last >= _EVERY and same != [what, percent]:
            self._last[move.uuid] = (now, what, percent)
            with self._lock:
                self._unwritten[move.uuid] = what, percent

    def _forget(self, uuid: str) -> None:
        with self._lock:
            self._unwritten.pop(uuid, None)
        for kept in (self._events, self._sizes, self._last):
            kept.pop(uuid, None)


def copied(event: Mapping[str, Any]) -> tuple[str, int]:
    """What an event ``copy-progress`` says is copied, and how many per cent of it are.

    Returns:
        An empty text where it says nothing of use.
    """
    done, total, what = event.get("done"), event.get("total"), event.get("what")
    if not (isinstance(done, int) and isinstance(total, int) and isinstance(what, str)):
        return "", 0
    if not 0 <= done <= total < _MOST or not total:
        return "", 0
    return clean(what)[:64] or "it", 100 * done // total


class Records:
    """They, in the database of the campaigns. Every method is one transaction.

    Args:
        engine: Of ``open_engine``.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def say(self, campaign: str, who: str, what: str) -> None:
        """Somebody has done something to a campaign."""
        with changes(self._engine) as connection:
            connection.execute(
                sa.insert(HISTORY).values(
                    campaign=campaign,
                    at=time.time(),
                    who=clean(who)[:128],
                    what=clean(what)[:_SAID],
                )
            )

    def history(self, campaign: str, most: int = 50) -> list[Entry]:
        """What was done to a campaign, the newest first."""
        query = sa.select(HISTORY).where(HISTORY.c.campaign == campaign)
        return [
            Entry(at=row.at, who=row.who, what=row.what)
            for row in self._newest(query, HISTORY, most)
        ]

    # Attempts

    def begin(self, campaign: str, move: Move) -> None:
        """A move has begun; one that was left open by a controller that died has ended somehow."""
        now = time.time()
        with changes(self._engine) as connection:
            connection.execute(_open(campaign, move.uuid).values(ended=now))
            connection.execute(
                sa.insert(ATTEMPTS).values(
                    campaign=campaign,
                    uuid=move.uuid,
                    source=move.source,
                    target=move.target,
                    begun=now,
                    outcome="",
                    message="",
                    what="",
                    percent=0,
                    events="",
                )
            )

    def progress(self, campaign: str, uuid: str, what: str, percent: int) -> None:
        """So much of something is copied."""
        with changes(self._engine) as connection:
            connection.execute(_open(campaign, uuid).values(what=what, percent=percent))

    def end(self, campaign: str, state: MoveState, events: str) -> None:
        """A move has ended.

        Args:
            campaign: The campaign.
            state: How.
            events: What was heard of it, a list as JSON; empty: nothing.
        """
        outcome = "back" if state.status == "waits" else state.status
        with changes(self._engine) as connection:
            connection.execute(
                _open(campaign, state.move.uuid).values(
                    ended=time.time(),
                    outcome=outcome,
                    message=clean(state.message)[:_SAID],
                    blackout=state.blackout,
                    events=events,
                )
            )

    def attempts(self, uuid: str, most: int = 50) -> list[Attempt]:
        """Those of a domain in all campaigns, the newest first."""
        query = sa.select(ATTEMPTS).where(ATTEMPTS.c.uuid == uuid)
        return [_attempt(row) for row in self._newest(query, ATTEMPTS, most)]

    def events(self, number: int) -> list[AnyEvent]:
        """What was heard in an attempt, as far as it can be understood."""
        query = sa.select(ATTEMPTS.c.events).where(ATTEMPTS.c.number == number)
        with reads(self._engine) as connection:
            text = connection.execute(query).scalar_one_or_none()
        return understood(text or "[]")

    def under_way(self, campaign: str) -> dict[str, Attempt]:
        """What moves in a campaign, by UUID."""
        query = sa.select(ATTEMPTS).where(
            ATTEMPTS.c.campaign == campaign, ATTEMPTS.c.ended.is_(None)
        )
        with reads(self._engine) as connection:
            return {row.uuid: _attempt(row) for row in connection.execute(query)}

    def pace(self, campaign: str) -> float | None:
        """Seconds a domain, of late, with all that move at once reckoned in; None: unknown."""
        query = sa.select(ATTEMPTS.c.begun).where(
            ATTEMPTS.c.campaign == campaign, ATTEMPTS.c.ended.is_not(None)
        )
        begun = [float(row.begun) for row in self._newest(query, ATTEMPTS, PACE_OF)]
        return (time.time() - min(begun)) / len(begun) if begun else None

    # Moves

    def moves(
        self, campaign: str, status: Status | None = None, *, first: int = 0, most: int = 100
    ) -> list[MoveState]:
        """Some of a campaign's moves: those first that are under way, then those that wait."""
        turn = sa.case((MOVES.c.status == "moves", 0), (MOVES.c.status == "waits", 1), else_=2)
        query = sa.select(MOVES.c.state, MOVES.c.status).where(MOVES.c.campaign == campaign)
        if status is not None:
            query = query.where(MOVES.c.status == status)
        texts = (by_bytes(self._engine, one) for one in (MOVES.c.status, MOVES.c.uuid))
        query = query.order_by(turn, *texts).offset(first).limit(most)
        with reads(self._engine) as connection:
            rows = connection.execute(query).all()
        return [state_of(row.state, row.status) for row in rows]

    def of_domain(self, uuid: str, most: int = 50) -> list[tuple[str, MoveState]]:
        """A domain's moves in all campaigns, by the campaign's name, the newest first."""
        query = (
            sa.select(MOVES.c.campaign, MOVES.c.state, MOVES.c.status)
            .join(CAMPAIGNS, CAMPAIGNS.c.name == MOVES.c.campaign)
            .where(MOVES.c.uuid == uuid)
            .order_by(CAMPAIGNS.c.created.desc())
            .limit(most)
        )
        with reads(self._engine) as connection:
            rows = connection.execute(query).all()
        return [(row.campaign, state_of(row.state, row.status)) for row in rows]

    def _newest(self, query: sa.Select[Any], of: sa.Table, most: int) -> Sequence[Any]:
        """The rows of a table that a query finds, the newest first."""
        ordered = query.order_by(of.c.number.desc()).limit(most)
        with reads(self._engine) as connection:
            return connection.execute(ordered).all()


def understood(text: str) -> list[AnyEvent]:
    """Events out of a list as JSON; one that is not known here is left out."""
    found: list[AnyEvent] = []
    try:
        lines = json_of(text, list[msgspec.Raw])
    except NotUnderstoodError:
        return []
    for line in lines:
        with contextlib.suppress(NotUnderstoodError):
            found.append(json_of(bytes(line), AnyEvent))
    return found


def state_of(text: str, status: str) -> MoveState:
    """A slot may have been taken by a process that died before it said more; EntourageError."""
    state = json_of(text, MoveState)
    return msgspec.structs.replace(state, status=status)


def _open(campaign: str, uuid: str) -> sa.Update:
    return sa.update(ATTEMPTS).where(
        ATTEMPTS.c.campaign == campaign, ATTEMPTS.c.uuid == uuid, ATTEMPTS.c.ended.is_(None)
    )


def _attempt(row: Any) -> Attempt:
    return Attempt(
        number=row.number,
        campaign=row.campaign,
        source=row.source,
        target=row.target,
        begun=row.begun,
        ended=row.ended,
        outcome=row.outcome,
        message=row.message,
        what=row.what,
        percent=row.percent,
        blackout=row.blackout,
        timed=bool(row.events),
    )
