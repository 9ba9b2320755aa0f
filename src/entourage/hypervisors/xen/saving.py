"""A Xen domain that runs here and is to be saved: the source's half of a save.

``xl save`` ends the domain once its file is written, when nothing else of the save is whole. So the
domain leaves by ``xl migrate``, as if it moved; where ssh would take its stream to another host, a
program takes it to the save. What is saved begins with the header of an ``xl save``, and is read by
what reads that.

    start    xl begins; its stream goes to the socket at which the save takes memory
    stopped, disarm, release, abort    as for a domain that moves
    landed   the stream has come to its end, and all of it is on its way
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.local import listening_here
from entourage.hypervisors.base import Plan, Ticket
from entourage.hypervisors.into_save import PassedOn, way_into_save
from entourage.hypervisors.values import SavePlan
from entourage.hypervisors.xen.constants import NAME
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.header import Changes
from entourage.hypervisors.xen.keeper import WHOLE
from entourage.hypervisors.xen.machine import XenMachine, leaves_from
from entourage.settings.model import Settings
from entourage.steps import Refusal


class XenSaving(XenMachine):
    """A domain of this dom0 that is saved.

    Args:
        handle: The domain, as xl and xenstore have it.
        settings: This host's.
    """

    non_live = True
    """A guest that ends with its save is saved so: no blackout's budget holds for it. xl copies its
    memory while it runs all the same."""

    def __init__(self, handle: Handle, settings: Settings) -> None:
        super().__init__(handle, settings)
        self._path = leaves_from(settings, str(handle.domain.uuid)) / "keeper"
        self._passed_on: PassedOn | None = None
        self._keeper: socket.socket | None = None

    @property
    def saving(self) -> None:
        """It is this one."""
        return

    async def blockers(self) -> Sequence[Refusal]:
        """What speaks against saving it, beside what speaks against a move."""
        found = [*await super().blockers()]
        for disk in self.domain.block:
            if disk.format == "qcow2" and not disk.readonly:
                reason = "its image's tables are in the back end's memory while the domain is there"
                remedy = f"qemu-img convert {disk.path} to raw, and have the domain use that"
                found.append(Refusal(disk.label, socket.gethostname(), reason, remedy))
        return found

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - nothing of it is changed
        """All that the save must know before: who restores it."""
        return Plan(msgspec.msgpack.encode(SavePlan(hypervisor=NAME, sends=True)))

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - see ``non_live``
        """Have xl begin; returns when its stream flows into the save.

        Raises:
            HypervisorError: xl refuses, or there is no way into the save.
        """
        local = self._plane.local if self._plane else None
        if local is None:
            raise HypervisorError("a machine is saved by a process of the host that it runs on")
        program = [sys.executable, "-I", "-m", "entourage.hypervisors.xen.keeper", str(self._path)]
        order = {
            "ssh": program,
            "secret": "",
            "changes": asdict(Changes()),
            "budget": self._budget,
            "drains": False,
        }
        async with way_into_save(local, ticket.uri, self._passes_on) as memory:
            with listening_here(self._path) as server:
                await self._migrating.begin(order, self._lock)
                self._keeper = await self._migrating.beside(_given(server, memory))

    def _passes_on(self, passed_on: PassedOn) -> None:
        self._passed_on = passed_on

    async def landed(self) -> bytes:
        """Wait until the stream has come to its end; that memory is on the disk, the save says."""
        keeper = self._keeper
        if keeper is None:
            raise HypervisorError("nothing is being saved")
        if not await self._migrating.beside(_is_whole(keeper)):
            raise HypervisorError(
                "xl's stream into the save has ended early", remedy=f"see {self._handle.log}"
            )
        if self._passed_on is not None:
            await self._migrating.beside(self._passed_on.finished())
        return b""

    async def check_stood_still(self, until: int) -> None:  # noqa: ARG002 - it still does
        """See ``Machine``: where xl or its transport has gone, xl has let the domain run."""
        now = self._handle.life()
        if self._migrating.stream.has_gone or now is None or not now.suspended:
            raise HypervisorError(
                "it has not stood still until all was saved", remedy=f"see {self._handle.log}"
            )

    async def abort(self) -> None:
        """See ``XenMachine.abort``."""
        try:
            await super().abort()
        finally:
            await self._end_way()

    async def release(self) -> None:
        """The save has its name: xl destroys the domain here."""
        await super().release()
        await self._end_way()

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await super().close()
        await self._end_way()

    async def _end_way(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()
        passed_on, self._passed_on = self._passed_on, None
        if passed_on is not None:
            await passed_on.end()


async def _given(server: socket.socket, memory: socket.socket) -> socket.socket:
    """Give the keeper, once it asks for it, the socket that memory is written to.

    Returns:
        The connection to the keeper, which says ``WHOLE`` there.
    """
    connection, _ = await asyncio.get_running_loop().sock_accept(server)
    with contextlib.suppress(OSError):  # it has ended, which ``landed`` finds
        socket.send_fds(connection, [b"."], [memory.fileno()])
    return connection


async def _is_whole(keeper: socket.socket) -> bool:
    """Wait until the keeper has passed all of the stream on; False where it has ended before."""
    try:
        return await asyncio.get_running_loop().sock_recv(keeper, len(WHOLE)) == WHOLE
    except OSError:
        return False
