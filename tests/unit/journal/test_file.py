"""The journal as a file: who may read it, and what is refused before anything is touched."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from entourage.errors import JournalError
from entourage.handover.values import Record, Role
from entourage.journal.details import TargetDetails
from entourage.journal.file import (
    JournalFullError,
    JournalLockedError,
    JournalReadOnlyError,
    JournalRowError,
    JournalTooNewError,
    JournalTornError,
    NotAJournalError,
)
from entourage.journal.journal import Journal
from entourage.journal.rows import Decision

OPEN = Decision(
    migration="m-1",
    role=Role.TARGET,
    domain="d-1",
    name="web1",
    generation=1,
    record=Record.OPEN,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state dir?" / "100%" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal.open(path) as opened:
        yield opened


def pretend(monkeypatch: pytest.MonkeyPatch, *, f_bavail: int = 1 << 20, f_flag: int = 0) -> None:
    """Have every file system look like this one."""
    space = types.SimpleNamespace(f_bavail=f_bavail, f_frsize=4096, f_flag=f_flag)

    def statvfs(_path: Path) -> types.SimpleNamespace:
        return space

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_only_its_owner_reads_it(journal: Journal, path: Path) -> None:
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for name in path.parent.iterdir():
        assert stat.S_IMODE(name.stat().st_mode) == 0o600, name


def test_a_journal_that_others_may_read_is_closed_to_them(journal: Journal, path: Path) -> None:
    path.chmod(0o644)
    Journal.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_its_uuid_is_made_once(path: Path) -> None:
    with Journal.open(path) as first, Journal.open(path) as second:
        assert first.uuid == second.uuid
    with Journal.open(path) as third:
        assert third.uuid == first.uuid
    assert [name.name for name in path.parent.iterdir()] == ["journal.db"]


def test_it_cannot_be_told_from_another_by_accident(path: Path, tmp_path: Path) -> None:
    with Journal.open(path) as one, Journal.open(tmp_path / "other.db") as other:
        assert one.uuid != other.uuid


@pytest.mark.parametrize("size", [0, 1, 100, 5000, 12288])
def test_a_journal_cut_short_is_an_error(path: Path, size: int) -> None:
    with Journal.open(path) as opened:
        opened.begin(OPEN)
    os.truncate(path, size)
    with pytest.raises((JournalTornError, NotAJournalError), match=r"torn|empty|not a journal"):
        Journal.open(path)
    assert path.stat().st_size == size


def test_a_scribbled_journal_is_an_error(path: Path) -> None:
    with Journal.open(path) as opened:
        opened.begin(OPEN)
    content = bytearray(path.read_bytes())
    content[4096:12288] = b"\xff" * 8192
    path.write_bytes(content)
    with pytest.raises(JournalTornError) as raised:
        Journal.open(path)
    assert raised.value.remedy


def test_a_journal_that_vanished_beside_its_wal_is_not_made_anew(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Path(f"{path}-wal").write_bytes(b"something")
    with pytest.raises(JournalTornError, match="is gone"):
        Journal.open(path)
    assert not path.exists()


def test_another_file_is_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("My memoirs, first chapter. " * 100)
    with pytest.raises(NotAJournalError):
        Journal.open(path)
    assert path.read_text().startswith("My memoirs")


def test_another_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE memoirs (chapter)")
    database.close()
    with pytest.raises(NotAJournalError):
        Journal.open(path)


def test_a_newer_schema_is_refused(path: Path) -> None:
    Journal.open(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=2")
    database.close()
    with pytest.raises(JournalTooNewError, match="schema 2"):
        Journal.open(path)


def test_a_locked_journal_is_refused_soon(journal: Journal, path: Path) -> None:
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalLockedError, match="another process"):
            Journal.open(path, busy_timeout=0.05)
        other.execute("ROLLBACK")
    other.close()
    Journal.open(path, busy_timeout=0.05).close()


def test_a_full_disk_is_refused_beforehand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal.open(path).close()
    pretend(monkeypatch, f_bavail=10)
    with pytest.raises(JournalFullError) as raised:
        Journal.open(path)
    assert str(path.parent) in raised.value.remedy


def test_a_commit_for_which_there_is_no_space_raises(journal: Journal) -> None:
    journal.begin(OPEN)
    database = journal._db  # pyright: ignore[reportPrivateUsage]
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JournalFullError):
        journal.ledger_add("m-1", Role.TARGET, "file", {"path": "x" * 100_000})
    assert journal.ledger_rows("m-1", Role.TARGET) == []


def test_a_read_only_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal.open(path).close()
    pretend(monkeypatch, f_flag=os.ST_RDONLY)
    with pytest.raises(JournalReadOnlyError, match="read-only"):
        Journal.open(path)


def test_a_place_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError) as raised:
        Journal.open(tmp_path / "file" / "journal.db")
    assert raised.value.remedy


def test_status_reads_and_writes_nothing(path: Path) -> None:
    with Journal.open(path) as opened:
        opened.begin(OPEN)
    before = path.read_bytes()
    with Journal.open(path, read_only=True) as reading:
        assert reading.record("m-1", Role.TARGET) is Record.OPEN
        with pytest.raises(JournalReadOnlyError):
            reading.detail("m-1", Role.TARGET, TargetDetails())
    assert path.read_bytes() == before


def test_status_makes_no_journal(path: Path) -> None:
    with pytest.raises(JournalReadOnlyError):
        Journal.open(path, read_only=True)
    assert not path.exists()


# What is in it and cannot be understood

SAYS = {
    "no JSON": ("UPDATE decisions SET details='{'", "decision m-1, target"),
    "no object": ("UPDATE decisions SET details='[]'", "it is no object"),
    "too deep": ("UPDATE decisions SET details='" + "[" * 100_000 + "'", "recursion"),
    "no such field": ("UPDATE decisions SET details='{\"paused\": 7}'", "Expected `bool`"),
    "no version": ('UPDATE decisions SET details=\'{"version": "x"}\'', "version is 'x'"),
    "another record": ("UPDATE decisions SET record='perhaps'", "'perhaps'"),
    "another role": ("UPDATE decisions SET role='bystander'", "'bystander'"),
    "a blob": ("UPDATE decisions SET details=x'ff00'", "decision m-1, target"),
}


@pytest.mark.parametrize("case", SAYS)
def test_a_row_that_is_not_understood_is_named(path: Path, case: str) -> None:
    statement, said = SAYS[case]
    with Journal.open(path) as opened:
        opened.begin(OPEN)
    damage(path, statement)
    with Journal.open(path) as opened, pytest.raises(JournalRowError) as raised:
        opened.decisions()
    assert str(path) in raised.value.message
    assert "m-1" in raised.value.message
    assert said in raised.value.message
    assert "keep a copy" in raised.value.remedy


def test_details_of_a_newer_entourage_are_refused(path: Path) -> None:
    with Journal.open(path) as opened:
        opened.begin(OPEN)
    damage(path, "UPDATE decisions SET details='{\"version\": 99}'")
    with Journal.open(path) as opened, pytest.raises(JournalTooNewError, match="version 99"):
        opened.decision("m-1", Role.TARGET)


def test_a_row_of_the_ledger_that_is_not_understood_is_named(path: Path) -> None:
    with Journal.open(path) as opened:
        opened.begin(OPEN)
        opened.ledger_add("m-1", Role.TARGET, "dir", {"path": "/x"})
    damage(path, "UPDATE ledger SET spec='path'")
    with Journal.open(path) as opened, pytest.raises(JournalRowError, match="ledger 1, dir"):
        opened.ledger_rows("m-1", Role.TARGET)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP TABLE decisions", "no such table: decisions"),
        ("DROP TABLE ledger", "no such table: ledger"),
        ("DROP TABLE meta", "no such table: meta"),
        ("ALTER TABLE decisions DROP COLUMN clean", "no such column: clean"),
        ("ALTER TABLE ledger DROP COLUMN added", "no such column: added"),
    ],
)
def test_a_table_or_column_that_is_missing_is_found_at_once(
    path: Path, statement: str, said: str
) -> None:
    with Journal.open(path) as opened:
        opened.begin(OPEN)
    damage(path, statement)
    with pytest.raises(JournalTornError) as raised:
        Journal.open(path)
    assert str(path) in raised.value.message
    assert said in raised.value.message


def test_a_column_of_somebody_elses_is_no_matter(path: Path) -> None:
    with Journal.open(path) as opened:
        opened.begin(OPEN)
    damage(path, "ALTER TABLE decisions ADD COLUMN remark")
    with Journal.open(path) as opened:
        assert opened.decision("m-1", Role.TARGET) is not None
        opened.begin(replace(OPEN, migration="m-2", domain="d-2"))
        assert opened.decision("m-2", Role.TARGET) is not None


def test_a_journal_without_its_uuid(path: Path) -> None:
    Journal.open(path).close()
    damage(path, "DELETE FROM meta WHERE name='uuid'")
    with pytest.raises(JournalRowError, match="meta uuid"):
        Journal.open(path)


def damage(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)
