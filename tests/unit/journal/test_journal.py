"""The journal: what it promises, and that it refuses to promise where it cannot."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from entourage.admission import arrival_generation
from entourage.domain import Domain
from entourage.handover.values import Flush, Record, Role
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Journal, MigrationLedger
from entourage.journal.rows import Decision, DecisionRefusedError, MigrationOverError
from entourage.settings.model import JournalSettings

OPEN = Decision(
    migration="m-1",
    role=Role.TARGET,
    domain="d-1",
    name="web 1",
    generation=1,
    record=Record.OPEN,
    peer_host="a",
    peer_journal="j-a",
    details=TargetDetails(domain=Domain(name="é", memory=1 << 28)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state dir?" / "100%" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal.open(path) as opened:
        yield opened


def advance(journal: Journal, old: Record, new: Record, migration: str = "m-1") -> bool:
    return journal.advance(migration, Role.TARGET, expected={old}, new=new)


def settle(journal: Journal, record: Record = Record.NEVER) -> None:
    assert advance(journal, Record.OPEN, record)
    journal.clean("m-1", Role.TARGET)


# ── decisions ────────────────────────────────────────────────────────────────────────────────────


def test_what_is_settled_at_once_is_written_at_once(journal: Journal) -> None:
    """In one transaction; with nothing older or unsettled overlooked."""
    gone = replace(OPEN, record=Record.OWNS, clean=True)
    journal.begin(gone)
    assert [one.settled for one in journal.decisions("d-1")] == [True]
    with pytest.raises(DecisionRefusedError, match="a newer migration"):
        journal.begin(replace(gone, migration="m-2"))
    with pytest.raises(ValueError, match="no migration begins with owns"):
        journal.begin(replace(gone, migration="m-2", generation=2, clean=False))


def come(journal: Journal) -> None:
    """The domain has come here, and is this host's."""
    for old, new in (
        (Record.OPEN, Record.GO),
        (Record.GO, Record.RAN),
        (Record.RAN, Record.OWNS),
    ):
        assert advance(journal, old, new)
    journal.clean("m-1", Role.TARGET)


def test_a_decision_is_what_it_was(journal: Journal, path: Path) -> None:
    journal.begin(OPEN)
    with Journal.open(path) as again:
        found = again.decision("m-1", Role.TARGET)
    assert found is not None
    assert found.began == found.changed > 0
    assert replace(found, began=0, changed=0) == OPEN
    assert journal.record("m-1", Role.SOURCE) is None


def test_one_of_two_is_first(journal: Journal, path: Path) -> None:
    journal.begin(OPEN)
    with Journal.open(path) as other:
        assert advance(other, Record.OPEN, Record.NEVER)
    assert not advance(journal, Record.OPEN, Record.GO)
    assert journal.record("m-1", Role.TARGET) is Record.NEVER


def test_flush_tells_what_another_decided(journal: Journal) -> None:
    assert journal.flush(OPEN, Flush(None, Record.OPEN)) is None
    assert journal.flush(OPEN, Flush(None, Record.OPEN)) is Record.OPEN
    assert journal.flush(OPEN, Flush(None, Record.NEVER)) is Record.OPEN
    assert journal.flush(OPEN, Flush(Record.OPEN, Record.GO)) is None
    assert journal.flush(OPEN, Flush(Record.OPEN, Record.NEVER)) is Record.GO
    assert journal.flush(OPEN, Flush(Record.GO, Record.RAN)) is None


def test_never_of_an_unknown_id_is_clean_and_keeps_it_from_beginning(journal: Journal) -> None:
    journal.begin(replace(OPEN, migration="m-0", generation=9))
    assert journal.flush(OPEN, Flush(None, Record.NEVER)) is None
    found = journal.decision("m-1", Role.TARGET)
    assert found is not None
    assert found.settled
    with pytest.raises(DecisionRefusedError, match="decided before"):
        journal.begin(OPEN)


def test_what_the_rules_do_not_know_is_not_written(journal: Journal) -> None:
    journal.begin(OPEN)
    with pytest.raises(ValueError, match="does not follow"):
        advance(journal, Record.OPEN, Record.RAN)
    with pytest.raises(ValueError, match="begins"):
        journal.begin(replace(OPEN, migration="m-2", record=Record.GO))


@pytest.mark.parametrize("record", [Record.OPEN, Record.GO, Record.RAN])
def test_a_migration_waits_until_the_last_is_decided(journal: Journal, record: Record) -> None:
    journal.begin(OPEN)
    for old, new in ((Record.OPEN, Record.GO), (Record.GO, Record.RAN)):
        if record in {Record.GO, Record.RAN} and journal.record("m-1", Role.TARGET) is not record:
            advance(journal, old, new)
    assert journal.record("m-1", Role.TARGET) is record
    new = replace(OPEN, migration="m-2", role=Role.SOURCE, record=Record.ARMED, generation=2)
    with pytest.raises(DecisionRefusedError, match="not settled") as raised:
        journal.begin(new)
    assert raised.value.standing.migration == "m-1"
    assert raised.value.remedy == "entourage recover web 1"


def test_a_migration_waits_until_the_last_is_clean(journal: Journal) -> None:
    journal.begin(OPEN)
    advance(journal, Record.OPEN, Record.NEVER)
    new = replace(OPEN, migration="m-2", generation=2)
    with pytest.raises(DecisionRefusedError, match="not settled"):
        journal.begin(new)
    assert [decision.settled for decision in journal.decisions()] == [False]
    journal.clean("m-1", Role.TARGET)
    assert [decision.settled for decision in journal.decisions()] == [True]
    journal.begin(new)


@pytest.mark.parametrize("generation", [0, 1])
def test_an_old_generation_is_refused(journal: Journal, generation: int) -> None:
    journal.begin(OPEN)
    come(journal)
    with pytest.raises(DecisionRefusedError, match="newer"):
        journal.begin(replace(OPEN, migration="m-2", generation=generation))


def test_a_domain_that_came_to_its_source_unattended(journal: Journal) -> None:
    """Its source has counted fewer migrations than this host."""
    journal.begin(OPEN)
    come(journal)
    said = OPEN.generation
    assert arrival_generation(journal, "d-1", said) == said
    assert arrival_generation(journal, "d-1", said, unseen=True) == said + 1
    assert arrival_generation(journal, "d-1", said + 5, unseen=True) == said + 5


def test_what_never_came_is_only_a_claim(journal: Journal) -> None:
    """A stranger who opens a migration of any generation keeps no domain away, or here."""
    journal.begin(replace(OPEN, generation=1 << 52))
    settle(journal)
    assert journal.next_generation("d-1") == 1
    assert arrival_generation(journal, "d-1", 1) == 1
    journal.begin(replace(OPEN, migration="m-2", generation=1))


def test_domains_do_not_wait_for_each_other(journal: Journal) -> None:
    journal.begin(OPEN)
    journal.begin(replace(OPEN, migration="m-2", domain="d-2"))
    assert [found.domain for found in journal.decisions()] == ["d-1", "d-2"]
    assert [found.migration for found in journal.decisions("d-2")] == ["m-2"]


def test_the_newest_comes_first(journal: Journal) -> None:
    assert journal.next_generation("d-1") == 1
    journal.begin(OPEN)
    come(journal)
    assert journal.next_generation("d-1") == 2
    journal.begin(replace(OPEN, migration="m-2", generation=2))
    assert [found.migration for found in journal.decisions("d-1")] == ["m-2", "m-1"]


def test_details_can_be_replaced(journal: Journal) -> None:
    journal.begin(OPEN)
    journal.detail("m-1", Role.TARGET, TargetDetails(paused=True))
    found = journal.decision("m-1", Role.TARGET)
    assert found is not None
    assert found.details == TargetDetails(paused=True)


# ── the ledger ───────────────────────────────────────────────────────────────────────────────────


def test_the_ledger_is_read_backwards(journal: Journal) -> None:
    journal.begin(OPEN)
    MigrationLedger(journal, "m-1", Role.TARGET).record("process", marker="x")
    MigrationLedger(journal, "m-1", Role.TARGET, temporary=True).record("file", path="/k", ino=7)
    rows = journal.ledger_rows("m-1", Role.TARGET)
    assert [(row.kind, dict(row.spec), row.temporary) for row in rows] == [
        ("file", {"path": "/k", "ino": 7}, True),
        ("process", {"marker": "x"}, False),
    ]
    assert journal.ledger_rows("m-1", Role.TARGET, temporary_only=True) == rows[:1]
    journal.ledger_undone(rows[0].id)
    assert journal.ledger_rows("m-1", Role.TARGET) == rows[1:]
    assert journal.ledger_rows("m-1", Role.SOURCE) == []


def test_what_is_clean_is_there_to_stay(journal: Journal) -> None:
    journal.begin(OPEN)
    journal.ledger_add("m-1", Role.TARGET, "process", {"marker": "x"})
    settle(journal, Record.NEVER)
    assert journal.ledger_rows("m-1", Role.TARGET) == []


def kept(path: Path) -> list[str]:
    """The migrations of which the ledger still tells what they made."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT DISTINCT migration FROM ledger ORDER BY migration")
        return [name for (name,) in rows]


@pytest.mark.parametrize(
    ("keep", "days", "left"),
    [(1000, 90, ["1", "2", "3", "4", "5"]), (2, 90, ["1", "5"]), (1000, 0, ["1"])],
)
def test_what_settled_migrations_made_is_forgotten_by_number_and_by_age(
    path: Path, keep: int, days: int, left: list[str]
) -> None:
    """What may still have to be undone never is, and no decision either."""
    settings = JournalSettings(keep=keep, keep_days=days)
    with Journal.open(path, keep=settings) as journal:
        for number in "12345":
            begun = replace(OPEN, migration=number, domain=f"d-{number}")
            journal.begin(begun)
            row = journal.ledger_add(number, Role.TARGET, "dir", {"path": f"/{number}"})
            assert advance(journal, Record.OPEN, Record.NEVER, number)
            if number != "1":
                journal.ledger_undone(row)
                journal.clean(number, Role.TARGET)
        journal.begin(replace(OPEN, migration="6", domain="d-6"))
        assert kept(path) == left
        assert len(journal.decisions()) == 6


def test_nothing_is_made_for_a_migration_that_was_called_off(journal: Journal) -> None:
    with pytest.raises(MigrationOverError):
        journal.ledger_add("m-1", Role.TARGET, "process", {})
    journal.begin(OPEN)
    advance(journal, Record.OPEN, Record.NEVER)
    with pytest.raises(MigrationOverError):
        journal.ledger_add("m-1", Role.TARGET, "process", {})


# ── what survives, and what it costs ─────────────────────────────────────────────────────────────

PROGRAM = """
import os, signal, sys
from pathlib import Path
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Journal
from entourage.journal.rows import Decision
from entourage.domain import Domain
from entourage.handover.values import Record, Role

null = os.open(os.devnull, os.O_WRONLY)

def mark(text):
    os.write(null, b"mark " + text.encode())

journal = Journal.open(Path(sys.argv[1]))
journal.begin(Decision(migration="m-1", role=Role.TARGET, domain="d-1", name="web1", generation=1,
                       record=Record.OPEN))
for number in range(20):
    journal.ledger_add("m-1", Role.TARGET, "file", {"number": number})
"""


def program(text: str, path: Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM + textwrap.dedent(text), str(path)]


def test_what_a_killed_process_decided_stays_decided(path: Path) -> None:
    text = """
        journal.advance("m-1", Role.TARGET, expected={Record.OPEN}, new=Record.GO)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    killed = subprocess.run(program(text, path), check=False)
    assert killed.returncode == -signal.SIGKILL
    with Journal.open(path) as journal:
        assert journal.record("m-1", Role.TARGET) is Record.GO
        assert len(journal.ledger_rows("m-1", Role.TARGET)) == 20


def test_a_decision_in_the_blackout_costs_one_sync_and_no_space(path: Path, tmp_path: Path) -> None:
    """What strace sees between the program's marks."""
    text = """
        journal.warm()
        mark("warm")
        assert journal.advance("m-1", Role.TARGET, expected={Record.OPEN}, new=Record.GO)
        mark("go")
        assert journal.advance("m-1", Role.TARGET, expected={Record.GO}, new=Record.RAN)
        mark("ran")
        journal.relax()
        mark("relaxed")
        """
    log = tmp_path / "strace"
    watched = ["strace", "-f", "-o", str(log), "-e", "trace=fsync,fdatasync,pwrite64,write"]
    subprocess.run([*watched, *program(text, path)], check=True)
    before, go, ran, _ = re.split(r"write\(\d+, \"mark \w+\".*\n", log.read_text())[:4]
    written = [int(at) for at in re.findall(r"pwrite64\(\d+, .*, \d+, (\d+)\) = ", before)]
    for blackout in (go, ran):
        assert len(re.findall(r"f(?:data)?sync\(", blackout)) == 1, blackout
        at = [int(at) for at in re.findall(r"pwrite64\(\d+, .*, \d+, (\d+)\) = ", blackout)]
        assert max(at) < max(written), "the file would grow"


def test_relaxed_it_is_as_it_was(journal: Journal) -> None:
    journal.begin(OPEN)
    journal.warm()
    assert advance(journal, Record.OPEN, Record.GO)
    journal.relax()
    assert advance(journal, Record.GO, Record.RAN)
    journal.warm()
    assert advance(journal, Record.RAN, Record.OWNS)
