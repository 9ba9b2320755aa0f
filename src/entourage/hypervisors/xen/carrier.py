"""Carries a Xen domain to another host: the source's six operations, by ``xl migrate``.

    start    disks are copied; xl begins, with our transport in the place of ssh
    stopped  xenstore's @releaseDomain, and the domain is suspended
    landed   what has changed on copied disks is on the target, and proven
    disarm   xl hears READY, renames its copy and says GO: it never resumes it by itself now
    release  xl hears that the domain runs there, and destroys its copy
    abort    xl sees a migration that has failed, and lets the domain run here

xl, and the transport under it, outlive this process: they are the deadman.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hosts.process import ProcessHandle, launch
from entourage.hosts.ssh import ssh_command
from entourage.hypervisors.base import DataPlane, MemoryProgress, Plan, Ticket
from entourage.hypervisors.xen import xl as xl_program
from entourage.hypervisors.xen.header import Changes
from entourage.hypervisors.xen.rollback import Rollback
from entourage.hypervisors.xen.sender import Word
from entourage.hypervisors.xen.streams import DiskCopy, TransportEnd
from entourage.hypervisors.xen.xenstore import RELEASED

_NOTHING: Mapping[str, str] = MappingProxyType({})
_RENAMES_WITHIN = 10.0  # seconds for xl to take its copy out of the way


class Carrier(Rollback):
    """The six operations; a ``Machine`` is built on it."""

    @property
    def in_the_clear(self) -> str:
        """Never: ssh carries everything."""
        return ""

    def carry(self, disk: Block, *, top_only: bool) -> None:  # noqa: ARG002 - raw disks have no chain
        """``start`` is to copy this disk."""
        self._carried.append(disk.id)

    def mirrored(self, disk: Block) -> tuple[int, int]:
        """Bytes done of the pass under way and in total; (0, 0) where it is not copied."""
        copy = self._copies.get(disk.id)
        return copy.progress if copy else (0, 0)

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,  # noqa: ARG002 - see ``tune``
        throttle: bool = False,  # noqa: ARG002 - xl has no way to slow a guest
        lock: int | None = None,
        offers: Mapping[str, str] = _NOTHING,  # noqa: ARG002 - nothing to choose from
    ) -> None:
        """Watch for the moment of stop; the deadman comes with ``start``."""
        self._plane, self._lock = plane, lock
        await self._store.watch(RELEASED)

    async def plan(self, target: Domain) -> Plan:
        """Which disks will be copied; what is otherwise there is changed in the stream."""
        self._target = target
        return Plan(parameters={"disks": list(self._carried)})

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - see CAPABILITIES
        """Copy the disks, then have xl begin; returns when its stream flows.

        Raises:
            HypervisorError: A disk cannot be copied, or xl refuses.
        """
        target = self._target or self._domain
        for name in self._carried:
            disk, there = self._disk(self._domain, name), self._disk(target, name)
            ssh = self._ssh(ticket, f"disk {name}")
            blank = not there.path.startswith("/dev/")
            self._copies[name] = DiskCopy(disk, ssh, blank=blank)
        async with asyncio.TaskGroup() as group:
            for copy in self._copies.values():
                group.create_task(copy.first())
        await self._begin(ticket, target)

    async def _begin(self, ticket: Ticket, target: Domain) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._end = TransportEnd(self._directory / "transport")
        differs = asdict(changes(self._domain, target))
        order = {"ssh": self._ssh(ticket, "memory"), "changes": differs}
        await self._end.listen(order)
        with contextlib.suppress(OSError):
            self._log_from = self._log.stat().st_size
        # xl gives this to a shell, which becomes the program: every word is quoted.
        program = (sys.executable, "-I", "-m", "entourage.hypervisors.xen.transport")
        rune = "exec " + shlex.join([*program, str(self._end.path)])
        name = f"{self._domain.uuid}.{secrets.token_hex(4)}.xl"
        pid = await launch(
            [xl_program.find() or "xl", "migrate", "-s", "", str(self._domid), rune],
            marker=name,
            log=self._log,
            unit=f"entourage-{name}",
            pass_fds=() if self._lock is None else (self._lock,),
            environment={"PATH": xl_program.search_path()},
        )
        self._xl = ProcessHandle.open(pid)
        await self._beside_xl(self._end.hears(Word.BEGUN))

    def _ssh(self, ticket: Ticket, what: str) -> list[str]:
        """The command at whose end the agent takes a stream."""
        host = self._plane.host if self._plane else ""
        return ssh_command(host, self._settings, ["agent", "--join", ticket.uri, what])

    @staticmethod
    def _disk(domain: Domain, name: str) -> Block:
        return next(disk for disk in domain.block if disk.id == name)

    async def progress(self) -> MemoryProgress:
        """What has gone through; how much is left xl tells nobody."""
        passed = self._end.passed if self._end else 0
        total = max(passed, self._domain.memory)
        return MemoryProgress(
            transferred=passed,
            remaining=total - passed,
            total=total,
            dirty_rate=0.0,
            rate=0.0,
            iteration=0,
            expected_downtime=0.0,
        )

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        """Nothing: xl goes by its own rules (five rounds, or less than 50 pages left)."""

    async def stopped(self) -> int:
        """Wait until the guest is suspended; ns of the monotonic clock."""
        moment = await self._beside_xl(self._until_suspended())
        self._last_copies = asyncio.create_task(self._copy_the_last())
        return moment

    async def _until_suspended(self) -> int:
        released = await self._store.watch(RELEASED)
        while True:
            released.clear()
            now = self._life()
            if now is None or now.ended:
                raise HypervisorError(f"{self._domain.name} has ended")
            if now.suspended:
                return time.monotonic_ns()
            await released.wait()

    async def _copy_the_last(self) -> None:
        async with asyncio.TaskGroup() as group:
            for copy in self._copies.values():
                group.create_task(copy.last())

    async def _beside_xl(self, work: Any) -> Any:
        """Do something, unless xl or its transport ends first."""
        working = asyncio.ensure_future(work)
        others: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._stream().gone())]
        if self._xl is not None:
            others.append(asyncio.ensure_future(self._xl.ended()))
        try:
            await asyncio.wait({working, *others}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise HypervisorError(
                f"xl does not go on: {self._why() or 'it says nothing'}", remedy=f"see {self._log}"
            )
        finally:
            for task in (working, *others):
                task.cancel()

    async def pre_switchover(self) -> str:
        """Nothing: back ends hold no writes of a guest that is suspended."""
        return ""

    async def continue_switchover(self) -> None:
        """Nothing: xl sends the rest by itself, beside the disks."""

    async def landed(self) -> bytes:
        """Wait until all of the copied disks is there; that memory is, the target says."""
        if self._last_copies is not None:
            await self._beside_xl(asyncio.shield(self._last_copies))
        return b""

    async def disarm_deadman(self) -> None:
        """GO may be sent next: from when this returns, nothing resumes the guest by itself.

        xl hears READY, renames its copy and says GO, after which only a report lets it go on.
        """
        end = self._stream()
        end.say(Word.HOLD)
        try:
            async with asyncio.timeout(_RENAMES_WITHIN):
                await self._beside_xl(end.hears(Word.HELD))
        except TimeoutError as error:
            raise HypervisorError("xl does not take its copy out of the way") from error


def changes(here: Domain, there: Domain) -> Changes:
    """What xl on the target must be told otherwise.

    Args:
        here: The domain as it runs.
        there: The same, device by device, as it is to be.
    """
    disks = zip(here.block, there.block, strict=True)
    nics = zip(here.net, there.net, strict=True)
    return Changes(
        paths={one.id: other.path for one, other in disks if one.path != other.path},
        nets={one.bridge: it.bridge for one, it in nics if one.bridge != it.bridge},
        passthrough=any(pci.plug for pci in there.pci),
    )
