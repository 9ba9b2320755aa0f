"""``entourage campaign show``, and what is wished for."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from entourage.cli import campaigns
from entourage.errors import UsageError
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


def test_what_is_wished_for_in_vain_is_not_written_down(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is being aborted is not paused; who resumes it sees it to its end."""
    store: Store = asked.store()
    campaigns.wish(asked, "first", "abort")
    before = Records(store.engine).history("first")
    with pytest.raises(UsageError, match="is being aborted"):
        campaigns.wish(asked, "first", "pause")

    def run(*_: Any) -> int:
        return 7

    monkeypatch.setattr(campaigns, "run", run)
    assert campaigns.resume(asked, "first") == 7
    with pytest.raises(UsageError, match="is not over"):
        campaigns.retry(asked, "first")
    assert Records(store.engine).history("first") == before
    assert store.summary("first").wish == "abort"
