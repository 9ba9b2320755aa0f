"""An attended migration to this host: what the hook asks, until it is decided."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from fnmatch import fnmatchcase
from pathlib import Path

from entourage.attend.attended import Attended
from entourage.attend.kept import forget, keep
from entourage.attend.words import BEGIN, ENDED, GO, Begin, Ended, Go
from entourage.errors import EntourageError, LinkError, LinkLost, UsageError, ours
from entourage.hosts.link import Link
from entourage.hosts.ssh import start_agent
from entourage.hypervisors.attended.hypervisor import AttendedHypervisor
from entourage.hypervisors.attended.switchover import TargetSwitchover
from entourage.hypervisors.attended.toolstack import Toolstack
from entourage.journal.journal import Journal
from entourage.settings.model import Settings
from entourage.target.agent import Agent
from entourage.target.caller import Caller

_log = logging.getLogger(__name__)
_STARTS_WITHIN = 120.0  # seconds from the hook's answer to the domain's QEMU


class NotAttendedError(EntourageError):
    """The source's daemon does not answer: nobody takes the devices along."""


class Arrival:
    """One attended migration to this host.

    Args:
        attended: The domain; its bus is open.
        source: The host that it comes from, as the hook was told.
        begin: What that is asked.
        toolstack: This host's.
        hypervisor: The name of the attended hypervisor, on both hosts.
        settings: This host's.
    """

    def __init__(
        self,
        attended: Attended,
        source: str,
        begin: Begin,
        *,
        toolstack: Toolstack,
        hypervisor: str,
        settings: Settings,
    ) -> None:
        self._attended = attended
        self._source = source
        self._begin = begin
        self._toolstack = toolstack
        self._hypervisor = hypervisor
        self._settings = settings
        self._reached = False
        self._ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._link: Link | None = None
        self._switchover = TargetSwitchover(
            begin.nonce, way_back=toolstack.way_back, on_go=self._on_go
        )
        attended.target = self._switchover

    async def prepared(self, run: asyncio.Task[None]) -> None:
        """Wait until every device is prepared: the hook may let the migration begin.

        Args:
            run: ``run``.

        Raises:
            NotAttendedError: The source cannot be asked.
            EntourageError: It is refused; the message has all reasons, and their remedies.
        """
        listening = asyncio.create_task(self._switchover.listening.wait())
        try:
            await asyncio.wait({listening, self._ended, run}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
        if self._ended.done():
            raise UsageError(f"refused:\n{self._ended.result()}")
        if listening.done() and not listening.cancelled():
            return
        error = run.exception() if not run.cancelled() else None
        told = ours(error) if error is not None else UsageError("the migration was given up")
        if isinstance(told, LinkError) and not self._reached:
            raise NotAttendedError(
                f"{self._source} cannot be asked about this domain's devices: {told.message}",
                remedy=told.remedy or f"see whether entourage-attend runs on {self._source}",
            )
        raise told

    async def run(self) -> None:
        """Be the target of its devices' migration until that is decided.

        Raises:
            EntourageError: The source cannot be reached, or does not want it.
        """
        host = self._source
        if not any(fnmatchcase(host, each) for each in self._settings.agent.sources):
            raise UsageError(
                f"machines of {host!r} are not taken here",
                remedy="agent.sources in the settings says whose are",
            )
        watch = await self._toolstack.watch(self._attended.uuid)
        late = asyncio.create_task(self._late())
        try:
            path = Path(self._settings.paths.state, "journal.db")
            with Journal.open(path, keep=self._settings.journal) as journal:
                async with start_agent(host, self._settings, ("attend", "--answer")) as link:
                    hypervisor = AttendedHypervisor(
                        self._hypervisor,
                        self._toolstack,
                        self._switchover,
                        watch,
                        self._attended.uuid,
                        settings=self._settings,
                    )
                    caller = Caller(source=host)
                    agent = Agent(link, self._settings, journal, caller, hypervisor)
                    self._link = link
                    link.on(ENDED, self._on_ended)
                    serving = asyncio.create_task(agent.run(served=True))
                    try:
                        await link.call(BEGIN, self._begin)
                        self._reached = True
                        await asyncio.shield(serving)
                    finally:
                        agent.end()
                        await asyncio.wait({serving})
        finally:
            late.cancel()
            if not (self._toolstack.way_back or self.in_the_air):
                forget(self._attended.uuid, self._begin.nonce)
            self._switchover.refuse(
                "its devices did not come: see `entourage status` on the source"
            )
            self._attended.target = None
            await watch.close()

    @property
    def in_the_air(self) -> bool:
        """Whether the guest would be lost if nobody answered its QEMU any more."""
        return self._switchover.in_the_air

    def _on_go(self) -> None:
        """GO is recorded. A source that does not hear of it lets QEMU's Save fail in the end."""
        if self._link is not None and not self._toolstack.way_back:
            # From here on QEMU must be answered, whatever becomes of this process.
            keep(self._attended.uuid, self._begin.nonce, self._attended.connection)
            with contextlib.suppress(LinkLost):
                self._link.tell(GO, Go())

    async def _on_ended(self, ended: Ended) -> None:
        if not self._ended.done():
            self._ended.set_result(ended)

    async def _late(self) -> None:
        """Give up where nobody builds the machine that the hook has let through."""
        await self._switchover.listening.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STARTS_WITHIN):
                await self._attended.joined.wait()
                return
        self._switchover.end(f"its QEMU was not started within {_STARTS_WITHIN:g} s")
