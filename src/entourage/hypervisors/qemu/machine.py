"""A QEMU machine that runs here, and its carrier: the source's half of a migration.

The six operations, in QEMU's words:

    arm      keys, capabilities, parameters
    start    ``migrate``; returns when pre-copy is up
    stopped  the event STOP, or the state ``pre-switchover``
    landed   the state ``completed``
    release  ``quit``
    abort    ``yank`` or ``migrate_cancel``: the guest runs here again (see ``rollback.py``)
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError, plain_words, what_to_do
from entourage.handover.values import Guest
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, DiskMirroring, MemoryProgress, Plan, Ticket
from entourage.hypervisors.deadman import Deadman
from entourage.hypervisors.frontends import wants_room
from entourage.hypervisors.qemu import keys, looks
from entourage.hypervisors.qemu.activation import take_images
from entourage.hypervisors.qemu.announcing import QemuAnnouncing
from entourage.hypervisors.qemu.arming import arm_deadman
from entourage.hypervisors.qemu.cmdline import mirror_name
from entourage.hypervisors.qemu.errors import device_of
from entourage.hypervisors.qemu.handle import Handle, after_end, end_machine
from entourage.hypervisors.qemu.mirrors import Mirrors
from entourage.hypervisors.qemu.outgoing import (
    ENDED,
    Outgoing,
    PassedOn,
    greeted,
    memory_way,
    migration_capabilities,
)
from entourage.hypervisors.qemu.qmp import Known, MonitorLostError
from entourage.hypervisors.qemu.record import disown
from entourage.hypervisors.qemu.rollback import Rollback
from entourage.hypervisors.qemu.tpm import QemuTpm
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.seams import MachineSeams
from entourage.steps import Planned, Refusal

_NO_PLAN = Plan(msgspec.msgpack.encode({}))
_UNLIMITED = 1 << 40  # bytes a second
_NOTHING: Mapping[str, str] = MappingProxyType({})
_MEMORY = "memory"
# Auto-converge can only be switched on before a migration begins. Until it is wanted, what it takes
# from the guest is held at the least that QEMU knows, one percent.
_HARDLY_THROTTLED = {
    "cpu-throttle-initial": 1,
    "cpu-throttle-increment": 20,
    "max-cpu-throttle": 1,
    "throttle-trigger-threshold": 100,
}
_THROTTLED = {"max-cpu-throttle": 99, "throttle-trigger-threshold": 50}
_SAYS_WITHIN = 1.0  # seconds for a program that memory goes through to say why it has ended
_DEFAULTS = {**_THROTTLED, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10}


class QemuMachine(MachineSeams):
    """A domain that runs on this host.

    Args:
        handle: The machine, as its QEMU has it.
    """

    # No ``unplugging``: a machine here lets go of devices, and its target's half has no like of it.
    non_live = True

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._outgoing = Outgoing(handle)
        self._plane: DataPlane | None = None
        self._passed_on: list[PassedOn] = []
        self._mirrors = Mirrors(handle.monitor, handle.domain, self.pre_switchover)
        self._rollback = Rollback(handle, self._outgoing, self._mirrors)
        self._deadman: Deadman | None = None
        self._tidying: asyncio.Task[None] | None = None

    @property
    def domain(self) -> Domain:
        """The running configuration: everything that was left open is filled in."""
        return self._handle.domain

    @property
    def was_running(self) -> bool:
        """False where the user had paused the guest before: it stays paused on the target."""
        return self._handle.was_running

    @property
    def mirroring(self) -> DiskMirroring:
        """Disks are mirrored one by one, by block jobs of QEMU's."""
        return self._mirrors

    @property
    def tpm(self) -> QemuTpm:
        """Swtpm's state is in QEMU's stream."""
        return QemuTpm(self.domain, self._handle.where)

    @property
    def announcing(self) -> QemuAnnouncing:
        """QEMU announces NICs when it is told to."""
        return QemuAnnouncing(lambda: self._handle.monitor)

    async def go_on(self) -> None:
        """QEMU stops a guest that cannot write for want of room (``werror=enospc``)."""
        if self.was_running and not self._handle.gone:
            with contextlib.suppress(MonitorLostError):  # ``died`` tells
                monitor = self._handle.monitor
                stopped = (await monitor.execute("query-status"))["status"] == "io-error"
                if stopped and wants_room(await monitor.execute("query-block")):
                    await monitor.execute("cont")

    def stay_paused(self) -> None:
        """``abort`` leaves its guest stopped, as one that its user had paused."""
        self._handle.was_running = False

    async def reattach(self, *, was_running: bool) -> Guest:
        """Take up a migration that another process began; what became of the guest here."""
        self._handle.was_running = was_running
        try:
            status, info = await asyncio.gather(
                self._handle.monitor.execute("query-status"),
                self._handle.monitor.execute("query-migrate"),
            )
        except MonitorLostError:
            self._handle.gone = True
            return Guest.DEAD
        held = status["status"] in {"finish-migrate", "postmigrate"}
        if was_running:
            # Stopped it is either by the switchover, or by a migration that is not live.
            return Guest.STOPPED if held or status["status"] == "paused" else Guest.RUNNING
        given_up = info.get("status", "none") in {"none", "failed", "cancelled"}
        return Guest.STOPPED if held and not given_up else Guest.RUNNING

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await self._tidied()
        try:
            for way in self._passed_on:
                await way.end()
        finally:
            await self._handle.close()
            if self._deadman is not None:
                self._deadman.close()

    async def facts(self) -> Mapping[str, str]:
        """QEMU's version, digests of the boot files; with KVM the CPU's flags."""
        return await looks.facts(self._handle)

    async def blockers(self) -> Sequence[Refusal]:
        """What QEMU itself marks as not migratable, and what is not as it was started."""
        return await looks.blockers(self._handle)

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        return await self._handle.died()

    @property
    def definition(self) -> Planned:
        """The record by which `entourage start` knows it."""
        record = str(self._handle.where.record)
        return Planned(action="handed-on", here=record, erased=record)

    # The carrier's six operations

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,
        throttle: bool = False,
        lock: int | None = None,
        budget: float | None = None,
        offers: Mapping[str, str] = _NOTHING,  # noqa: ARG002 - QEMU plans alone
    ) -> None:
        """Set up keys, capabilities and parameters, and arm the deadman."""
        domain = self.domain
        await self._tidied()
        if not self.was_running:  # whoever brought it here may not have done so
            await take_images(self._handle.monitor, domain, self._handle.where)
        self._plane = self._mirrors.plane = plane
        if plane.secret is not None:
            handle = self._handle
            await keys.add_key(
                handle.monitor, handle.where, plane.secret, handle.running, server=False
            )
        await self._handle.monitor.execute(
            "migrate-set-capabilities",
            migration_capabilities(
                events=True,
                pause_before_switchover=True,
                auto_converge=throttle,
                # With it, the source resumes by itself when the link breaks at the very end.
                return_path=False,
            ),
        )
        await self._handle.monitor.execute(
            "migrate-set-parameters",
            {
                "tls-creds": "" if plane.secret is None else keys.OBJECT,
                "tls-hostname": "",
                "max-bandwidth": plane.bandwidth or _UNLIMITED,
                **({} if downtime_limit is None else _accepted(downtime_limit)),
                **(_HARDLY_THROTTLED if throttle else {}),
            },
        )
        self._deadman = await arm_deadman(
            self._handle.where,
            name=f"{domain.uuid}.{secrets.token_hex(4)}",
            run_again=self.was_running,
            budget=budget,
            mirrors=[mirror_name(domain, disk) for disk in domain.block],
            lock=lock,
        )

    @property
    def in_the_clear(self) -> str:
        """Never without being asked for."""
        return ""

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - it travels by itself
        """All that the target needs is in the domain."""
        return _NO_PLAN

    async def start(self, ticket: Ticket, *, live: bool) -> None:
        """Begin pre-copy; returns when the stream is up. ``live=False`` stops the guest first."""
        known = self._handle.monitor.known
        known.migration, known.held_at, known.stopped_at = "", 0, 0
        self._outgoing.sending = False
        async with memory_way(ticket, self._plane, self._passed_on.append) as connection:
            if not live and self.was_running:
                await self._handle.monitor.execute("stop")
            with greeted(connection):
                await self._handle.monitor.give(_MEMORY, connection.fileno())
                try:
                    await self._handle.monitor.execute("migrate", {"uri": f"fd:{_MEMORY}"})
                except CommandError as error:
                    error.device = device_of(self.domain, error.reason)
                    raise
                await self._outgoing.reach("active", "pre-switchover", "device", "completed")

    async def progress(self) -> MemoryProgress:
        """How far pre-copy has come; raises HypervisorError where a mirror has failed meanwhile."""
        info, _ = await asyncio.gather(
            self._handle.monitor.execute("query-migrate"), self._mirrors.look()
        )
        ram: dict[str, Any] = info.get("ram", {})
        return MemoryProgress(
            remaining=ram.get("remaining", 0),
            total=ram.get("total", 0),
            dirty_rate=float(ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096)),
            rate=ram.get("mbps", 0.0) * 1e6 / 8,
            iteration=ram.get("dirty-sync-count", 0),
            sent=ram.get("transferred", 0),
        )

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        """Change how much blackout is accepted (seconds), and whether the guest is slowed."""
        await self._handle.monitor.execute(
            "migrate-set-parameters",
            {
                **_accepted(downtime_limit),
                **(_THROTTLED if throttle else {}),
            },
        )

    async def stopped(self) -> int:
        """Wait until the guest has stopped; ns of the monotonic clock.

        QEMU says so before it has flushed its disks and holds the memory back: devices need not
        wait for that, and ``Mirrors.complete`` and ``continue_switchover`` do.
        """
        over = ENDED - {""}

        def still(known: Known) -> bool | None:
            return bool(known.stopped_at or known.held_at or known.migration in over) or None

        known = self._handle.monitor.known
        await self._handle.monitor.until(still)
        if not known.stopped_at:
            # A guest that its user had paused has no moment of stopping.
            await self.pre_switchover()
        return known.stopped_at or known.held_at

    async def pre_switchover(self) -> str:
        """Wait until QEMU has flushed its disks, and holds the memory back."""
        await self._outgoing.reach("pre-switchover")
        return "QEMU flushes disks"

    async def continue_switchover(self) -> None:
        """Disks are settled: send the last memory pages and the devices' state."""
        await self.pre_switchover()
        self._outgoing.sending = True
        await self._handle.monitor.execute("migrate-continue", {"state": "pre-switchover"})

    async def landed(self) -> bytes:
        """Wait until the source says that all has been sent and taken."""
        try:
            await self._outgoing.reach("completed")
        except HypervisorError:
            await self._explained()
            raise
        try:
            for way in self._passed_on:
                await way.finished()
        except OSError as error:
            raise HypervisorError(
                f"memory cannot be sent: {plain_words(error)}", remedy=what_to_do(error)
            ) from error
        return b""

    async def _explained(self) -> None:
        """Where a program on memory's way has failed: that is the reason, and QEMU does not know.

        Raises:
            HypervisorError: One has.
        """
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_SAYS_WITHIN):
                for way in self._passed_on:
                    await way.finished()

    async def disarm_deadman(self) -> None:
        """GO may be sent next: from when this returns, nothing resumes the guest by itself."""
        if self._deadman is None:
            raise HypervisorError("nothing would resume the guest if this process died")
        await self._deadman.disarm()

    # The end

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        await self._handle.monitor.execute("stop")

    async def release(self) -> None:
        """The domain runs on the target: end the copy here and free what it held."""
        handle = self._handle
        await end_machine(handle.monitor, handle.process, handle.running, handle.where, moved=True)
        await in_thread(disown, handle.where)
        await self._dismiss()

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again, or stays paused.

        What is left to tidy up then is done beside what the caller does next, the blackout being
        over; ``close`` waits for it.
        """
        handle = self._handle
        if self._deadman is not None:
            await self._deadman.not_acting()
        try:
            await self._rollback.abort()
        except MonitorLostError as error:
            # Its processes end with it, and so do its taps; the domain stays this host's.
            await after_end(handle.running, handle.where)
            await self._dismiss()
            if not handle.gone:
                raise GoneError(await self.died()) from error
            return
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy())

    async def _dismiss(self) -> None:
        if self._deadman is not None:
            await self._deadman.dismiss()
            self._deadman = None

    async def _tidied(self) -> None:
        """Wait until nothing is left to tidy up."""
        if self._tidying is not None:
            with contextlib.suppress(MonitorLostError):
                await self._tidying
            self._tidying = None

    async def _tidy(self) -> None:
        """Back to what QEMU is without us, as far as the mirrors that still end allow it."""
        monitor = self._handle.monitor
        await self._dismiss()
        with contextlib.suppress(CommandError):
            await monitor.execute(
                "migrate-set-capabilities",
                migration_capabilities(pause_before_switchover=False, auto_converge=False),
            )
            await monitor.execute("migrate-set-parameters", {"tls-creds": "", **_DEFAULTS})
        for disk in self.domain.block:
            # A mirror that was settled, or that nobody will end any more.
            name = mirror_name(self.domain, disk)
            with contextlib.suppress(CommandError):
                await monitor.execute("blockdev-del", {"node-name": name})
        await keys.drop_key(monitor)


def _accepted(downtime_limit: float) -> dict[str, Any]:
    return {"downtime-limit": max(1, round(downtime_limit * 1000))}
