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


class SilentError(DatabaseAwayError):
    """No answer has come yet; why is not known, and is told once it is."""


class Outage:
    """Says why a campaign waits for its database, each reason once, and when it does no more.

    Args:
        note: Says it.
        drives: Whether this process runs the campaign now; else it only looks on.
    """

    def __init__(
        self, note: Callable[[str], None], drives: Callable[[], bool] = lambda: False
    ) -> None:
        self._note = note
        self._drives = drives
        self._said = set[type[DatabaseAwayError]]()

    def waits(self, error: DatabaseAwayError) -> None:
        """It is away, or lets nobody in."""
        if type(error) not in self._said:
            self._said.add(type(error))
            more = ", and nothing more is begun" if self._drives() else ""
            self._note(f"{error}: it is waited for{more}")

    def over(self) -> None:
        """It has answered."""
        if self._said:
            self._said.clear()
            self._note("the fleet's database answers again: it goes on")

    async def through(self, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """What the database answers to who looks on; it is asked again and again.

        Where no answer comes within some seconds, that is said before it is known why.

        Raises:
            DatabaseAwayError: It has been away for too long, and this process only looks on.
        """
        until = 0.0
        while True:
            asking = asyncio.create_task(ask())
            try:
                await asyncio.wait({asking}, timeout=_SAYS_SO_AFTER)
                if not asking.done():
                    silent = f"the fleet's database has not answered for {_SAYS_SO_AFTER:g} s"
                    self.waits(SilentError(silent))
                answer = await asking
            except DatabaseAwayError as error:
                self.waits(error)
                if self._drives():
                    until = 0.0
                else:
                    until = until or time.monotonic() + _WAITS
                    if time.monotonic() > until:
                        raise
                await asyncio.sleep(_LOOK_AGAIN)
            else:
                self.over()
                return answer
            finally:
                asking.cancel()
