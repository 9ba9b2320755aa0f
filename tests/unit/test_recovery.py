"""What ``recover`` does about one migration, beside what the rules decide."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entourage import recovery
from entourage.errors import HypervisorError
from entourage.handover.rules import Source
from entourage.handover.values import Record, Role
from entourage.journal.journal import Decision, Journal
from entourage.settings.model import PathSettings, Settings
from entourage.source.ask import TargetQuery, declare_fenced, is_untold
from tests.unit.decisions import ARMED


class Departure:
    """The source's half, that came back and has cleaned up."""

    def __init__(self) -> None:
        self.state = Source(migration="m-1", peer_journal="T", record=Record.BACK, clean=True)
        self.findings: list[Any] = []
        self.problems: list[str] = []


@pytest.mark.parametrize(
    ("declared", "again", "asks"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_fenced_target_is_told_in_the_run_that_finishes_going_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    declared: bool,  # noqa: FBT001 - columns of the table above
    again: bool,  # noqa: FBT001
    asks: bool,  # noqa: FBT001
) -> None:
    settings = Settings(paths=PathSettings(state=str(tmp_path), run=str(tmp_path / "run")))
    asked: list[str] = []

    @contextlib.asynccontextmanager
    async def reattach(
        journal: Journal, _settings: Settings, decision: Decision, **_send: object
    ) -> AsyncGenerator[Departure]:
        journal.clean(decision.migration, Role.SOURCE)
        yield Departure()

    async def ask(_query: TargetQuery, _side: object) -> bool:
        asked.append("b")
        return True

    monkeypatch.setattr(recovery, "reattach_source", reattach)
    monkeypatch.setattr(TargetQuery, "ask", ask)
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.begin(ARMED)
        if declared:
            declare_fenced(journal, ARMED)
        journal.advance("m-1", Role.SOURCE, expected={Record.ARMED}, new=Record.BACK)
        [done] = asyncio.run(recovery.recover(settings, "web1", target_is_fenced=again))
        assert done.settled
        assert bool(asked) is asks
        standing = journal.decision("m-1", Role.SOURCE)
        assert standing is not None
        assert is_untold(standing) is (declared and not asks)


def test_what_is_left_for_its_user_to_look_at_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(paths=PathSettings(state=str(tmp_path), run=str(tmp_path / "run")))
    opened = replace(ARMED, role=Role.TARGET, record=Record.OPEN)

    class Arrival:
        record = Record.NEVER
        findings = ()
        problems = ("one cannot be removed",)
        notes = ("another is named",)

    @contextlib.asynccontextmanager
    async def reattach(*_given: object, **_named: object) -> AsyncGenerator[Arrival]:
        yield Arrival()

    monkeypatch.setattr(recovery, "reattach_target", reattach)
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.begin(opened)
        [done] = asyncio.run(recovery.recover(settings))
    assert done.problems == ("one cannot be removed", "another is named")


@pytest.mark.parametrize(
    ("source", "target", "asked"),
    [
        # What stands in the journal of each half before: settled, or still to be.
        (Record.ARMED, None, True),
        (Record.BACK, Record.NEVER, False),  # nothing was to be done
        (Record.BACK, Record.OPEN, True),  # the save was settled in a run of its own
    ],
)
def test_a_guest_goes_on_once_what_was_saved_of_it_is_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: Record,
    target: Record | None,
    asked: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    settings = Settings(paths=PathSettings(state=str(tmp_path), run=str(tmp_path / "run")))
    proxies = recovery.proxy_settings(settings)
    went_on: list[str] = []
    fails = False

    async def settle(
        journal: Journal, _settings: Settings, decision: Decision, *_: object, **_fenced: object
    ) -> recovery.Recovered:
        assert not went_on
        role = decision.role
        if fails and role is Role.TARGET:
            raise HypervisorError("the storage does not answer")
        new = Record.BACK if role is Role.SOURCE else Record.NEVER
        journal.advance(decision.migration, role, expected={decision.record}, new=new)
        journal.clean(decision.migration, role)
        return recovery.Recovered(
            domain=decision.name,
            migration=decision.migration,
            role=role.value,
            peer=decision.peer_host,
            before=decision.record.value,
            after=new.value,
            settled=True,
            problems=("one",),
        )

    async def have_go_on(_settings: Settings, decision: Decision) -> list[str]:
        went_on.append(decision.migration)
        return ["it stands still"]

    monkeypatch.setattr(recovery, "_settle", settle)
    monkeypatch.setattr(recovery, "have_go_on", have_go_on)
    Path(proxies.paths.state).mkdir(parents=True, exist_ok=True)
    with (
        Journal.open(tmp_path / "journal.db") as own,
        Journal.open(Path(proxies.paths.state, "journal.db")) as kept,
    ):
        own.begin(ARMED)
        if source is Record.BACK:
            own.advance("m-1", Role.SOURCE, expected={Record.ARMED}, new=Record.BACK)
            own.clean("m-1", Role.SOURCE)
        if target is not None:
            kept.begin(replace(ARMED, role=Role.TARGET, record=Record.OPEN, peer_host="a"))
        if target is Record.NEVER:
            kept.advance("m-1", Role.TARGET, expected={Record.OPEN}, new=Record.NEVER)
            kept.clean("m-1", Role.TARGET)
        assert asyncio.run(recovery.recover(settings, dry_run=True)) or not asked
        assert went_on == []
        fails = True
        asyncio.run(recovery.recover(settings))
        assert went_on == (["m-1"] if asked and target is None else [])
        fails = False
        done = asyncio.run(recovery.recover(settings)) if target else []
        assert went_on == (["m-1"] if asked else [])
        if target is Record.OPEN:
            assert [one.problems for one in done] == [("one", "it stands still")]
            assert not any(one.settled for one in done)  # its user has to look at it
