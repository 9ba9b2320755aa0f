"""One clock for both hosts: seconds since the migration began."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from entourage.errors import DeadlineError


class Clock:
    """Seconds since the migration began, on this host's monotonic clock and on the target's."""

    def __init__(self) -> None:
        self._began = time.monotonic_ns()
        self._ahead = 0

    def now(self) -> float:
        """Seconds since the migration began."""
        return self.at(time.monotonic_ns())

    def at(self, here: int) -> float:
        """A moment of this host's clock (ns), in seconds since the migration began."""
        return (here - self._began) / 1e9

    def at_target(self, there: int) -> float:
        """A moment of the target's clock (ns), in seconds since the migration began."""
        return self.at(there - self._ahead)

    def set_by(self, asked: int, answered: int, there: int) -> None:
        """The target's clock showed ``there`` between these two moments of ours."""
        self._ahead = there - (asked + answered) // 2


@asynccontextmanager
async def within(seconds: float, what: str, remedy: str) -> AsyncGenerator[None]:
    """Give the body so many seconds.

    Args:
        seconds: How many.
        what: What the body does, in words: ``its recovery``.
        remedy: What the user can do where they are not enough.

    Raises:
        DeadlineError: They were not. A TimeoutError of the body's own is passed on.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineError(f"{what} did not end within {seconds:g} s", remedy=remedy) from error
