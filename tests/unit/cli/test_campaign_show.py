"""``entourage campaign show``."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from entourage.cli import campaigns
from entourage.fleet.database import open_engine
from entourage.fleet.records import Records
from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move, Plan


class Asked:
    def __init__(self, store: Store) -> None:
        self._store = store

    def store(self) -> Store:
        return self._store


@pytest.fixture
def asked(tmp_path: Path) -> Generator[Any]:
    store = Store(open_engine(f"sqlite:///{tmp_path}/fleet.db"))
    move = Move(name="web1", uuid="u", source="a", target="b")
    with store.planning() as planning:
        planning.add("first", Spec(plan=Plan(moves=[move])))
    records = Records(store.engine)
    records.say("first", "root on a", "began it")
    records.say("first", "alice\x1b", "paused it")
    yield Asked(store)
    store.engine.dispose()


def test_who_did_what_is_told_in_its_order(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    campaigns.show(asked, "first", as_json=False)
    *_, began, paused = capsys.readouterr().out.splitlines()
    assert began.endswith("  root on a began it")
    assert paused.endswith("  alice\\x1b paused it")
    campaigns.show(asked, "first", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in said["history"]] == ["paused it", "began it"]
