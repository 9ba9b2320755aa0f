"""A host's disk with the journal: SQLite in memory, and above it a page cache that can be cut.

SQLite's own promise is taken for granted: a transaction is there as a whole or not at all. What is
simulated is when a commit is on the disk: as it returns, if ``synchronous`` is FULL, and not before
somebody else's commit if it is not, or if the process is killed between the write and the sync. A
power cut loses a part of what was not synced, always the newest.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from tests.sim.seams import Here

_WRITES = ("INSERT", "UPDATE", "DELETE", "CREATE", "REPLACE")
_kinds: dict[str, str] = {}


def _kind(sql: str) -> str:
    found = _kinds.get(sql)
    if found is None:
        words = sql.split()
        found = words[0].upper()
        if found == "PRAGMA" and words[1].startswith("synchronous="):
            found = "SYNCHRONOUS"
        elif found in _WRITES:
            found = "WRITE"
        _kinds[sql] = found
    return found


def failure(name: str, text: str) -> sqlite3.OperationalError:
    """An error as SQLite raises it."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorname = name
    return error


class Disk:
    """A host's disk: the journal's database, and what of it would survive a power cut.

    Attributes:
        full, readonly: What is wrong with it now.
        fails: How many of the next commits fail, and whether what they wrote is there all the same.
        torn: The process that is to be killed between its next commit's write and its sync.
    """

    def __init__(self, image: bytes) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        self.database.deserialize(image)
        self.unsynced: list[bytes] = []
        self.full = self.readonly = False
        self.fails: list[bool] = []
        self.torn: Any = None

    def power_cut(self) -> None:
        """What was not synced is lost, or the newest part of it."""
        if self.database.in_transaction:
            self.database.execute("ROLLBACK")
        if self.unsynced:
            states: list[bytes | None] = [*self.unsynced, None]
            left = Here.world.rng.choice(states)
            if left is not None:
                self.database.deserialize(left)
            self.unsynced.clear()

    def says(self, role: str, record: str) -> bool:
        """Whether there is such a record now."""
        asked = "SELECT 1 FROM decisions WHERE role=? AND record=?"
        return self.database.execute(asked, (role, record)).fetchone() is not None

    def has_any(self, role: str) -> bool:
        """Whether there is any record of the role's now."""
        asked = "SELECT 1 FROM decisions WHERE role=?"
        return self.database.execute(asked, (role,)).fetchone() is not None

    def close(self) -> None:
        self.database.close()


class Connection:
    """What ``sqlite3.connect`` returns: one process's connection to its host's journal."""

    def __init__(self, disk: Disk, process: Any, *, readonly: bool) -> None:
        self._disk = disk
        self._process = process
        self._readonly = readonly
        self._full_sync = False
        self._saved: bytes | None = None
        process.on_end.append(self._roll_back)

    @property
    def in_transaction(self) -> bool:
        return self._disk.database.in_transaction

    @property
    def row_factory(self) -> Any:
        return self._disk.database.row_factory

    @row_factory.setter
    def row_factory(self, value: Any) -> None:
        self._disk.database.row_factory = value

    def _roll_back(self) -> None:
        if self._disk.database.in_transaction:
            self._disk.database.execute("ROLLBACK")

    def close(self) -> None:
        """Nothing is kept open."""

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        world, disk = Here.world, self._disk
        world.check_alive(self._process)
        kind, database = _kind(sql), disk.database
        if kind == "SYNCHRONOUS":
            self._full_sync = sql.endswith("FULL")
            return database.execute("SELECT 0")
        if kind == "WRITE":
            if self._readonly or disk.readonly:
                raise failure("SQLITE_READONLY", "attempt to write a readonly database")
            if disk.full:
                raise failure("SQLITE_FULL", "database or disk is full")
        if kind == "BEGIN":  # what it will change is seen by no copy that is made before
            tears = disk.torn is self._process or not self._full_sync
            self._saved = database.serialize() if tears else None
        commits = kind == "COMMIT" or (kind == "WRITE" and not database.in_transaction)
        if not commits:
            return database.execute(sql, parameters)
        world.point("commit")
        if disk.fails:
            if disk.fails.pop():
                disk.unsynced.append(database.serialize())
                database.execute(sql, parameters)
            elif kind == "COMMIT":
                database.execute("ROLLBACK")
            raise failure("SQLITE_IOERR_FSYNC", "disk I/O error")
        torn = disk.torn is self._process
        before = self._saved if kind == "COMMIT" else None
        if torn or not self._full_sync:
            before = database.serialize() if kind == "WRITE" else before
            if before is not None:
                disk.unsynced.append(before)
        result = database.execute(sql, parameters)
        if torn and before is not None:
            disk.torn = None
            world.loop.kill(self._process)
        if self._full_sync:
            disk.unsynced.clear()
        return result
