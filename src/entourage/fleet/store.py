"""What is kept of campaigns: SQLite by default, PostgreSQL where several hosts control a fleet.

A campaign's row says what its user wants and who runs it; a move's row how far it has come, and so
which slots are taken: they are counted, never kept. Every method is one transaction.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping
from typing import Any, Final, cast

import msgspec
import sqlalchemy as sa

from entourage.errors import EntourageError, UsageError
from entourage.fleet.campaign import OVER, Phase, Wish
from entourage.fleet.database import (
    CAMPAIGNS,
    CONTROLLERS,
    MOVES,
    alone,
    changes,
    make_tables,
    reads,
)
from entourage.fleet.decoded import json_of
from entourage.fleet.records import state_of
from entourage.fleet.spec import Spec, Summary
from entourage.fleet.values import Move, MoveState

SILENT_AFTER: Final = 15.0
"""Seconds after which a controller that says nothing is dead, and another one takes over."""
ABORTS: Final = frozenset({"abort", "take-back"})
"""Wishes that nothing but each other takes back."""
_PENDING: Final = ("waits", "moves")
_MARK: Final = "#"  # in no host's name


class _Promised(msgspec.Struct):
    """Of how far a move has come, the move: what else a newer version writes counts nothing."""

    move: Move


class FencedError(EntourageError):
    """Another controller runs the campaign now: this one was thought to be dead."""


class Store:
    """The campaigns of a database.

    Args:
        engine: Of ``open_engine``.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._token = secrets.token_hex(8)
        make_tables(engine)

    @contextlib.contextmanager
    def alone(self) -> Generator[sa.Connection]:
        """A transaction beside which no other takes slots or plans."""
        with alone(self.engine) as connection:
            yield connection

    # Campaigns

    @contextlib.contextmanager
    def planning(self) -> Generator[Planning]:
        """See what others have promised, and add a campaign, beside nobody else."""
        with self.alone() as connection:
            yield Planning(connection)

    def promised(self) -> list[Move]:
        """What campaigns have yet to move; it keeps nobody from planning: see ``promises``."""
        with reads(self.engine) as connection:
            return Planning(connection).promised()

    def spec(self, name: str) -> Spec:
        """What a campaign was made of; raises UsageError where there is none, EntourageError."""
        return json_of(self._row(name).spec, Spec)

    def states(self, name: str) -> list[MoveState]:
        """How far its moves have come."""
        query = sa.select(MOVES.c.state, MOVES.c.status).where(MOVES.c.campaign == name)
        with reads(self.engine) as connection:
            rows = connection.execute(query).all()
        return [state_of(row.state, row.status) for row in rows]

    def summaries(self) -> list[Summary]:
        """All campaigns, the newest first."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        grouped = (
            sa.select(MOVES.c.campaign, MOVES.c.status, sa.func.count())
            .group_by(MOVES.c.campaign, MOVES.c.status)
        )  # fmt: skip
        with reads(self.engine) as connection:
            for campaign, status, count in connection.execute(grouped):
                counts[campaign][status] = count
            ordered = sa.select(CAMPAIGNS).order_by(CAMPAIGNS.c.created.desc())
            rows = connection.execute(ordered).all()
        return [_summary(row, counts[row.name]) for row in rows]

    def summary(self, name: str) -> Summary:
        """One campaign; raises UsageError where there is none."""
        row = self._row(name)
        grouped = (
            sa.select(MOVES.c.status, sa.func.count())
            .where(MOVES.c.campaign == name)
            .group_by(MOVES.c.status)
        )
        with reads(self.engine) as connection:
            counts = {row[0]: int(row[1]) for row in connection.execute(grouped)}
        return _summary(row, counts)

    def has(self, name: str) -> bool:
        """Whether there is a campaign of that name."""
        query = sa.select(CAMPAIGNS.c.name).where(CAMPAIGNS.c.name == name)
        with reads(self.engine) as connection:
            return connection.execute(query).first() is not None

    def in_a_row(self, name: str) -> int:
        """How many of it went back in a row."""
        return int(self._row(name).in_a_row)

    def _row(self, name: str) -> Any:
        with reads(self.engine) as connection:
            return _one(connection, name)

    def wish(self, name: str, wish: Wish) -> None:
        """Say what is wanted of a campaign; whoever runs it sees it within a second.

        Raises:
            UsageError: It is over; or it is being aborted, and stays so: neither a pause nor a
                resume begins anything in it.
        """
        with self.alone() as connection:
            row = _one(connection, name, over=False)
            if wish in {"run", "pause"} and row.wish in ABORTS:
                raise UsageError(
                    f"{name} is being aborted: nothing more is begun",
                    remedy=f"`entourage campaign resume {name}` sees it to its end",
                )
            connection.execute(
                sa.update(CAMPAIGNS).where(CAMPAIGNS.c.name == name).values(wish=wish)
            )

    def standing(self, name: str, owner: str) -> Wish:
        """What is wanted of a campaign that this controller runs.

        Raises:
            FencedError: Another controller runs it now.
        """
        with reads(self.engine) as connection:
            return self.owned(connection, name, owner)

    def claim(self, name: str, owner: str) -> bool:
        """Run a campaign from now on; who ran it before finds itself fenced.

        Also one that is called the same: another process may have had that name, and live.

        Returns:
            Whether nobody has run it before.
        """
        mine = sa.update(CAMPAIGNS).where(CAMPAIGNS.c.name == name).values(owner=self._mark(owner))
        with self.alone() as connection:
            before = _one(connection, name).owner
            connection.execute(mine)
        return not before

    def owned(self, connection: sa.Connection, name: str, owner: str) -> Wish:
        """What is wanted of a campaign; raises FencedError where another controller runs it."""
        query = sa.select(CAMPAIGNS.c.owner, CAMPAIGNS.c.wish).where(CAMPAIGNS.c.name == name)
        row = connection.execute(query).one()
        if row.owner != self._mark(owner):
            raise FencedError(
                f"{name} is run by {_shown(row.owner)} now",
                remedy=f"`entourage campaign watch {name}`",
            )
        return cast("Wish", row.wish)

    def _mark(self, owner: str) -> str:
        """What is written for a controller: its name, and what no other process has."""
        return f"{owner}{_MARK}{self._token}"

    def phase(self, name: str, phase: Phase, *, owner: str, reason: str, in_a_row: int) -> None:
        """Say where a campaign is that this controller runs.

        Raises:
            FencedError: Another controller runs it now.
        """
        with changes(self.engine) as connection:
            self.owned(connection, name, owner)
            connection.execute(
                sa.update(CAMPAIGNS)
                .where(CAMPAIGNS.c.name == name)
                .values(phase=phase, reason=reason, in_a_row=in_a_row)
            )

    def save(self, name: str, state: MoveState, *, owner: str) -> None:
        """Say how far a move has come; a slot that it held is free once it does not move.

        Raises:
            FencedError: Another controller runs the campaign now.
        """
        with changes(self.engine) as connection:
            self.owned(connection, name, owner)
            _save(connection, name, state)

    def try_again(self, name: str) -> int:
        """Have what stayed, and what was left waiting, wait anew; how many that is.

        Raises:
            UsageError: It is not over: somebody else may have had it be tried again.
        """
        rows = sa.select(MOVES.c.state, MOVES.c.status).where(MOVES.c.campaign == name)
        again = rows.where(MOVES.c.status.in_(("stays", "waits")))
        with self.alone() as connection:
            _one(connection, name, over=True)
            found = connection.execute(again).all()
            for row in found:
                state = state_of(row.state, row.status)
                fresh = msgspec.structs.replace(
                    state, status="waits", attempts=0, not_before=0.0, tried=()
                )
                _save(connection, name, fresh)
            if found:
                connection.execute(
                    sa.update(CAMPAIGNS)
                    .where(CAMPAIGNS.c.name == name)
                    .values(wish="run", phase="runs", reason="", in_a_row=0)
                )
        return len(found)

    # Controllers

    def beat(self, owner: str) -> None:
        """A controller lives."""
        with changes(self.engine) as connection:
            now = time.time()
            changed = connection.execute(
                sa.update(CONTROLLERS).where(CONTROLLERS.c.owner == owner).values(seen=now)
            )
            if not changed.rowcount:
                connection.execute(sa.insert(CONTROLLERS).values(owner=owner, seen=now))

    def silent(self, seconds: float) -> list[str]:
        """The controllers that have said nothing for so long, and have not said that they end."""
        before = time.time() - seconds
        query = sa.select(CONTROLLERS.c.owner).where(CONTROLLERS.c.seen < before)
        with reads(self.engine) as connection:
            return [row.owner for row in connection.execute(query)]

    def living(self, seconds: float) -> list[str]:
        """The controllers that have said something within so long."""
        query = sa.select(CONTROLLERS.c.owner).where(CONTROLLERS.c.seen >= time.time() - seconds)
        with reads(self.engine) as connection:
            return [row.owner for row in connection.execute(query)]

    def gone(self, owner: str) -> None:
        """A controller ends, or is known to be dead, and nothing of it is left to take over."""
        with changes(self.engine) as connection:
            connection.execute(sa.delete(CONTROLLERS).where(CONTROLLERS.c.owner == owner))


class Planning:
    """A transaction in which nobody else plans."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def promised(self) -> list[Move]:
        """What other campaigns have yet to move: its memory there is not free."""
        query = (
            sa.select(MOVES.c.state)
            .join(CAMPAIGNS, CAMPAIGNS.c.name == MOVES.c.campaign)
            .where(
                MOVES.c.status.in_(_PENDING),
                # What was left waiting by one that is over is promised no more.
                sa.or_(MOVES.c.status == "moves", CAMPAIGNS.c.phase.not_in(sorted(OVER))),
            )
        )
        rows = self._connection.execute(query)
        return [json_of(row.state, _Promised).move for row in rows]

    def add(self, name: str, spec: Spec) -> None:
        """Add a campaign; raises UsageError where there is one of that name."""
        known = sa.select(CAMPAIGNS.c.name).where(CAMPAIGNS.c.name == name)
        if self._connection.execute(known).first() is not None:
            raise UsageError(f"there is a campaign {name!r} already", remedy="another --name")
        self._connection.execute(
            sa.insert(CAMPAIGNS).values(
                name=name,
                created=time.time(),
                spec=msgspec.json.encode(spec).decode(),
                wish="run",
                phase="runs",
                reason="",
                in_a_row=0,
                owner="",
            )
        )
        rows = [
            {
                "campaign": name,
                "uuid": move.uuid,
                "source": move.source,
                "target": move.target,
                "status": "waits",
                "state": msgspec.json.encode(MoveState(move=move)).decode(),
            }
            for move in spec.plan.moves
        ]
        if rows:
            self._connection.execute(sa.insert(MOVES), rows)


def _one(connection: sa.Connection, name: str, *, over: bool | None = None) -> Any:
    """A campaign's row; raises UsageError where there is none, or where it is (not) to be over."""
    row = connection.execute(sa.select(CAMPAIGNS).where(CAMPAIGNS.c.name == name)).one_or_none()
    if row is None:
        raise UsageError(
            f"there is no campaign {name!r}", remedy="`entourage campaign list` shows them"
        )
    if over is True and row.phase not in OVER:
        raise UsageError(f"{name} is not over", remedy=f"`entourage campaign resume {name}`")
    if over is False and row.phase in OVER:
        raise UsageError(
            f"{name} is over ({row.phase})", remedy=f"`entourage campaign show {name}`"
        )
    return row


def _shown(owner: str) -> str:
    """A controller's name, as people know it."""
    return owner.partition(_MARK)[0]


def _save(connection: sa.Connection, name: str, state: MoveState) -> None:
    connection.execute(
        sa.update(MOVES)
        .where(MOVES.c.campaign == name, MOVES.c.uuid == state.move.uuid)
        .values(
            source=state.move.source,
            target=state.move.target,
            status=state.status,
            state=msgspec.json.encode(state).decode(),
        )
    )


def _summary(row: Any, counts: Mapping[str, int]) -> Summary:
    return Summary(
        name=row.name,
        created=row.created,
        wish=row.wish,
        phase=row.phase,
        reason=row.reason,
        owner=_shown(row.owner),
        counts=dict(counts),
    )
