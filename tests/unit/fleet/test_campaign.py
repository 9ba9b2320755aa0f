"""The rules: what may begin, and what follows from how it ended."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable

import pytest

from entourage.fleet.campaign import Campaign, FleetSlots, Wish, in_window, opens_at
from entourage.fleet.engine import Driver, RealTime
from entourage.fleet.values import Limits, Move, MoveState, Plan, Result

MOVED = Result(kind="moved", blackout=0.1)
BACK = Result(kind="back", message="the link was lost")
REFUSED = Result(kind="refused", message="there is no bridge")


def move(name: str, source: str = "a", target: str = "b") -> Move:
    return Move(name=name, uuid=name, source=source, target=target)


def campaign(
    *moves: Move, limits: Limits | None = None, slots: FleetSlots | None = None
) -> Campaign:
    return Campaign("c", Plan(moves=moves), limits or Limits(), slots or FleetSlots())


def nowhere(_: MoveState) -> str | None:
    return None


def names(moves: list[Move]) -> list[str]:
    return [one.name for one in moves]


async def test_limits_of_sources_and_targets_hold() -> None:
    limits = Limits(at_once=2, per_target=1)
    one = campaign(
        move("x"), move("y"), move("z", target="c"), move("w", target="d"), limits=limits
    )
    assert names(await one.due(0)) == ["x", "z"]
    assert await one.due(0) == []
    one.ended(one.moves["x"].move, MOVED, 1, nowhere)
    assert names(await one.due(1)) == ["y"]


async def test_a_target_lets_fewer_arrive_than_the_campaign_would() -> None:
    slots = FleetSlots({"b": 1})
    one = campaign(move("x"), move("y"), limits=Limits(per_target=2), slots=slots)
    assert names(await one.due(0)) == ["x"]


async def test_limits_are_those_of_all_campaigns() -> None:
    slots = FleetSlots()
    first = campaign(move("x"), slots=slots)
    second = campaign(move("y", source="s"), slots=slots)
    assert names(await first.due(0)) == ["x"]
    assert await second.due(0) == []
    first.ended(move("x"), MOVED, 1, nowhere)
    assert await second.due(1) == []  # it has not heard of it
    second.look_again(move("x"))
    assert names(await second.due(1)) == ["y"]


async def test_what_went_back_is_tried_again_later_each_time_and_then_stays() -> None:
    one = campaign(move("x"), limits=Limits(attempts=3, wait=10, in_a_row=9))
    waits: list[float] = []
    now = 0.0
    for _ in range(2):
        assert names(await one.due(now)) == ["x"]
        state = one.ended(move("x"), BACK, now, nowhere)
        assert state.status == "waits"
        waits.append(state.not_before - now)
        assert await one.due(state.not_before - 1) == []
        assert one.next_at(now) == state.not_before
        now = state.not_before
    assert names(await one.due(now)) == ["x"]
    assert one.ended(move("x"), BACK, now, nowhere).status == "stays"
    assert waits == [10, 20]
    assert one.phase == "ended"


async def test_a_refusal_is_tried_elsewhere_at_once_or_not_at_all() -> None:
    one = campaign(move("x"), move("y"))
    assert names(await one.due(0)) == ["x"]
    state = one.ended(move("x"), REFUSED, 5, lambda _: "c")
    assert (state.status, state.move.target, state.tried) == ("waits", "c", ("b",))
    assert sorted(names(await one.due(5))) == ["x", "y"]
    assert one.ended(one.moves["x"].move, REFUSED, 6, nowhere).status == "stays"


async def test_too_many_in_a_row_stop_it_and_it_says_why() -> None:
    limits = Limits(in_a_row=2, attempts=1, at_once=1)
    one = campaign(*(move(f"x{n}") for n in range(4)), limits=limits)
    for n in range(2):
        (begun,) = await one.due(n)
        one.ended(begun, BACK, n, nowhere)
    assert one.phase == "stopped"
    assert one.reason == "2 in a row did not move; the last: the link was lost"
    assert await one.due(9) == []


async def test_one_that_moves_begins_the_row_anew() -> None:
    limits = Limits(in_a_row=2, attempts=1, at_once=1)
    one = campaign(*(move(f"x{n}") for n in range(4)), limits=limits)
    for result in (BACK, MOVED, BACK):
        (begun,) = await one.due(0)
        one.ended(begun, result, 0, nowhere)
    assert one.phase == "runs"


async def test_paused_and_aborted_it_begins_nothing() -> None:
    one = campaign(move("x"), move("y"))
    (begun,) = await one.due(0)
    one.wish = "pause"
    one.ended(begun, MOVED, 1, nowhere)
    assert (await one.due(1), one.phase) == ([], "paused")
    one.wish = "run"
    assert names(await one.due(2)) == ["y"]
    one.wish = "abort"
    assert one.phase == "aborting"
    one.ended(move("y"), BACK, 3, nowhere)
    assert (await one.due(9999), one.phase, one.is_over) == ([], "aborted", True)


@pytest.mark.parametrize("kind", ["doubt", "off", "elsewhere"])
async def test_what_is_not_tried_again(kind: str) -> None:
    one = campaign(move("x"))
    await one.due(0)
    result = Result(kind=kind)  # type: ignore[arg-type]
    assert one.ended(move("x"), result, 1, lambda _: "c").status == kind
    assert one.phase == "ended"


async def test_it_is_taken_up_where_it_was() -> None:
    states = [MoveState(move=move("x"), status="moves", attempts=1), MoveState(move=move("y"))]
    one = Campaign(
        "c", Plan(moves=[move("x"), move("y")]), Limits(), FleetSlots(), states
    )  # fmt: skip
    assert names(one.under_way) == ["x"]
    assert names(await one.due(0)) == ["y"]


@pytest.mark.parametrize(
    ("clock", "opened"), [("21:59", False), ("22:00", True), ("04:59", True), ("05:00", False)]
)
def test_a_window_over_midnight(clock: str, *, opened: bool) -> None:
    limits = Limits(window=(22 * 60, 5 * 60))
    now = dt.datetime.fromisoformat(f"2026-11-29 {clock}").astimezone().timestamp()
    assert in_window(limits, now) is opened
    if not opened:
        assert in_window(limits, opens_at(limits, now))
        assert not in_window(limits, opens_at(limits, now) - 1)


class _Moves(RealTime):
    """All that moves has moved."""

    async def ensure(self, move: Move) -> Result:
        assert move.name == "x"
        return MOVED

    def elsewhere(self, state: MoveState) -> str | None:
        raise NotImplementedError


async def test_it_is_over_once_that_has_been_told() -> None:
    """Who is told may have to wait for a database: else its last move would not be written down."""
    told, begun, may_end = list[str](), asyncio.Event(), asyncio.Event()

    async def tell(state: MoveState) -> None:
        if state.status == "moved":
            begun.set()
            await may_end.wait()
        told.append(state.status)

    driver = Driver(campaign(move("x")), _Moves(), tell)
    running = asyncio.create_task(driver.run())
    await begun.wait()
    driver.wake()
    _, waits = await asyncio.wait({running}, timeout=0.05)
    assert waits == {running}
    may_end.set()
    assert await running == "ended"
    assert told == ["moves", "moved"]


class SlowSlots(FleetSlots):
    """Something happens while one of them is waited for, before or after it is given.

    Attributes:
        at: The name of that move.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at, self.first = "", True
        self.happens: Callable[[], object] = lambda: None
        self.asked: list[str] = []

    async def take(self, move: Move, limits: Limits) -> bool:
        self.asked.append(move.name)
        if move.name == self.at and self.first:
            self.happens()
        taken = await super().take(move, limits)
        if move.name == self.at and not self.first:
            self.happens()
        return taken


@pytest.mark.parametrize("first", [True, False])
async def test_what_stops_while_slots_are_waited_for_begins_nothing_more(*, first: bool) -> None:
    """Of two that went back the second does so while the database is asked for the next slot."""
    slots = SlowSlots()
    limits = Limits(in_a_row=2, attempts=1, at_once=4, per_target=4)
    one = campaign(*(move(f"x{n}") for n in range(6)), limits=limits, slots=slots)
    slots.at = "x2"
    begun: list[str] = []

    def ends() -> None:
        for name in ("x0", "x1"):
            one.ended(move(name), BACK, 1, nowhere)

    slots.happens, slots.first = ends, first
    begun = names(await one.due(0))
    assert begun == ["x0", "x1"]
    assert (slots.asked, one.phase) == (["x0", "x1", "x2"], "stopped")
    assert (slots.leaving["a"], slots.arriving["b"]) == (0, 0)
    state = one.moves["x2"]
    assert (state.status, state.attempts, one.under_way) == ("waits", 0, [])


@pytest.mark.parametrize("first", [True, False])
async def test_what_is_paused_while_slots_are_waited_for_goes_on_from_there(*, first: bool) -> None:
    slots = SlowSlots()
    limits = Limits(at_once=4, per_target=4)
    one = campaign(*(move(f"x{n}") for n in range(3)), limits=limits, slots=slots)

    def wish(what: Wish) -> None:
        one.wish = what

    slots.at, slots.first, slots.happens = "x0", first, lambda: wish("pause")
    assert (await one.due(0), one.phase) == ([], "paused")
    slots.at = ""
    wish("run")
    assert names(await one.due(1)) == ["x0", "x1", "x2"]
    assert [state.attempts for state in one.moves.values()] == [1, 1, 1]


class _GoesBack(RealTime):
    """Whatever moves goes back; what has begun is noted."""

    def __init__(self) -> None:
        self.began: list[str] = []

    async def ensure(self, move: Move) -> Result:
        self.began.append(move.name)
        return BACK

    def elsewhere(self, state: MoveState) -> str | None:
        return None


async def test_what_stops_while_that_is_told_begins_nothing_more() -> None:
    """Slots of three were taken at once; to tell of the second waits until the first is back."""
    limits = Limits(in_a_row=1, attempts=1, at_once=4, per_target=4)
    slots, world, stopped = FleetSlots(), _GoesBack(), asyncio.Event()
    one = campaign(*(move(f"x{n}") for n in range(4)), limits=limits, slots=slots)

    told: dict[str, str] = {}

    async def tell(state: MoveState) -> None:
        told[state.move.name] = state.status
        if state.status == "stays":
            stopped.set()
        elif state.move.name == "x1":
            await stopped.wait()

    assert await Driver(one, world, tell).run() == "stopped"
    assert world.began == ["x0"]
    assert [one.moves[name].status for name in ("x1", "x2", "x3")] == ["waits"] * 3
    assert told["x1"] == "waits"
    assert (slots.leaving["a"], slots.arriving["b"]) == (0, 0)
