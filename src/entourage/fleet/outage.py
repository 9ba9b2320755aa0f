"""What waits for a database that is away: that is said, and when it has answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from entourage.fleet.database import DatabaseAwayError

_LOOK_AGAIN: Final = 2.0  # seconds
_SAYS_SO_AFTER: Final = 5.0  # seconds
_WAITS: Final = 900.0  # seconds that who only looks on waits
Answer = TypeVar("Answer")


class Outage:
    """Says why a campaign waits for its database, each reason once, and when it does no more.

    Args:
        note: Says it.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._said = set[type[DatabaseAwayError]]()

    def waits(self, error: DatabaseAwayError) -> None:
        """It is away, or lets nobody in."""
        if type(error) not in self._said:
            self._said.add(type(error))
            self._note(f"{error}: it is waited for, and nothing more is begun")

    def over(self) -> None:
        """It has answered."""
        if self._said:
            self._said.clear()
            self._note("the fleet's database answers again: it goes on")

    async def through(self, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """What the database answers to who looks on; it is asked again and again.

        Where no answer comes within some seconds, that is said before it is known why.

        Raises:
            DatabaseAwayError: It has been away for too long.
        """
        until = 0.0
        while True:
            asking = asyncio.create_task(ask())
            try:
                await asyncio.wait({asking}, timeout=_SAYS_SO_AFTER)
                if not asking.done():
                    silent = f"the fleet's database has not answered for {_SAYS_SO_AFTER:g} s"
                    self.waits(DatabaseAwayError(silent))
                answer = await asking
            except DatabaseAwayError as error:
                self.waits(error)
                until = until or time.monotonic() + _WAITS
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_LOOK_AGAIN)
            else:
                self.over()
                return answer
            finally:
                asking.cancel()
