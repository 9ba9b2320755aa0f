"""Proxmox VE's cluster file system, ``/etc/pve``: a process serves it, which may hang, or end.

A thread that waits for it cannot be ended, and what it was to write may be written long after that
was given up. So nothing else is written before it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from entourage.errors import HypervisorError, plain_words
from entourage.hosts.threads import Given, Result, in_thread

ANSWERS_WITHIN: Final = 40.0
"""Seconds: QEMU's monitor may be deaf for 25."""
_REMEDY: Final = "systemctl status pve-cluster"


class ClusterFiles:
    """What is read and written there, in time. Both methods raise HypervisorError."""

    def __init__(self) -> None:
        self._last: asyncio.Future[Any] | None = None

    async def ask(self, work: Callable[[*Given], Result], *args: *Given) -> Result:
        """Read something; what that returns.

        Args:
            work: It blocks.
            args: What it is given.
        """
        return await _in_time(in_thread(work, *args))

    async def do(self, work: Callable[[*Given], Result], *args: *Given) -> Result:
        """Write something, once what was begun before has ended.

        Args:
            work: It blocks.
            args: What it is given.
        """
        return await _in_time(self._in_turn(work, *args))

    async def _in_turn(self, work: Callable[[*Given], Result], *args: *Given) -> Result:
        while self._last is not None and not self._last.done():  # another one may have begun then
            await asyncio.wait({self._last})
        doing = self._last = in_thread(work, *args)
        await asyncio.wait({doing})  # which does not end with this
        return doing.result()


async def _in_time(answer: Any) -> Any:
    try:
        async with asyncio.timeout(ANSWERS_WITHIN):
            return await answer
    except TimeoutError:
        raise HypervisorError(
            f"the cluster's file system has not answered for {ANSWERS_WITHIN:g} s", remedy=_REMEDY
        ) from None
    except OSError as error:
        why = f"the cluster's file system cannot be read: {plain_words(error)}"
        raise HypervisorError(why, remedy=_REMEDY) from error
