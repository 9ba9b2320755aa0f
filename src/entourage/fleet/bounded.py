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

SILENT: Final = 15.0
"""Seconds without a word of the server after which it is taken to be away."""
Answer = TypeVar("Answer")


class Bounded(psycopg.Connection[Any]):
    """It: what asks the server for anything fails where that is silent, and ends the connection."""

    silent = SILENT

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
