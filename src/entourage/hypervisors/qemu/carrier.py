"""Carries a machine's memory and CPU state to another host: the source's six operations on QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.process import ProcessHandle
from entourage.hypervisors.base import DataPlane, MemoryProgress, Plan, Ticket
from entourage.hypervisors.deadman import Deadman
from entourage.hypervisors.qemu import keys
from entourage.hypervisors.qemu.arming import arm_deadman
from entourage.hypervisors.qemu.cmdline import mirror_name
from entourage.hypervisors.qemu.errors import device_of
from entourage.hypervisors.qemu.mirrors import Mirrors
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import CommandError, Known, Monitor, MonitorLostError
from entourage.hypervisors.qemu.record import Running
from entourage.hypervisors.qemu.sockets import answered_within, connected

NO_PLAN = Plan(msgspec.msgpack.encode({}))
_UNLIMITED = 1 << 40  # bytes a second
_ENDED = frozenset({"none", "completed", "failed", "cancelled"})
_NOTHING: Mapping[str, str] = MappingProxyType({})
_YANK_AFTER = 1.0
_GREETED_WITHIN = 10.0  # seconds; the guest runs meanwhile
_MEMORY = "memory"
_NUDGE = 0.02
# Auto-converge can only be switched on before a migration begins. Until it is wanted, what it takes
# from the guest is held at the least that QEMU knows, one percent.
_HARDLY_THROTTLED = {
    "cpu-throttle-initial": 1,
    "cpu-throttle-increment": 20,
    "max-cpu-throttle": 1,
    "throttle-trigger-threshold": 100,
}
_THROTTLED = {"max-cpu-throttle": 99, "throttle-trigger-threshold": 50}
_DEFAULTS = {**_THROTTLED, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10}


def migration_capabilities(**states: bool) -> dict[str, Any]:
    """The arguments of ``migrate-set-capabilities``."""
    return {
        "capabilities": [
            {"capability": name.replace("_", "-"), "state": state} for name, state in states.items()
        ]
    }


def _place(ticket: Ticket) -> tuple[str, int]:
    """Host and port of a ticket, which may say nothing else: QEMU would run ``exec:…``."""
    if found := re.fullmatch(r"tcp:(?:\[([^]\s]+)]|([^][:\s]+)):([0-9]{1,5})", ticket.uri):
        scoped, plain, port = found.groups()
        if 0 < int(port) < 1 << 16:
            return scoped or plain, int(port)
    raise HypervisorError(
        f"the target says that memory is to go to {ticket.uri!r}, which is no TCP port"
    )


def _accepted(downtime_limit: float) -> dict[str, Any]:
    return {"downtime-limit": max(1, round(downtime_limit * 1000))}


class Carrier:
    """The six operations, and ``abort``; a ``Machine`` is built on it.

    Args:
        monitor: The owner's monitor.
        process: QEMU; None where it has ended.
        running: What was written down when it was started.
        where: The domain's places.
        was_running: Whether its user lets the guest run.
    """

    def __init__(
        self,
        monitor: Monitor,
        process: ProcessHandle | None,
        running: Running,
        where: Places,
        *,
        was_running: bool,
    ) -> None:
        self._monitor = monitor
        self._process = process
        self._running = running
        self._where = where
        self._was_running = was_running
        self._mirrors = Mirrors(monitor, running.domain, self.pre_switchover)
        self._deadman: Deadman | None = None
        self._sending = False
        self._tidying: asyncio.Task[None] | None = None
        self._gone = process is None

    @property
    def was_running(self) -> bool:
        """False where the user had paused the guest before: it stays paused on the target."""
        return self._was_running

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,
        throttle: bool = False,
        lock: int | None = None,
        offers: Mapping[str, str] = _NOTHING,  # noqa: ARG002 - QEMU plans alone
    ) -> None:
        """Set up keys, capabilities and parameters, and arm the deadman."""
        domain = self._running.domain
        await self._tidied()
        self._mirrors.tls = plane.secret is not None
        if plane.secret is not None:
            await keys.add_key(self._monitor, self._where, plane.secret, server=False)
        await self._monitor.execute(
            "migrate-set-capabilities",
            migration_capabilities(
                events=True,
                pause_before_switchover=True,
                auto_converge=throttle,
                # With it, the source resumes by itself when the link breaks at the very end.
                return_path=False,
            ),
        )
        await self._monitor.execute(
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
            self._where,
            name=f"{domain.uuid}.{secrets.token_hex(4)}",
            run_again=self._was_running,
            mirrors=[mirror_name(domain, disk) for disk in domain.block],
            lock=lock,
        )

    @property
    def in_the_clear(self) -> str:
        """Never without being asked for."""
        return ""

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - it travels by itself
        """All that the target needs is in the domain."""
        return NO_PLAN

    async def start(self, ticket: Ticket, *, live: bool) -> None:
        """Begin pre-copy; returns when the stream is up. ``live=False`` stops the guest first."""
        known = self._monitor.known
        known.migration, known.held_at, known.stopped_at = "", 0, 0
        self._sending = False
        async with connected(*_place(ticket)) as connection:
            if not live and self._was_running:
                await self._monitor.execute("stop")
            with answered_within(connection, _GREETED_WITHIN):
                await self._monitor.give(_MEMORY, connection.fileno())
                try:
                    await self._monitor.execute("migrate", {"uri": f"fd:{_MEMORY}"})
                except CommandError as error:
                    error.device = device_of(self._running.domain, error.reason)
                    raise
                await self._reach("active", "pre-switchover", "device", "completed")

    async def progress(self) -> MemoryProgress:
        """How far pre-copy has come; raises HypervisorError where a mirror has failed meanwhile."""
        info, _ = await asyncio.gather(self._monitor.execute("query-migrate"), self._mirrors.look())
        ram: dict[str, Any] = info.get("ram", {})
        return MemoryProgress(
            transferred=ram.get("transferred", 0),
            remaining=ram.get("remaining", 0),
            total=ram.get("total", 0),
            dirty_rate=float(ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096)),
            rate=ram.get("mbps", 0.0) * 1e6 / 8,
            iteration=ram.get("dirty-sync-count", 0),
            expected_downtime=info.get("expected-downtime", 0) / 1000,
        )

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        """Change how much blackout is accepted (seconds), and whether the guest is slowed."""
        await self._monitor.execute(
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
        over = _ENDED - {""}

        def still(known: Known) -> bool | None:
            return bool(known.stopped_at or known.held_at or known.migration in over) or None

        known = self._monitor.known
        await self._monitor.until(still)
        if not known.stopped_at:
            # A guest that its user had paused has no moment of stopping.
            await self.pre_switchover()
        return known.stopped_at or known.held_at

    async def pre_switchover(self) -> str:
        """Wait until QEMU has flushed its disks, and holds the memory back."""
        await self._reach("pre-switchover")
        return "QEMU flushes disks"

    async def continue_switchover(self) -> None:
        """Disks are settled: send the last memory pages and the devices' state."""
        await self.pre_switchover()
        self._sending = True
        await self._monitor.execute("migrate-continue", {"state": "pre-switchover"})

    async def landed(self) -> bytes:
        """Wait until the source says that all has been sent and taken."""
        await self._reach("completed")
        return b""

    async def disarm_deadman(self) -> None:
        """GO may be sent next: from when this returns, nothing resumes the guest by itself."""
        if self._deadman is None:
            raise HypervisorError("nothing would resume the guest if this process died")
        await self._deadman.disarm()

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again, or stays paused.

        What is left to tidy up then is done beside what the caller does next, the blackout being
        over; ``close`` waits for it.
        """
        await self._give_up()
        if self._was_running:
            await self._run_again()
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._tidy())

    async def _dismiss(self) -> None:
        if self._deadman is not None:
            await self._deadman.dismiss()
            self._deadman = None

    async def _reach(self, *wanted: str) -> None:
        """Wait until the migration is in one of the states, or over."""
        states = frozenset(wanted)

        def reached(known: Known) -> str | None:
            return known.migration if known.migration in states | _ENDED else None

        status = await self._monitor.until(reached)
        if status not in states:
            info = await self._monitor.execute("query-migrate")
            reason = info.get("error-desc", f"it is {status}")
            raise HypervisorError(
                f"QEMU's migration ended: {reason}",
                device=device_of(self._running.domain, reason),
            )

    async def _give_up(self) -> None:
        """Cancel the migration, whatever it is doing; returns when it is over."""
        asked = asyncio.ensure_future(self._cancelled())
        await asyncio.wait({asked}, timeout=_YANK_AFTER)
        if not asked.done():
            # Sending the devices' state over a link that has died silently, the migration's thread
            # holds the lock that QEMU's main loop waits for.
            await self._yank()
        if await asked in _ENDED:
            return
        over = self._monitor.until(lambda known: known.migration in _ENDED or None)
        waiting = asyncio.ensure_future(over)
        try:
            await asyncio.wait({waiting}, timeout=_YANK_AFTER)
            if not waiting.done():
                await self._yank()
                if await self._status() != "device":  # see ``_cancelled``
                    await self._monitor.execute("migrate_cancel")
                with contextlib.suppress(CommandError):
                    # Cancelled just as it went to hold the memory back, QEMU (7.2) sleeps for ever
                    # with the guest stopped, unless told to go on from where it says it is.
                    await self._monitor.execute("migrate-continue", {"state": "cancelling"})
            await waiting
        finally:
            waiting.cancel()

    async def _cancelled(self) -> str:
        """Say that mirrors and migration are over; returns how far the migration has heard it.

        Cancelled while it sends the last, QEMU (seen in 7.2) may let the guest run with disks that
        it has just handed over, and dies of the guest's next write. Cut off instead, it fails by
        itself, and takes its disks back first.
        """
        known = self._monitor.known
        if cut := self._sending:
            known.migration = ""  # what is heard from here on counts
            await self._yank()
        # Mirrors first: if the switchover has stopped the guest, it is not stopped once more.
        await self._mirrors.give_up(run_again=self._was_running)
        if cut:
            return await self._status()
        # A process before this one may have begun it.
        sending = self._sending or (known.migration or await self._status()) == "device"
        known.migration = ""
        cutting = self._yank() if sending else self._monitor.execute("migrate_cancel")
        _, status = await asyncio.gather(cutting, self._status())
        return status

    async def _status(self) -> str:
        info = await self._monitor.execute("query-migrate")
        return str(info.get("status", "none"))

    async def _yank(self) -> None:
        """Cut the migration's connection off; QEMU does so whatever its main loop waits for."""
        with contextlib.suppress(CommandError):
            instance = {"type": "migration"}
            await self._monitor.execute("yank", {"instances": [instance]}, urgent=True)

    async def _run_again(self) -> None:
        """Let the guest run; one that runs already goes on."""
        known = self._monitor.known
        while True:
            known.resumed_at = 0
            try:
                await self._monitor.execute("cont")
            except CommandError as error:
                if "not finalized" not in error.reason:
                    raise
                # The cancelled migration is about to resume the guest by itself, or to stop being.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_NUDGE):
                        await self._monitor.until(lambda known: known.resumed_at or None)
            else:
                return

    async def _tidied(self) -> None:
        """Wait until nothing is left to tidy up."""
        if self._tidying is not None:
            with contextlib.suppress(MonitorLostError):
                await self._tidying
            self._tidying = None

    async def _tidy(self) -> None:
        """Back to what QEMU is without us, as far as the mirrors that still end allow it."""
        await self._dismiss()
        with contextlib.suppress(CommandError):
            await self._monitor.execute(
                "migrate-set-capabilities",
                migration_capabilities(pause_before_switchover=False, auto_converge=False),
            )
            await self._monitor.execute("migrate-set-parameters", {"tls-creds": "", **_DEFAULTS})
        for disk in self._running.domain.block:
            # A mirror that was settled, or that nobody will end any more.
            name = mirror_name(self._running.domain, disk)
            with contextlib.suppress(CommandError):
                await self._monitor.execute("blockdev-del", {"node-name": name})
        await keys.drop_key(self._monitor)
