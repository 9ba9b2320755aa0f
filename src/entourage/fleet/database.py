"""The database of a fleet's campaigns: its tables, and how it is opened."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping
from typing import Any, Final

import sqlalchemy as sa
import sqlalchemy.event
import sqlalchemy.exc

from entourage.errors import EntourageError, UsageError

_BUSY: Final = 30_000  # ms
_LOCKED_WITHIN: Final = 60.0  # seconds; the last round of a large plan takes half of that
_LOOK_AGAIN: Final = 0.02  # seconds
_SESSION: Final[Mapping[str, int]] = {
    "statement_timeout": 15_000,  # ms; a server that hangs does not see to it: see ``bounded``
    "idle_in_transaction_session_timeout": 60_000,  # a controller that was stopped holds no lock
}
_CONNECTION: Final[Mapping[str, int]] = {
    "connect_timeout": 10,  # seconds; else as long as the kernel tries
    "tcp_user_timeout": 30_000,  # ms; the next two are seconds
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}
"""How soon a PostgreSQL whose host is away is known to be; libpq's names, which a URL may have."""
_AWAY: Final = ("08", "57", "53300", "25P03")
"""What begins the codes of errors that may be over soon: its connection, its operator, too many; a
transaction of a controller that was stopped."""
_NOT_LET_IN: Final = ("28", "3D")
"""The same of a log-in that is not, or no more, right: a user, a password, a database."""
_OF_NO_CODE: Final = frozenset({"OperationalError", "InterfaceError"})
"""The driver's own classes (DB-API 2.0), where the server has said nothing."""
LOCK: Final = 0x656E746F  # PostgreSQL's advisory lock of who takes slots or plans
META: Final = sa.MetaData()
CAMPAIGNS: Final = sa.Table(
    "entourage_campaigns",
    META,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("wish", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("in_a_row", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(128), nullable=False),
)
MOVES: Final = sa.Table(
    "entourage_moves",
    META,
    sa.Column("campaign", sa.String(64), primary_key=True),
    sa.Column("uuid", sa.String(36), primary_key=True),
    sa.Column("source", sa.String(255), nullable=False),
    sa.Column("target", sa.String(255), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Index("entourage_leaving", "status", "source"),
    sa.Index("entourage_arriving", "status", "target"),
)
CONTROLLERS: Final = sa.Table(
    "entourage_controllers",
    META,
    sa.Column("owner", sa.String(128), primary_key=True),
    sa.Column("seen", sa.Float, nullable=False),
)
HISTORY: Final = sa.Table(
    "entourage_history",
    META,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("campaign", sa.String(64), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("what", sa.Text, nullable=False),
)
ATTEMPTS: Final = sa.Table(
    "entourage_attempts",
    META,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("campaign", sa.String(64), nullable=False),
    sa.Column("uuid", sa.String(36), nullable=False, index=True),
    sa.Column("source", sa.String(255), nullable=False),
    sa.Column("target", sa.String(255), nullable=False),
    sa.Column("begun", sa.Float, nullable=False),
    sa.Column("ended", sa.Float),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("what", sa.String(64), nullable=False),
    sa.Column("percent", sa.Integer, nullable=False),
    sa.Column("blackout", sa.Float),
    sa.Column("events", sa.Text, nullable=False),
    sa.Index("entourage_attempts_of", "campaign", "ended"),
)
_ONLY_READS: Final = "entourage_only_reads"  # an execution option


class DatabaseAwayError(EntourageError):
    """The database does not answer, or not any more; it may come back."""


class NotLetInError(DatabaseAwayError):
    """It answers, and does not let this controller in: that has to be mended first."""


def open_engine(url: str, *, begins: bool = True) -> sa.Engine:
    """The database of that URL; SQLite in WAL mode, each transaction that changes it begun so.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://…``.
        begins: Of SQLite: begin each transaction at its first statement, whatever that is. DBOS
            says BEGIN itself in places, and is given an engine that does so only before it writes.

    Raises:
        UsageError: The URL is none, or there is no driver for it.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "postgresql":
            return _postgres(parsed)
        engine = sa.create_engine(parsed, connect_args={"check_same_thread": False})
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
        raise UsageError(
            f"--database: {error}", remedy="postgresql://user@host/name, or leave it out"
        ) from error
    if parsed.get_backend_name() != "sqlite":
        raise UsageError(f"--database: {parsed.get_backend_name()} is not supported")

    def connected(connection: Any, _record: Any) -> None:
        setattr(connection, "isolation_level", None if begins else "IMMEDIATE")  # noqa: B010 - its API
        for pragma in (  # FULL: a campaign, and what it has cordoned, outlive a power cut
            "journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY}", "foreign_keys=ON"
        ):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")

    def begun(connection: Any) -> None:
        only_reads = connection.get_execution_options().get(_ONLY_READS)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", connected)
    if begins:
        sqlalchemy.event.listen(engine, "begin", begun)
    return engine


def _postgres(url: sa.URL) -> sa.Engine:
    """A PostgreSQL; raises ImportError where there is no driver for it."""
    from entourage.fleet.bounded import Bounded  # noqa: PLC0415 - SQLite needs no psycopg

    within = {key: each for key, each in _CONNECTION.items() if key not in url.query}
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=within
    )

    def connect(_dialect: Any, _record: Any, words: Any, named: Any) -> Any:
        return Bounded.connect(*words, **named)

    def connected(connection: Any, _record: Any) -> None:
        given = str(url.query.get("options", ""))
        for name, value in _SESSION.items():
            if name not in given:
                connection.execute(f"SET {name} = {value}")
        connection.commit()

    sqlalchemy.event.listen(engine, "do_connect", connect)
    sqlalchemy.event.listen(engine, "connect", connected)
    return engine


@contextlib.contextmanager
def changes(engine: sa.Engine) -> Generator[sa.Connection]:
    """A transaction that may change something; raises EntourageError."""
    with told(), engine.begin() as connection:
        yield connection


@contextlib.contextmanager
def alone(engine: sa.Engine) -> Generator[sa.Connection]:
    """A transaction beside which no other of these is; raises EntourageError."""
    with changes(engine) as connection:
        if engine.dialect.name == "postgresql":
            _lock(connection)
        yield connection


def _lock(connection: sa.Connection) -> None:
    """Take the lock until the transaction ends; asked again and again, so that no answer is late.

    Raises:
        DatabaseAwayError: Others have it for too long.
    """
    until = time.monotonic() + _LOCKED_WITHIN
    asked = sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))
    while not connection.execute(asked).scalar_one():
        if time.monotonic() > until:
            raise DatabaseAwayError(
                f"the fleet's database: another controller has its lock for {_LOCKED_WITHIN:g} s",
                remedy="see in pg_locks which",
            )
        time.sleep(_LOOK_AGAIN)


def make_tables(engine: sa.Engine) -> None:
    """Make those that are not there, beside nobody else who does; raises EntourageError.

    Who finds them all takes no lock for writing.
    """
    with reads(engine) as connection:
        there = set(sa.inspect(connection).get_table_names())
    if not META.tables.keys() <= there:
        with alone(engine) as connection:
            META.create_all(connection)


@contextlib.contextmanager
def reads(engine: sa.Engine) -> Generator[sa.Connection]:
    """A transaction that only reads: with SQLite it keeps nobody from writing; EntourageError."""
    with told(), engine.connect() as opened:
        connection = opened.execution_options(**{_ONLY_READS: True})
        with connection.begin():
            yield connection


def by_bytes(engine: sa.Engine, column: sa.Column[str]) -> sa.ColumnElement[str]:
    """A text to order by: the same order whatever a PostgreSQL's locale is, and as SQLite's."""
    return column.collate("C") if engine.dialect.name == "postgresql" else column


@contextlib.contextmanager
def told() -> Generator[None]:
    """Errors of the database as one of ours."""
    try:
        yield
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause: object = getattr(error, "orig", None) or error
        said = " ".join(str(cause).split())
        if not _lets_in(cause):
            raise NotLetInError(
                f"the fleet's database answers, and does not let this controller in: {said}",
                remedy="mend the user, the password or the database that --database names, there or"
                " in that URL",
            ) from error
        kind = DatabaseAwayError if _is_away(cause) else EntourageError
        raise kind(
            f"the fleet's database: {said}", remedy="see whether it can be reached and written"
        ) from error


def _lets_in(error: object) -> bool:
    """Whether that error of PostgreSQL's driver is none of the log-in."""
    code: str | None = getattr(error, "sqlstate", None)
    return getattr(error, "lets_in", True) and not (code or "").startswith(_NOT_LET_IN)


def _is_away(error: object) -> bool:
    """Whether that error of PostgreSQL's driver may be over soon; none of SQLite's is."""
    if not hasattr(error, "sqlstate"):
        return False
    code: str | None = getattr(error, "sqlstate", None)
    if code is None:
        return not _OF_NO_CODE.isdisjoint(kind.__name__ for kind in type(error).__mro__)
    return code.startswith(_AWAY)
