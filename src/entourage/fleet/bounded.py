"""A connection to a PostgreSQL that is not waited for without end.

A server may accept a connection, and then say nothing: its host has no memory left, its storage
hangs, it was stopped by a signal. Neither TCP nor ``statement_timeout`` sees that: the kernel there
acknowledges all that is sent, and who is to time out is who hangs. So the time is taken here.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Final, TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

SILENT: Final = 15.0
"""Seconds without a word of the server after which it is taken to be away."""
_PING_WITHIN: Final = 2  # seconds; libpq's shortest
_OF_PSYCOPG: Final = frozenset(
    {"autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory"}
)
"""What a connection can be made with that is none of libpq's."""
Answer = TypeVar("Answer")


class NotLetInError(psycopg.OperationalError):
    """The server takes connections, and not this one: a password, a database, or too many."""

    lets_in = False


class Bounded(psycopg.Connection[Any]):
    """It: what asks the server for anything fails where that is silent, and ends the connection."""

    silent = SILENT

    @classmethod
    def connect(cls, *words: Any, **named: Any) -> Bounded:
        """See psycopg; raises ``NotLetInError`` where the server answers, and does not let us in.

        libpq keeps the code of an error (28P01, 3D000) to itself as long as there is no connection,
        and its text is in the server's language. ``PQping`` needs no right log-in: it says whether
        the server takes connections at all.
        """
        try:
            return super().connect(*words, **named)
        except psycopg.errors.ConnectionTimeout:
            raise
        except psycopg.OperationalError as error:
            of_libpq = {key: each for key, each in named.items() if key not in _OF_PSYCOPG}
            asked = make_conninfo(*words, **of_libpq | {"connect_timeout": _PING_WITHIN})
            if pq.PGconn.ping(asked.encode()) == pq.Ping.OK:
                raise NotLetInError(str(error)) from error
            raise

    def wait(self, gen: Generator[Any, Any, Answer], *args: Any, **named: Any) -> Answer:
        """See psycopg: every question to the server is waited for here."""
        return super().wait(self._within(gen), *args, **named)

    def _within(self, gen: Generator[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
        """The same, given up where nothing comes for too long: psycopg looks ten times a second."""
        until = time.monotonic() + self.silent
        try:
            wants = next(gen)
            while True:
                ready = yield wants
                if ready:
                    until = time.monotonic() + self.silent
                elif time.monotonic() > until:
                    gen.close()
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"it accepts connections, and has said nothing for {self.silent:g} s"
                    )
                wants = gen.send(ready)
        except StopIteration as ended:
            return ended.value
