"""Settles what a crash has left of attended migrations, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from entourage import recovery
from entourage.attend.backoff import Backoff
from entourage.attend.domains import Domains
from entourage.errors import EntourageError, plain_words
from entourage.journal.journal import Journal
from entourage.settings.model import Settings
from entourage.source.ask import is_untold

_log = logging.getLogger(__name__)
_EVERY = 60.0  # seconds between two looks at the journal
_SOON = 2.0  # seconds: the first pause where something is left
_WAITS_FOR = 60.0  # seconds, for migrations to end
_LOOK_AGAIN = 0.25  # seconds


class Settling:
    """The journal's part of the daemon.

    Args:
        settings: This host's.
        domains: Those that are attended.
        hypervisor: What the journal calls them.
        tell: Takes a line for the log.
    """

    def __init__(
        self,
        settings: Settings,
        domains: Domains,
        hypervisor: str,
        tell: Callable[[str], None] = _log.info,
    ) -> None:
        self._settings = settings
        self._domains = domains
        self._hypervisor = hypervisor
        self._tell = tell
        self._now = asyncio.Event()
        self._backoff = Backoff(_SOON, _EVERY)

    def soon(self) -> None:
        """A migration has ended: look at once."""
        self._backoff.reset()
        self._now.set()

    async def run(self) -> None:
        """Settle, and wait; for ever."""
        while True:
            self._now.clear()
            await self._quiet()
            left = await self.settle()
            if not left:
                self._backoff.reset()
            pause = self._backoff.pause() if left else _EVERY
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._now.wait()

    async def settle(self) -> bool:
        """Settle what can be; whether something is left."""
        left = False
        try:
            for name in self.unsettled():
                done = await recovery.recover(self._settings, name)
                left = left or any(not one.settled or one.problems for one in done)
                for one in done:
                    self._tell(f"{one.domain}: {one.before} -> {one.after}")
        except (EntourageError, OSError, ValueError) as error:
            _log.error("what was left is not settled: %s", plain_words(error))
            return True
        return left

    async def _quiet(self) -> None:
        """Wait until no migration is under way; in the end, until no guest stands still.

        What is written to the journal meanwhile would be waited for there.
        """
        until = time.monotonic() + _WAITS_FOR
        while self._domains.any_stands_still or (  # noqa: ASYNC110 - nobody waits for it
            self._domains.any_busy and time.monotonic() < until
        ):
            await asyncio.sleep(_LOOK_AGAIN)

    def unsettled(self) -> set[str]:
        """The UUIDs of domains of which something is left, here or for the target to be told."""
        path = Path(self._settings.paths.state, "journal.db")
        with Journal.open(path, read_only=True) as journal:
            left = [one for one in journal.decisions() if not one.settled or is_untold(one)]
        ours = {one.domain for one in left if one.hypervisor == self._hypervisor}
        return {uuid for uuid in ours if not self._domains.is_busy(uuid)}
