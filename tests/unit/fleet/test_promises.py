"""Plans are made without the database's lock, and no two campaigns promise the same room."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from entourage.errors import UsageError
from entourage.fleet.database import open_engine
from entourage.fleet.promises import add_planned
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, MoveState, Plan


@dataclass
class Made:
    spec: Spec | None


def move(name: str, target: str = "b") -> Move:
    return Move(name=name, uuid=name, source="a", target=target, memory=1)


def spec(*names: str) -> Spec:
    return Spec(plan=Plan(moves=[move(name) for name in names]))


def add(store: Store, name: str, *names: str) -> None:
    with store.planning() as planning:
        planning.add(name, spec(*names))


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    store = Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))
    yield store
    store.engine.dispose()


def test_others_may_write_while_a_plan_is_made(store: Store) -> None:
    """Also plan: then it is made once more, with what those have promised."""
    seen: list[list[str]] = []

    def make(promised: Sequence[Move]) -> Made:
        seen.append([one.name for one in promised])
        if len(seen) == 1:
            add(store, "other", "x")  # fails where somebody has the lock
        return Made(spec("y"))

    made = add_planned(store, "mine", [], make)
    assert seen == [[], ["x"]]
    assert made.spec is not None
    assert [one.name for one in store.promised()] == ["x", "y"]


def test_what_has_arrived_since_the_hosts_were_asked_stays_promised(store: Store) -> None:
    """Their answers do not have it, and its row says no more that it is on its way."""
    add(store, "other", "x")
    before = store.promised()
    store.claim("other", "me")
    store.save("other", MoveState(move=move("x"), status="moved"), owner="me")
    seen: list[list[str]] = []

    def make(promised: Sequence[Move]) -> Made:
        seen.append([one.name for one in promised])
        return Made(spec("y"))

    add_planned(store, "mine", before, make)
    assert seen == [["x"]]


def test_it_comes_to_an_end_where_others_plan_all_the_time(store: Store) -> None:
    asked: list[int] = []

    def make(promised: Sequence[Move]) -> Made:
        asked.append(len(promised))
        if len(asked) <= 4:
            add(store, f"other-{len(asked)}", f"x{len(asked)}")
        return Made(spec("y"))

    add_planned(store, "mine", [], make)
    assert asked == [0, 1, 2, 3, 4]
    assert len(store.promised()) == 5


def test_nothing_is_added_where_there_is_nothing(store: Store) -> None:
    def make(_: Sequence[Move]) -> Made:
        return Made(None)

    add_planned(store, "mine", [], make)
    assert store.summaries() == []


def test_a_name_that_is_taken(store: Store) -> None:
    add(store, "mine", "x")

    def make(_: Sequence[Move]) -> Made:
        return Made(spec("y"))

    with pytest.raises(UsageError, match="there is a campaign 'mine' already"):
        add_planned(store, "mine", [], make)
