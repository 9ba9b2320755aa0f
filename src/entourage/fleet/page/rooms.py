"""What the hosts of a fleet say of themselves, asked only while somebody wants to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from entourage.errors import EntourageError
from entourage.fleet.remote import Remote, RoomThere

_FRESH: Final = 30.0
"""Seconds for which an answer is shown before the host is asked again."""
_AT_ONCE: Final = 16
"""So many hosts are asked at once: each is a process here, and one there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host has said last.

    Attributes:
        at: When, seconds since 1970.
        room: What it has; None where it did not answer.
        problem: Why not.
    """

    at: float
    room: RoomThere | None = None
    problem: str = ""


class Rooms:
    """They.

    Args:
        remote: The hosts.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._known: dict[str, Answer] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked = float("-inf")

    def known(self) -> Mapping[str, Answer]:
        """What is known now; what is not fresh is asked for, and known the next time."""
        idle = self._asking is None or self._asking.done()
        if idle and time.monotonic() - self._asked >= _FRESH:
            self._asked = time.monotonic()
            self._asking = asyncio.create_task(self._ask())
        return self._known

    @property
    def is_asking(self) -> bool:
        """Whether an answer is under way."""
        return self._asking is not None and not self._asking.done()

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def ask(name: str) -> None:
            async with gate:
                try:
                    self._known[name] = Answer(time.time(), await self._remote.room(name))
                except EntourageError as error:
                    self._known[name] = Answer(time.time(), problem=str(error))

        await asyncio.gather(*(ask(one.name) for one in self._remote.fleet.host))
