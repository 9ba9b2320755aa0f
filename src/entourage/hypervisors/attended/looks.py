"""Waiting for what becomes of a domain: by what is heard of it, and by a look now and then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from entourage.errors import HypervisorError
from entourage.hypervisors.attended.toolstack import Shown, Toolstack, Watch

LOOK_EVERY = 0.25
"""Seconds between two looks where nothing is heard: each takes a thread, and the guest may wait."""


class Looks:
    """Looks at one domain.

    Args:
        toolstack: This host's.
        uuid: The domain's.
        watch: What is heard of it; None where nothing is.
    """

    def __init__(self, toolstack: Toolstack, uuid: str, watch: Watch | None) -> None:
        self._toolstack = toolstack
        self._uuid = uuid
        self._watch = watch

    async def seen(self) -> Shown:
        """What is shown; held, as long as nobody answers: its daemon is restarted, perhaps."""
        try:
            return await self._toolstack.shown(self._uuid)
        except HypervisorError:
            return Shown.HELD

    async def until(
        self, wanted: Callable[[Shown], bool], patience: float, *, at_once: bool = True
    ) -> Shown:
        """Look whenever something is heard, until what is seen is wanted.

        Args:
            wanted: Whether it is; what it raises is raised.
            patience: Seconds.
            at_once: Look before anything is heard, too.

        Returns:
            What was seen last; held where that was nothing.
        """
        shown = Shown.HELD
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while True:
                    news = asyncio.create_task(self._news())
                    try:
                        if at_once:
                            shown = await self.seen()
                            if wanted(shown):
                                return shown
                        await asyncio.wait({news}, timeout=LOOK_EVERY)
                    finally:
                        news.cancel()
                    at_once = True
        return shown

    async def _news(self) -> None:
        """Wait until something is heard; for ever where nothing will be."""
        if self._watch is not None:
            with contextlib.suppress(HypervisorError):
                await self._watch.news()
                return
        await asyncio.get_running_loop().create_future()
