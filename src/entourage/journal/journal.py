"""What a host must still know after a crash: decisions on domains, and a ledger of what was made.

One SQLite file a host, in WAL mode with ``synchronous=FULL``. Every method that writes is one
transaction, and what it wrote is on the disk when it returns. Opening a journal makes durable what
a killed process may have written and not synced, so whatever is read here survives a power cut.
Decisions are never deleted; what settled migrations made here is forgotten in time. Calls are
synchronous and take about a millisecond.

Between `Journal.warm` and `Journal.relax` each `Journal.advance` costs exactly one sync, and writes
over blocks that the file has already: the first commit after a checkpoint would cost two syncs, the
checkpoint itself more, and a file that grows may find the disk full.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from entourage.handover.rules import may_begin
from entourage.handover.values import MAY_FOLLOW, Flush, Record, Role
from entourage.journal.details import Details, TooNewError, decode, encode
from entourage.journal.file import not_understood, open_database, told, too_new
from entourage.journal.rows import Decision, DecisionRefusedError, LedgerRow, MigrationOverError
from entourage.journal.statements import (
    ADVANCE,
    INSERT,
    LEDGER_ADD,
    LEDGER_ROWS,
    PRUNE,
    SELECT,
)
from entourage.settings.model import JournalSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

_RESERVE: Final = 128 << 10
_COLUMNS: Final = {  # SQLite keeps a value of any type in any column
    **dict.fromkeys(("migration", "domain", "name", "peer_host", "peer_journal"), str),
    **dict.fromkeys(("generation", "began", "changed"), int),
}
_DAY: Final = 86_400_000_000_000  # ns
_KEEP: Final = JournalSettings()


class MigrationLedger:
    """One migration's ledger, for those who create resources (a `hosts.resources.Ledger`)."""

    def __init__(
        self, journal: Journal, migration: str, role: Role, *, temporary: bool = False
    ) -> None:
        self._journal = journal
        self._migration = migration
        self._role = role
        self._temporary = temporary

    def record(self, kind: str, **spec: str | int) -> None:
        """Write a resource down; durable when this returns."""
        self._journal.ledger_add(self._migration, self._role, kind, spec, temporary=self._temporary)


class Journal:
    """An open journal; also a context manager.

    Attributes:
        path: The file.
        uuid: Made with the file. A file that was restored or replaced has forgotten decisions and
            must not be taken for this one: it needs a new UUID.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, keep: JournalSettings) -> None:
        """Use `open`."""
        self.path = path
        self._keep = keep
        self._db = connection
        self._db.row_factory = sqlite3.Row
        row = connection.execute("SELECT value FROM meta WHERE name='uuid'").fetchone()
        if row is None or not row[0]:
            raise not_understood(path, "meta uuid", "it is missing")
        self.uuid = str(row[0])

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        busy_timeout: float = 2.0,
        keep: JournalSettings = _KEEP,
    ) -> Self:
        """Open the journal, and make it (0600, in a directory of 0700) where there is none.

        Args:
            path: The file.
            read_only: For ``status``: nothing is made or written, nothing made durable.
            busy_timeout: Seconds to wait for another process's commit.
            keep: What is kept of settled migrations, each time that another begins.

        Raises:
            JournalError: One of those in `entourage.journal.file`. Nothing may be begun.
        """
        connection = open_database(path, read_only=read_only, busy_timeout=busy_timeout)
        try:
            with told(path):
                journal = cls(path, connection, keep)
                if not read_only:
                    # A commit syncs the whole WAL: nothing that can be read from here on is only in
                    # the kernel's cache. It also shows whether the journal can be written.
                    journal._touch()
        except BaseException:
            connection.close()
            raise
        return journal

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ── decisions ────────────────────────────────────────────────────────────────────────────

    def begin(self, new: Decision) -> None:
        """Insert ARMED or OPEN, NEVER for a migration never heard of here, or what is settled.

        All but NEVER need a generation newer than any that this journal knows of the domain, and
        all its migrations here settled.

        Raises:
            DecisionRefusedError: The id is taken, the generation old, a migration not settled.
        """
        if new.record not in MAY_FOLLOW[None] and not new.settled:
            raise ValueError(f"no migration begins with {new.record}")
        with self._transaction():
            taken = self.decision(new.migration, new.role)
            if taken is not None:
                raise DecisionRefusedError(
                    f"the migration {new.migration} was decided before: {taken.record}", taken
                )
            if new.record is not Record.NEVER:
                self._refuse_unsettled(new)
            # A clock that was set back must not make this one look older than those before it.
            [newest] = self._db.execute("SELECT max(began) FROM decisions").fetchone()
            now = max(time.time_ns(), (newest or 0) + 1)
            row = asdict(replace(new, details=None, began=now, changed=now))
            row["details"] = encode(new.details)
            self._db.execute(INSERT, row)
            before = now - self._keep.keep_days * _DAY
            self._db.execute(PRUNE, {"keep": self._keep.keep, "before": before})

    def advance(
        self, migration: str, role: Role, *, expected: Collection[Record], new: Record
    ) -> bool:
        """Compare and set: one UPDATE, one commit, one sync.

        Returns:
            Whether the record was one of ``expected`` and now is ``new``, on the disk.
        """
        if not all(new in MAY_FOLLOW.get(record, ()) for record in expected):
            raise ValueError(f"{new} does not follow {sorted(expected)}")
        wanted = json.dumps(list(expected))
        with told(self.path):
            changed = self._db.execute(ADVANCE, (new, time.time_ns(), migration, role, wanted))
        return changed.rowcount == 1

    def flush(self, decision: Decision, flush: Flush) -> Record | None:
        """Execute the effect for the migration that ``decision`` describes.

        Returns:
            None where it was done, or what another process decided first: bring `Overtaken`.

        Raises:
            DecisionRefusedError: ARMED or OPEN may not begin.
        """
        if flush.expected is not None:
            expected = (flush.expected,)
            if self.advance(decision.migration, decision.role, expected=expected, new=flush.new):
                return None
            # Whoever wrote that may have been killed before it was synced, and it will be acted on.
            with told(self.path):
                self._touch()
            return self.record(decision.migration, decision.role)
        try:
            self.begin(replace(decision, record=flush.new, clean=flush.new is Record.NEVER))
        except DecisionRefusedError as refused:
            standing = refused.standing
            if (standing.migration, standing.role) != (decision.migration, decision.role):
                raise
            return standing.record
        return None

    def clean(self, migration: str, role: Role) -> None:
        """Note that nothing is left to be done; what the ledger still holds is there to stay."""
        now = time.time_ns()
        with self._transaction():
            self._db.execute(
                "UPDATE decisions SET clean=1 WHERE migration=? AND role=?", (migration, role)
            )
            self._db.execute(
                "UPDATE ledger SET state='kept', changed=?"
                " WHERE migration=? AND role=? AND state='made'",
                (now, migration, role),
            )

    def detail(self, migration: str, role: Role, details: Details) -> None:
        """Replace the details, which no rule reads."""
        with told(self.path):
            self._db.execute(
                "UPDATE decisions SET details=? WHERE migration=? AND role=?",
                (encode(details), migration, role),
            )

    def record(self, migration: str, role: Role) -> Record | None:
        """What is decided; None where the migration was never heard of here."""
        found = self.decision(migration, role)
        return found.record if found else None

    def decision(self, migration: str, role: Role) -> Decision | None:
        """One decision with all that belongs to it."""
        found = self._decisions(migration=migration, role=role)
        return found[0] if found else None

    def decisions(self, domain: str | None = None) -> list[Decision]:
        """All of them, or those on one domain (its UUID); the newest generation first."""
        return self._decisions(domain=domain)

    def next_generation(self, domain: str) -> int:
        """What the source gives to a new migration."""
        counted = (one.generation for one in self.decisions(domain) if not one.never_came)
        return max(counted, default=0) + 1

    # ── the ledger ───────────────────────────────────────────────────────────────────────────

    def ledger_add(
        self,
        migration: str,
        role: Role,
        kind: str,
        spec: Mapping[str, Any],
        *,
        temporary: bool = False,
    ) -> int:
        """Write down a resource before it is made.

        Returns:
            The row's id.

        Raises:
            MigrationOverError: The migration is decided, and whoever undoes may have been here.
        """
        with told(self.path):
            added = self._db.execute(
                LEDGER_ADD,
                {
                    "migration": migration,
                    "role": role,
                    "kind": kind,
                    "spec": json.dumps(spec),
                    "temporary": temporary,
                    "now": time.time_ns(),
                },
            )
        if added.rowcount != 1 or added.lastrowid is None:
            raise MigrationOverError(f"the migration {migration} was called off")
        return added.lastrowid

    def ledger_undone(self, row: int) -> None:
        """The resource is gone."""
        with told(self.path):
            self._db.execute(
                "UPDATE ledger SET state='undone', changed=? WHERE id=?", (time.time_ns(), row)
            )

    def ledger_rows(
        self, migration: str, role: Role, *, temporary_only: bool = False
    ) -> list[LedgerRow]:
        """What was made and not undone, newest first: the order in which to undo it."""
        with told(self.path):
            rows = self._db.execute(LEDGER_ROWS, (migration, role, temporary_only)).fetchall()
        return [self._ledger_row(*row) for row in rows]

    # ── the blackout ─────────────────────────────────────────────────────────────────────────

    def warm(self) -> None:
        """Shortly before the guest stops: make room in the WAL, and pay for a checkpoint now.

        What another process of this host checkpoints afterwards may cost a second sync, and nothing
        else.
        """
        with told(self.path):
            self._db.execute("UPDATE meta SET value=zeroblob(?) WHERE name='reserve'", (_RESERVE,))
            self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            self._touch()

    def relax(self) -> None:
        """After the blackout: write the WAL back.

        Its file keeps its size: another migration of this host may be warm.
        """
        with told(self.path):
            self._db.execute("UPDATE meta SET value=x'' WHERE name='reserve'")
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _touch(self) -> None:
        self._db.execute("UPDATE meta SET value=? WHERE name='opened'", (time.time_ns(),))

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        with told(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _decisions(
        self, *, migration: str | None = None, role: Role | None = None, domain: str | None = None
    ) -> list[Decision]:
        wanted = {"migration": migration, "role": role, "domain": domain}
        with told(self.path):
            rows = self._db.execute(SELECT, wanted).fetchall()
        return [self._decision(dict(row)) for row in rows]

    def _decision(self, row: dict[str, Any]) -> Decision:
        name = f"decision {row['migration']}, {row['role']}"
        try:
            row["role"] = Role(row["role"])
            row["record"] = Record(row["record"])
            row["clean"] = bool(row["clean"])
            row["details"] = decode(row["role"], row["details"])
            _check_types(row)
        except TooNewError as error:
            raise too_new(self.path, f"{name}: {error}") from error
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            raise not_understood(self.path, name, str(error)) from error
        return Decision(**row)

    def _ledger_row(self, number: int, kind: str, spec: str, temporary: int) -> LedgerRow:
        try:
            said = msgspec.json.decode(spec, type=dict[str, Any])
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            raise not_understood(self.path, f"ledger {number}, {kind}", str(error)) from error
        return LedgerRow(id=number, kind=kind, spec=said, temporary=bool(temporary))

    def _refuse_unsettled(self, new: Decision) -> None:
        for standing in self.decisions(new.domain):
            if not may_begin(standing.record, clean=standing.clean):
                raise DecisionRefusedError(
                    f"an earlier migration of {new.name} ({standing.migration},"
                    f" {standing.role} {standing.record}) is not settled here",
                    standing,
                    remedy=f"entourage recover {new.name}",
                )
            if standing.generation >= new.generation and not standing.never_came:
                raise DecisionRefusedError(
                    f"this host knows a newer migration of {new.name}: {standing.migration}",
                    standing,
                    remedy="a journal was restored or replaced: see docs/recovery.md",
                )


def _check_types(row: dict[str, Any]) -> None:
    """Raise TypeError for a column with a value that no Entourage has written."""
    for column, kind in _COLUMNS.items():
        if type(row[column]) is not kind:
            raise TypeError(f"{column} is {row[column]!r:.80}")
