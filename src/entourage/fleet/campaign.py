"""The rules of a campaign: what may begin now, and what follows from how it ended. No I/O.

A campaign is its moves, its limits and what its user wants of it. It ends: each move ends, or has
been tried as often as it may be, or the campaign was aborted, or stopped because too many in a row
went back. Nothing in it ever shuts a domain down.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, Protocol, TypeAlias

import msgspec

from entourage.fleet.values import Limits, Move, MoveState, Plan, Result

Wish: TypeAlias = Literal["run", "pause", "abort", "take-back"]
"""What its user wants of a campaign. ``abort``: begin nothing more; ``take-back``: and have what
moves go back, if it still can."""
Phase: TypeAlias = Literal["runs", "paused", "aborting", "ended", "stopped", "aborted"]
OVER: Final = frozenset({"ended", "stopped", "aborted"})
_PENDING: Final = frozenset({"waits", "moves"})
_LONGEST_WAIT: Final = 3600.0  # seconds
_MINUTE: Final = 60


class Slots(Protocol):
    """Who may leave a source, and arrive at a target, of all that move in the fleet."""

    async def take(self, move: Move, limits: Limits) -> bool:
        """Have a move begin; False where its source or its target is busy enough."""
        ...

    def give_back(self, move: Move) -> None:
        """It has ended."""
        ...

    async def put_back(self, move: Move) -> None:
        """It was not begun after all."""
        ...


class FleetSlots:
    """Those of campaigns that run in one process.

    Args:
        arrivals: By target, how many it lets arrive at once itself.
    """

    def __init__(self, arrivals: Mapping[str, int] | None = None) -> None:
        self.leaving: defaultdict[str, int] = defaultdict(int)
        self.arriving: defaultdict[str, int] = defaultdict(int)
        self._arrivals = arrivals or {}

    async def take(self, move: Move, limits: Limits) -> bool:
        """See ``Slots``."""
        most = min(limits.per_target, self._arrivals.get(move.target, limits.per_target))
        if self.leaving[move.source] >= limits.at_once or self.arriving[move.target] >= most:
            return False
        self.leaving[move.source] += 1
        self.arriving[move.target] += 1
        return True

    def give_back(self, move: Move) -> None:
        """See ``Slots``."""
        self.leaving[move.source] -= 1
        self.arriving[move.target] -= 1

    async def put_back(self, move: Move) -> None:
        """See ``Slots``."""
        self.give_back(move)


Elsewhere: TypeAlias = Callable[[MoveState], str | None]
"""Finds another target for a domain that did not get to its own; None where there is none."""


class Campaign:
    """One of them, as far as it has come.

    Args:
        name: Its own.
        plan: What is to be done.
        limits: How.
        slots: Of all that move.
        states: How far its moves have come, where it is taken up again.

    Attributes:
        moves: By UUID, in the order in which they are begun.
        wish: What its user wants.
        reason: Why it stopped; empty where it has not.
        in_a_row: How many went back since one moved.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        limits: Limits,
        slots: Slots,
        states: Iterable[MoveState] = (),
    ) -> None:
        self.name = name
        self.limits = limits
        self.wish: Wish = "run"
        self.reason = ""
        self.in_a_row = 0
        self._slots = slots
        known = {one.move.uuid: one for one in states}
        self.moves = {move.uuid: known.get(move.uuid, MoveState(move=move)) for move in plan.moves}
        self._order = {uuid: place for place, uuid in enumerate(self.moves)}
        self._by_source: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._by_target: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._later: list[tuple[float, int, str]] = []
        self._look_at: dict[tuple[str, str], None] = {}
        self._moving: dict[str, None] = {}
        self._pending = 0
        for uuid, state in self.moves.items():
            if state.status in _PENDING:
                self._pending += 1
                if state.status == "waits":
                    self._queue(uuid)
                else:
                    self._moving[uuid] = None

    @property
    def phase(self) -> Phase:
        """Where it is."""
        if self.reason:
            return "aborting" if self._moving else "stopped"
        if self.wish in {"abort", "take-back"}:
            return "aborting" if self._moving else "aborted"
        if not self._pending:
            return "ended"
        return "paused" if self.wish == "pause" else "runs"

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen any more."""
        return self.phase in OVER

    @property
    def under_way(self) -> list[Move]:
        """What moves now."""
        return [self.moves[uuid].move for uuid in self._moving]

    async def due(self, now: float) -> list[Move]:
        """What begins now; it counts as begun when this returns, see also ``withdraw``.

        Moves may end, and more be wished for, while slots are waited for: if nothing more is to
        begin by that, nothing does.

        Args:
            now: Seconds since 1970.
        """
        if self.phase != "runs" or not in_window(self.limits, now):
            return []
        while self._later and self._later[0][0] <= now:
            self._queue(heapq.heappop(self._later)[2])
        begun: list[Move] = []
        look_at, self._look_at = self._look_at, {}
        for kind, host in look_at:
            waiting = (self._by_source if kind == "source" else self._by_target)[host]
            for uuid in sorted(waiting, key=self._order.__getitem__):
                if not self.begins:
                    self._look_at |= look_at  # for when it goes on
                    return begun
                move = self.moves[uuid].move
                if await self._slots.take(move, self.limits):
                    self._unqueue(uuid)
                    state = self.moves[uuid]
                    self.moves[uuid] = msgspec.structs.replace(
                        state, status="moves", attempts=state.attempts + 1
                    )
                    self._moving[uuid] = None
                    if self.begins:
                        begun.append(move)
                    else:
                        await self.withdraw(move)
        return begun

    @property
    def begins(self) -> bool:
        """Whether anything may begin, as far as its user and its limits say."""
        return self.phase == "runs"

    async def withdraw(self, move: Move) -> None:
        """Have what ``due`` has returned not begin after all: it waits as before."""
        await self._slots.put_back(move)
        state = self.moves[move.uuid]
        self.moves[move.uuid] = msgspec.structs.replace(
            state, status="waits", attempts=state.attempts - 1
        )
        del self._moving[move.uuid]
        self._queue(move.uuid)

    def next_at(self, now: float) -> float | None:
        """When something may begin that may not now, seconds since 1970; None: not by time."""
        if self.phase != "runs":
            return None
        if not in_window(self.limits, now):
            return opens_at(self.limits, now)
        return self._later[0][0] if self._later else None

    def look_again(self, ended: Move | None = None) -> None:
        """Look again at what waits for the slots of a move that has ended; None: at all."""
        if ended is not None:
            self._look_at[("source", ended.source)] = None
            self._look_at[("target", ended.target)] = None
            return
        for source in self._by_source:
            self._look_at[("source", source)] = None

    def ended(self, move: Move, result: Result, now: float, elsewhere: Elsewhere) -> MoveState:
        """A move has ended; what becomes of it.

        Args:
            move: As it was begun.
            result: How.
            now: Seconds since 1970.
            elsewhere: Finds it another target.
        """
        self._slots.give_back(move)
        del self._moving[move.uuid]
        self.look_again(move)
        state = self.moves[move.uuid]
        state = msgspec.structs.replace(
            state,
            message=result.message,
            remedy=result.remedy,
            blackout=result.blackout,
        )
        if result.kind in {"back", "refused"}:
            state = self._again(state, result, now, elsewhere)
        else:
            state = msgspec.structs.replace(state, status=result.kind)  # type: ignore[arg-type]
        self._count(result)
        self.moves[move.uuid] = state
        if state.status == "waits":
            heapq.heappush(self._later, (state.not_before, self._order[move.uuid], move.uuid))
        else:
            self._pending -= 1
        return state

    def _again(
        self, state: MoveState, result: Result, now: float, elsewhere: Elsewhere
    ) -> MoveState:
        """Try it again later, on another target if there is one; or leave it where it is."""
        move = state.move
        tried = tuple(dict.fromkeys((*state.tried, move.target)))
        state = msgspec.structs.replace(state, tried=tried)
        if state.attempts >= self.limits.attempts:
            return msgspec.structs.replace(state, status="stays")
        target = elsewhere(state)
        if target is None:
            if result.kind == "refused":
                return msgspec.structs.replace(state, status="stays")
            target = move.target
        wait = min(self.limits.wait * 2.0 ** (state.attempts - 1), _LONGEST_WAIT)
        return msgspec.structs.replace(
            state,
            status="waits",
            move=msgspec.structs.replace(move, target=target),
            # Another target that has not been tried need not be waited for.
            not_before=now + (wait if result.kind == "back" else 0.0),
        )

    def _count(self, result: Result) -> None:
        if result.kind in {"back", "doubt"}:
            self.in_a_row += 1
            if self.in_a_row >= self.limits.in_a_row and not self.reason:
                last = result.message or "why is not known"
                self.reason = f"{self.in_a_row} in a row did not move; the last: {last}"
        elif result.kind == "moved":
            self.in_a_row = 0

    def _queue(self, uuid: str) -> None:
        move = self.moves[uuid].move
        self._by_source[move.source][uuid] = None
        self._by_target[move.target][uuid] = None
        self._look_at[("source", move.source)] = None

    def _unqueue(self, uuid: str) -> None:
        move = self.moves[uuid].move
        del self._by_source[move.source][uuid]
        del self._by_target[move.target][uuid]


def in_window(limits: Limits, now: float) -> bool:
    """Whether a move may begin at that moment."""
    if limits.window is None:
        return True
    first, last = limits.window
    minute = _minute(now)
    return first <= minute < last if first < last else minute >= first or minute < last


def opens_at(limits: Limits, now: float) -> float:
    """When the window opens next; ``now`` where there is none."""
    if limits.window is None:
        return now
    minutes = (limits.window[0] - _minute(now)) % (24 * _MINUTE)
    return now + minutes * _MINUTE - time.localtime(now).tm_sec


def _minute(now: float) -> int:
    local = time.localtime(now)
    return local.tm_hour * _MINUTE + local.tm_min
