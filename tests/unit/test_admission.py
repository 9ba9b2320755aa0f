"""Who may be started and stopped by hand, by what a real journal says."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from entourage import admission
from entourage.admission import known, manual_access
from entourage.errors import DomainBusy, EntourageError, UsageError
from entourage.handover.values import Record, Role
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.settings.model import PathSettings, Settings

UUID = "5b6e6d0e-0000-4000-8000-000000000001"
WAY = {
    Record.BACK: (Role.SOURCE, (Record.ARMED,)),
    Record.GONE: (Role.SOURCE, (Record.ARMED,)),
    Record.ARMED: (Role.SOURCE, ()),
    Record.OPEN: (Role.TARGET, ()),
    Record.NEVER: (Role.TARGET, (Record.OPEN,)),
    Record.GO: (Role.TARGET, (Record.OPEN,)),
    Record.RAN: (Role.TARGET, (Record.OPEN, Record.GO)),
    Record.OWNS: (Role.TARGET, (Record.OPEN, Record.GO, Record.RAN)),
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(paths=PathSettings(state=str(tmp_path / "s"), run=str(tmp_path / "r")))


def remember(settings: Settings, *records: Record) -> None:
    """Let the journal have lived through migrations that ended so, the oldest first."""
    with Journal.open(Path(settings.paths.state, "journal.db")) as journal:
        for number, record in enumerate(records):
            role, steps = WAY[record]
            way = (*steps, record)
            decision = Decision(
                migration=str(number),
                role=role,
                domain=UUID,
                name="web1",
                generation=number + 1,
                record=way[0],
                peer_host="b",
            )
            journal.begin(decision)
            for before, after in itertools.pairwise(way):
                assert journal.advance(str(number), role, expected={before}, new=after)
            if record in {Record.BACK, Record.GONE, Record.NEVER, Record.OWNS}:
                journal.clean(str(number), role)


def allowed(
    settings: Settings, *, starts: bool, name: str = "web1", uuid: str | None = UUID
) -> str:
    try:
        with manual_access(settings, name, uuid, "tests", starts=starts):
            return ""
    except DomainBusy as busy:
        return str(busy)


@pytest.mark.parametrize(
    ("records", "start", "stop"),
    [
        ((), "", ""),
        ((Record.BACK,), "", ""),
        ((Record.OWNS,), "", ""),
        ((Record.NEVER,), "", ""),
        ((Record.GONE,), "moved to b", ""),
        ((Record.GONE, Record.NEVER), "moved to b", ""),
        ((Record.GONE, Record.OWNS), "", ""),
        ((Record.ARMED,), "not settled", "not settled"),
        ((Record.OPEN,), "not settled", "not settled"),
        ((Record.GO,), "not settled", "not settled"),
        ((Record.RAN,), "not confirmed", ""),
    ],
)
def test_by_what_was_decided(
    settings: Settings, records: tuple[Record, ...], start: str, stop: str
) -> None:
    if records:
        remember(settings, *records)
    for starts, wanted in ((True, start), (False, stop)):
        said = allowed(settings, starts=starts)
        assert (wanted in said) if wanted else not said, said


def test_a_file_without_a_uuid_is_known_by_its_name(settings: Settings) -> None:
    remember(settings, Record.GONE)
    assert "moved to b" in allowed(settings, starts=True, uuid=None)
    assert not allowed(settings, starts=True, uuid=None, name="web2")


def test_nobody_touches_what_another_works_on(settings: Settings) -> None:
    with domain_lock(Path(settings.paths.run), UUID, "migrates web1 to b"):
        assert "migrates web1 to b" in allowed(settings, starts=False)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ((), "there is no domain 'web1'"),
        ((Record.GONE,), "web1 moved to b"),
        ((Record.GO,), "not settled here: go"),
        ((Record.NEVER,), "there is no domain 'web1'"),
    ],
)
def test_the_journal_knows_of_domains_that_the_hypervisor_does_not(
    settings: Settings, records: tuple[Record, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(_settings: Settings, name: str, _connect: str | None) -> None:
        raise UsageError(f"there is no domain {name!r} on this host")

    monkeypatch.setattr(admission, "find_domain", nowhere)
    remember(settings, *records)
    with pytest.raises(EntourageError, match=said):
        asyncio.run(known(settings, "web1"))


def test_a_clock_that_is_set_back_changes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    remember(settings, Record.OWNS)
    monkeypatch.setattr(time, "time_ns", lambda: now - 10**18)
    with Journal.open(Path(settings.paths.state, "journal.db")) as journal:
        gone = Decision(
            migration="later",
            role=Role.SOURCE,
            domain=UUID,
            name="web1",
            generation=9,
            record=Record.ARMED,
            peer_host="c",
        )
        journal.begin(gone)
        assert journal.advance("later", Role.SOURCE, expected={Record.ARMED}, new=Record.GONE)
        journal.clean("later", Role.SOURCE)
    assert "moved to c" in allowed(settings, starts=True)
