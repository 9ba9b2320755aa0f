"""The way back of a QEMU machine's migration, from whatever it is doing."""

from __future__ import annotations

import asyncio
import contextlib

from entourage.hypervisors.qemu.handle import Handle
from entourage.hypervisors.qemu.mirrors import Mirrors
from entourage.hypervisors.qemu.outgoing import ENDED, Outgoing
from entourage.hypervisors.qmp_error import CommandError

_YANK_AFTER = 1.0
_NUDGE = 0.02


class Rollback:
    """Gives one migration up.

    Args:
        handle: The machine.
        outgoing: Its migration.
        mirrors: Its disks' mirrors.
    """

    def __init__(self, handle: Handle, outgoing: Outgoing, mirrors: Mirrors) -> None:
        self._handle = handle
        self._outgoing = outgoing
        self._mirrors = mirrors

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again, or stays paused."""
        await self._give_up()
        if self._handle.was_running:
            await self._run_again()

    async def _give_up(self) -> None:
        """Cancel the migration, whatever it is doing; returns when it is over."""
        asked = asyncio.ensure_future(self._cancelled())
        await asyncio.wait({asked}, timeout=_YANK_AFTER)
        if not asked.done():
            # Sending the devices' state over a link that has died silently, the migration's thread
            # holds the lock that QEMU's main loop waits for.
            await self._outgoing.yank()
        if await asked in ENDED:
            return
        over = self._handle.monitor.until(lambda known: known.migration in ENDED or None)
        waiting = asyncio.ensure_future(over)
        try:
            await asyncio.wait({waiting}, timeout=_YANK_AFTER)
            if not waiting.done():
                await self._outgoing.yank()
                if await self._outgoing.status() != "device":  # see ``_cancelled``
                    await self._handle.monitor.execute("migrate_cancel")
                with contextlib.suppress(CommandError):
                    # Cancelled just as it went to hold the memory back, QEMU (7.2) sleeps for ever
                    # with the guest stopped, unless told to go on from where it says it is.
                    await self._handle.monitor.execute("migrate-continue", {"state": "cancelling"})
            await waiting
        finally:
            waiting.cancel()

    async def _cancelled(self) -> str:
        """Say that mirrors and migration are over; returns how far the migration has heard it.

        Cancelled while it sends the last, QEMU (seen in 7.2) may let the guest run with disks that
        it has just handed over, and dies of the guest's next write. Cut off instead, it fails by
        itself, and takes its disks back first.
        """
        known = self._handle.monitor.known
        if cut := self._outgoing.sending:
            known.migration = ""  # what is heard from here on counts
            await self._outgoing.yank()
        # Mirrors first: if the switchover has stopped the guest, it is not stopped once more.
        await self._mirrors.give_up(run_again=self._handle.was_running)
        if cut:
            return await self._outgoing.status()
        # A process before this one may have begun it.
        sending = (
            self._outgoing.sending or (known.migration or await self._outgoing.status()) == "device"
        )
        known.migration = ""
        cutting = (
            self._outgoing.yank() if sending else self._handle.monitor.execute("migrate_cancel")
        )
        _, status = await asyncio.gather(cutting, self._outgoing.status())
        return status

    async def _run_again(self) -> None:
        """Let the guest run; one that runs already goes on."""
        known = self._handle.monitor.known
        while True:
            known.resumed_at = 0
            try:
                await self._handle.monitor.execute("cont")
            except CommandError as error:
                if "not finalized" not in error.reason:
                    raise
                # The cancelled migration is about to resume the guest by itself, or to stop being.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_NUDGE):
                        await self._handle.monitor.until(lambda known: known.resumed_at or None)
            else:
                return
