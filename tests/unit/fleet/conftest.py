"""A real PostgreSQL, where there is one; started once, in a second."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import sqlalchemy as sa

from tests.postgres import MISSING, PROGRAMS, Postgres, postgres


@pytest.fixture(scope="session")
def server() -> Generator[Postgres]:
    if not PROGRAMS:
        pytest.skip(MISSING)
    with postgres() as database:
        yield database


@pytest.fixture
def database(server: Postgres) -> str:
    """The URL of an empty database of it."""
    return emptied(server)


def emptied(server: Postgres) -> str:
    """The same."""
    engine = sa.create_engine(sa.make_url(server.url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql("drop schema public cascade; create schema public")
        connection.exec_driver_sql("drop schema if exists dbos cascade")
    engine.dispose()
    return server.url
