"""Storage that a save is on, which may stop answering: what is done to it, and how long is waited.

A thread that waits for storage cannot be ended, and what it was told to do may be done once the
storage answers again, long after that was given up. So nothing else is begun before it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from entourage.errors import HypervisorError
from entourage.hosts.threads import Given, Result, in_thread

_SOON: Final = 0.1  # seconds
_ANSWERS_WITHIN: Final = 20.0  # seconds, for what is some kilobytes
REMOVED_WITHIN: Final = 300.0  # seconds, for memory and copies of disks


class Unanswered(HypervisorError):  # noqa: N818 - what the storage is
    """The storage does not answer: what it was asked may have been done, or may still be."""


class Storage:
    """The storage of one save; what is done to it, is done one thing after the other.

    Args:
        directory: The save's.
        name: The domain's, for the advice; empty: not known.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._last: asyncio.Future[Any] | None = None
        self._hangs = False

    async def do(
        self, work: Callable[[*Given], Result], *args: *Given, within: float | None = None
    ) -> Result:
        """Do something, once what was begun before has ended; what it returns.

        While something hangs that was waited for, nothing else is waited for as long again: each
        step of a way back would be.

        Args:
            work: It blocks.
            args: What it is given.
            within: Seconds that it may take; None: what some kilobytes may.

        Raises:
            Unanswered: The storage does not answer. Either nothing was begun, or what was begun may
                still be done.
        """
        while self._last is not None and not self._last.done():  # another one may have begun then
            await self._ended(self._last, None)
        doing = self._last = in_thread(work, *args)
        await self._ended(doing, within)
        return doing.result()

    async def _ended(self, doing: asyncio.Future[Any], within: float | None) -> None:
        patience = _SOON if self._hangs else within or _ANSWERS_WITHIN
        await asyncio.wait({doing}, timeout=patience)
        self._hangs = not doing.done()
        if self._hangs:
            of = f" {self._name}" if self._name else ""
            raise Unanswered(
                f"the storage of {self._directory} does not answer",
                remedy=f"see whether its server is there; then `entourage recover{of}`",
            )
