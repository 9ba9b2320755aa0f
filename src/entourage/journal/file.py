"""The journal as a file: where it lies, how it is made, what may be wrong with it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from entourage import durable
from entourage.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Generator

APPLICATION_ID: Final = 0x456E746F  # "Ento"
SCHEMA_VERSION: Final = 1
FREE_SPACE: Final = 4 << 20
"""Bytes that must be free before anything is begun: far more than a migration writes."""
_SCHEMA: Final = f"""
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={SCHEMA_VERSION};
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE decisions (
    migration TEXT NOT NULL, role TEXT NOT NULL, domain TEXT NOT NULL, name TEXT NOT NULL,
    generation INTEGER NOT NULL, record TEXT NOT NULL, clean INTEGER NOT NULL DEFAULT 0,
    peer_host TEXT NOT NULL, peer_journal TEXT NOT NULL, details TEXT NOT NULL,
    began INTEGER NOT NULL, changed INTEGER NOT NULL,
    PRIMARY KEY (migration, role)) WITHOUT ROWID;
CREATE INDEX decisions_of_domain ON decisions (domain, generation);
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY AUTOINCREMENT, migration TEXT NOT NULL, role TEXT NOT NULL,
    kind TEXT NOT NULL, spec TEXT NOT NULL, temporary INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'made', added INTEGER NOT NULL, changed INTEGER NOT NULL);
CREATE INDEX ledger_of_migration ON ledger (migration, role, state);
"""

COLUMNS: Final = {
    "meta": "name, value",
    "decisions": "migration, role, domain, name, generation, record, clean, peer_host,"
    " peer_journal, details, began, changed",
    "ledger": "id, migration, role, kind, spec, temporary, state, added, changed",
}


class JournalTornError(JournalError):
    """The file was cut short or overwritten: what it knew is not known."""


class NotAJournalError(JournalError):
    """The file is something else."""


class JournalTooNewError(JournalError):
    """A newer Entourage wrote it."""


class JournalRowError(JournalError):
    """A row of it is not understood."""


class JournalLockedError(JournalError):
    """Another process has held it for longer than we wait."""


class JournalFullError(JournalError):
    """There is no space to write a decision."""


class JournalReadOnlyError(JournalError):
    """It cannot be written, or not be opened at all."""


_RESTORE = "do not delete it: keep a copy, then see docs/recovery.md"


def open_database(path: Path, *, read_only: bool, busy_timeout: float) -> sqlite3.Connection:
    """Open the file, making it where there is none, and refuse one that cannot be relied on."""
    with told(path):
        if not read_only:
            _look_at_place(path)
        # as_uri() quotes what would mean something in a URI, such as ? and %.
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        connection = sqlite3.connect(uri, uri=True, timeout=busy_timeout, isolation_level=None)
        try:
            _look_inside(path, connection)
            connection.execute("PRAGMA synchronous=FULL")
            # Checkpoints are made when there is time for them, by Journal.warm and Journal.relax.
            connection.execute("PRAGMA wal_autocheckpoint=0")
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def told(path: Path) -> Generator[None]:
    """Turn errors of SQLite and the system into JournalErrors with a remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(path, error) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _full(path) from error
        raise JournalReadOnlyError(
            f"the journal {path} cannot be opened: {error.strerror}", remedy="run as root"
        ) from error


def _translated(path: Path, error: sqlite3.Error) -> JournalError:
    name: str = getattr(error, "sqlite_errorname", "")
    match name.split("_")[1:2]:
        case ["BUSY" | "LOCKED"]:
            return JournalLockedError(
                f"the journal {path} is locked by another process",
                remedy=f"see who has it open with: fuser -v {path}",
            )
        case ["FULL"]:
            return _full(path)
        case ["READONLY" | "CANTOPEN" | "PERM" | "AUTH"]:
            return JournalReadOnlyError(
                f"the journal {path} cannot be written: {error}",
                remedy="run as root, and look whether its file system is mounted read-only",
            )
        case ["NOTADB"]:
            return NotAJournalError(f"{path} is not a journal", remedy=_RESTORE)
        case ["CORRUPT"]:
            return JournalTornError(f"the journal {path} is torn: {error}", remedy=_RESTORE)
        case _ if "no such table" in str(error) or "no such column" in str(error):
            return JournalTornError(f"the journal {path} is not whole: {error}", remedy=_RESTORE)
        case _:
            return JournalError(f"the journal {path}: {error}", remedy="look at the kernel's log")


def too_new(path: Path, what: str) -> JournalTooNewError:
    """A newer Entourage wrote it, as ``what`` says."""
    return JournalTooNewError(
        f"a newer Entourage wrote the journal {path} ({what})",
        remedy="use that newer Entourage on this host",
    )


def not_understood(path: Path, row: str, problem: str) -> JournalRowError:
    """A row of it is not understood."""
    return JournalRowError(
        f"the journal {path} has a row that is not understood ({row}): {problem}", remedy=_RESTORE
    )


def _full(path: Path) -> JournalFullError:
    return JournalFullError(
        f"no space left for the journal {path}", remedy=f"free some space in {path.parent}"
    )


def _look_at_place(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        _make_directory(path.parent)
        _look_at_space(path)
        _make(path)
        return
    if size == 0:
        raise JournalTornError(f"the journal {path} is empty", remedy=_RESTORE)
    _look_at_space(path)
    # The directory stays as it is if it was there before: it may be one that others use too.
    status = path.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        path.chmod(0o600)
    if not os.access(path, os.W_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
        raise JournalReadOnlyError(
            f"the journal {path} is read-only",
            remedy="run as root, and look whether its file system is mounted read-only",
        )


def _look_at_space(path: Path) -> None:
    space = os.statvfs(path.parent)
    if space.f_bavail * space.f_frsize < FREE_SPACE:
        raise _full(path)


def _make_directory(directory: Path) -> None:
    if directory.exists():
        return
    _make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    durable.sync_directory(directory.parent)


def _make(path: Path) -> None:
    """Create the file atomically: under another name, then linked to its own."""
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists():
        raise JournalTornError(f"the journal {path} is gone, {wal} is there", remedy=_RESTORE)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(scratch, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
            made = ("uuid", str(uuid.uuid4()))
            connection.execute("INSERT INTO meta VALUES (?, ?)", made)
            connection.execute("INSERT INTO meta VALUES ('opened', 0), ('reserve', x'')")
        with contextlib.suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        scratch.unlink()
    durable.sync_directory(path.parent)


def _look_inside(path: Path, connection: sqlite3.Connection) -> None:
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    )
    if application != APPLICATION_ID:
        raise NotAJournalError(f"{path} is not a journal", remedy=_RESTORE)
    if version > SCHEMA_VERSION:
        raise too_new(path, f"schema {version}")
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise JournalTornError(f"the journal {path} is torn: {problem}", remedy=_RESTORE)
    for table, columns in COLUMNS.items():
        connection.execute(f"SELECT {columns} FROM {table} LIMIT 0").fetchall()  # noqa: S608 - ours
