"""Where domains were at home, in a real SQLite file."""

from __future__ import annotations

from pathlib import Path

import pytest

from entourage.fleet.database import open_engine
from entourage.fleet.homes import at_home
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, MoveState, Plan, Status


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))


def moved(
    store: Store, name: str, source: str, target: str, *, emptied: bool, status: Status = "moved"
) -> None:
    """A campaign that has moved web1, whose UUID is 1."""
    move = Move(name="web1", uuid="1", source=source, target=target)
    plan = Plan(moves=[move], hosts=[source] if emptied else [])
    with store.planning() as planning:
        planning.add(name, Spec(plan=plan))
    store.claim(name, "me")
    store.save(name, MoveState(move=move, status=status), owner="me")


def test_home_is_where_it_ran_before_the_first_evacuation(store: Store) -> None:
    assert at_home(store, "a") == {}
    moved(store, "first", "a", "b", emptied=True)
    moved(store, "second", "b", "c", emptied=True)
    assert at_home(store, "a") == {"1": "web1"}
    assert at_home(store, "b") == {}
    assert at_home(store, "c") == {}


def test_what_moved_by_its_name_is_at_home_where_it_went(store: Store) -> None:
    moved(store, "first", "a", "b", emptied=True)
    moved(store, "by-name", "b", "c", emptied=False)
    assert at_home(store, "a") == {}
    moved(store, "third", "c", "d", emptied=True)
    assert at_home(store, "c") == {"1": "web1"}


def test_what_stayed_is_not_away(store: Store) -> None:
    moved(store, "first", "a", "b", emptied=True, status="stays")
    assert at_home(store, "a") == {}
