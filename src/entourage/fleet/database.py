"""The database of a fleet's campaigns: its tables, and how it is opened."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from typing import Any, Final

import sqlalchemy as sa
import sqlalchemy.event
import sqlalchemy.exc

from entourage.errors import EntourageError, UsageError

_BUSY: Final = 30_000  # ms
_CONNECTION: Final[Mapping[str, int]] = {
    "connect_timeout": 10,  # seconds; else as long as the kernel tries
    "tcp_user_timeout": 30_000,  # ms; the next two are seconds
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}
"""How soon a PostgreSQL whose host is away is known to be; libpq's names, which a URL may have."""
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
            within = {key: each for key, each in _CONNECTION.items() if key not in parsed.query}
            return sa.create_engine(
                parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=within
            )
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
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        yield connection


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
        raise EntourageError(
            f"the fleet's database: {' '.join(str(cause).split())}",
            remedy="see whether it can be reached and written",
        ) from error
