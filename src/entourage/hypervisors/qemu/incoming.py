"""A QEMU machine that is being built here: the target's half of a migration."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hosts.allowed import Allowed
from entourage.hosts.local import listening_here
from entourage.hosts.process import ProcessHandle, last_lines
from entourage.hosts.resources import Ledger, end_processes
from entourage.hosts.tcp import bindable, bracketed, listening_in_range
from entourage.hosts.threads import in_thread
from entourage.hypervisors.backlog import bound
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.qemu import keys
from entourage.hypervisors.qemu import tpm as tpms
from entourage.hypervisors.qemu.access import account_of
from entourage.hypervisors.qemu.activation import take_images
from entourage.hypervisors.qemu.announcing import QemuAnnouncing
from entourage.hypervisors.qemu.checks import IN_THE_CLEAR
from entourage.hypervisors.qemu.errors import plain
from entourage.hypervisors.qemu.exports import EXPORT_THREAD, Exports
from entourage.hypervisors.qemu.handle import open_monitor
from entourage.hypervisors.qemu.launch import bring_up
from entourage.hypervisors.qemu.mirrors import Mirrors
from entourage.hypervisors.qemu.outgoing import migration_capabilities
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import Known, Monitor, MonitorLostError
from entourage.hypervisors.qemu.record import Running, read_running, write_owned, write_running
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.seams import DiskCopy, IncomingSeams
from entourage.settings.model import Settings

_DEFAULT_ANNOUNCE_ROUNDS = 5
_MEMORY = "memory"
_NO_TPM = "the TPM emulator of the machine being built has ended"
# What QEMU 7.2.14 and later 7.2 say as they abort when a mirror's connection ends. 10.0 does not.
_CUT_OFF = "nbd_blockdev_client_closed: Assertion"
_NO_CRASH = (
    "entourage: its source has given the migration up and cut its mirrors off, of which this QEMU "
    "aborts (7.2.14 and later 7.2); nothing is lost: the machine was to be ended, and never ran"
)
_NEVER_RELEASED = frozenset({"inmigrate", "paused", "prelaunch"})


class QemuIncoming(IncomingSeams):
    """A domain that is being built on this host.

    Args:
        domain: The domain; of what ``build`` is given only its identity is used here.
        where: Its places on this host.
        ledger: Takes every resource before it is made.
        settings: This host's.
    """

    def __init__(
        self,
        domain: Domain,
        where: Places,
        ledger: Ledger,
        *,
        settings: Settings,
    ) -> None:
        self._settings = settings
        self._domain = domain
        self._where = where
        self._ledger = ledger
        self._monitor: Monitor | None = None
        self._process: ProcessHandle | None = None
        self._helpers: tuple[ProcessHandle, ...] = ()
        self._has_tpm = True
        self._released = False
        self._running: Running | None = None
        self._plane: DataPlane | None = None
        self._host = ""
        self._log_start = 0
        self._arriving: asyncio.Task[None] | None = None
        self._exports = Exports(where, ledger)

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """What a source mirrors."""
        return Mirrors.ways

    @property
    def exports(self) -> Exports:
        """Its NBD server takes the mirrors' writes."""
        return self._exports

    @property
    def tpm(self) -> tpms.QemuTpmArrival:
        """Swtpm takes its state from QEMU's stream."""
        return tpms.QemuTpmArrival(self._where)

    @property
    def announcing(self) -> QemuAnnouncing:
        """QEMU announces NICs when it is told to."""
        return QemuAnnouncing(self._standing)

    async def attach(self) -> Guest:
        """Take up a machine that another process was building here; what became of it."""
        await self.close()
        running = read_running(self._where)
        process = None if running is None else ProcessHandle.open(running.pid, running.began)
        if running is None or process is None:
            return Guest.DEAD
        try:
            monitor = await open_monitor(self._where.qmp)
            status = await monitor.status()
        except MonitorLostError:
            process.close()
            return Guest.DEAD
        self._monitor, self._process, self._running = monitor, process, running
        self._domain = running.domain
        self._released = status not in _NEVER_RELEASED
        emulated = any(tpm.type == "emulator" for tpm in self._domain.tpm)
        self._has_tpm = not emulated or await in_thread(tpms.is_alive, running.marker)
        return Guest.RUNNING if self._released else Guest.STOPPED

    async def offers(self) -> Mapping[str, str]:
        """Nothing that the source must know."""
        return {}

    async def networks(self) -> Mapping[str, str]:
        """None: QEMU knows of bridges only."""
        return {}

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:  # noqa: ARG002 - all is in the domain
        """Make the machine, paused, from the running configuration; what it opens exists."""
        allowed = plane.local is not None or self._settings.agent.allow_unencrypted
        if plane.secret is None and not allowed:
            raise HypervisorError(IN_THE_CLEAR[0], remedy=IN_THE_CLEAR[1])
        self._plane = plane
        self._host = await bindable(plane.address)
        self._log_start = self._where.log.stat().st_size if self._where.log.exists() else 0
        account = account_of(self._settings.qemu)
        up = await bring_up(
            domain,
            self._where,
            self._ledger,
            incoming=True,
            account=account,
            may_give=Allowed(self._settings.agent).may_give,
        )
        self._monitor, self._process, self._running, self._helpers = up
        self._domain = up.running.domain
        self._exports.stands(up, plane, self._host, account)
        if plane.secret is not None:
            await keys.add_key(up.monitor, self._where, plane.secret, up.running, server=True)
        await up.monitor.execute(
            "migrate-set-capabilities",
            # Images are taken only when the guest is released: until then the source can go on
            # with one that both hosts share, and with its own.
            migration_capabilities(events=True, late_block_activate=True),
        )
        await up.monitor.execute(
            "migrate-set-parameters",
            {
                # Announced it is when it runs, not when it may still go back.
                "announce-rounds": 0,
                "tls-creds": "" if plane.secret is None else keys.OBJECT,
            },
        )

    async def data_ports(
        self,
        address: str,  # noqa: ARG002 - it listens anywhere
        ports: tuple[int, int],
    ) -> tuple[int, int] | None:
        """Those that the source wants."""
        return ports

    async def listen(self) -> Ticket:
        """Wait for memory; returns where.

        The connection is accepted here and given to QEMU: after a ``migrate-incoming`` that failed,
        because of a port that is in use say, QEMU 10 refuses every other.
        """
        monitor, plane = self._built()
        if plane.local is not None:
            self._ledger.record("scratch", path=plane.local.socket)
            server = listening_here(Path(plane.local.socket))
            self._arriving = asyncio.create_task(self._take_memory(monitor, server))
            return Ticket(uri=f"unix:{plane.local.socket}")
        server = listening_in_range(self._host, plane.ports)
        port: int = server.getsockname()[1]
        self._arriving = asyncio.create_task(self._take_memory(monitor, server))
        return Ticket(uri=f"tcp:{bracketed(plane.address)}:{port}")

    async def _take_memory(self, monitor: Monitor, server: socket.socket) -> None:
        """Give QEMU the one connection that memory comes by."""
        server.settimeout(0)
        with server:
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
            if server.family == socket.AF_UNIX:
                await in_thread(Path(server.getsockname()).unlink, missing_ok=True)
        with connection:
            if connection.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):  # gone already: QEMU will say so
                    bound(connection)
            await monitor.give(_MEMORY, connection.fileno())
            await monitor.execute("migrate-incoming", {"uri": f"fd:{_MEMORY}"})

    async def landed(self) -> None:
        """Wait until memory has landed, then close the exports: all that is left is ``run``."""
        monitor, _ = self._built()
        if self._arriving is None:
            raise HypervisorError("nobody waits for memory")

        def over(known: Known) -> str | None:
            return known.migration if known.migration in {"completed", "failed"} else None

        try:
            await self._arriving
            status = await monitor.until(over)
        except MonitorLostError as error:
            raise self._failure() from error
        if status == "failed":
            raise self._failure()
        await self._exports.close()

    def accept_cookie(self, cookie: bytes) -> None:
        """QEMU's own stream said everything."""

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        if self._process is None:
            raise HypervisorError("no machine is being built")
        qemu = asyncio.create_task(self._process.ended())
        parts = [qemu, *(asyncio.create_task(helper.ended()) for helper in self._helpers)]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if not self._released and not qemu.done():
                return _NO_TPM
            await qemu  # a guest that runs goes on without a TPM, here as anywhere
        finally:
            for part in parts:
                part.cancel()
        return self._failure().message

    async def run(self, *, paused: bool) -> int:
        """Let the guest run (or stay as its user had paused it); ns of the monotonic clock.

        Where QEMU dies before it has answered, a guest that is not to stay paused may have run:
        this returns as if it had, and ``died`` tells the rest.
        """
        monitor = self._standing()
        # What is dead before anything was said to it has never run.
        if monitor.known.lost or (self._process is not None and self._process.has_ended):
            raise self._failure()
        if not self._has_tpm or any(helper.has_ended for helper in self._helpers):
            raise HypervisorError(_NO_TPM)
        if paused:  # where QEMU is gone by now, the guest has never run
            await take_images(monitor, self._domain, self._where)
            self._released = True
            return time.monotonic_ns()
        self._released = True
        monitor.known.resumed_at = 0
        with contextlib.suppress(MonitorLostError):
            await monitor.execute("cont")
        return monitor.known.resumed_at or time.monotonic_ns()

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        if self._standing().known.lost:  # it had settled in
            await self.attach()
        with contextlib.suppress(MonitorLostError):
            await self._standing().execute("stop")

    async def persist_definition(self) -> None:
        """Write down the domain as this host's own, whether its machine lives or not; durable."""
        domain = self._running.domain if self._running is not None else self._domain
        await in_thread(write_owned, self._where, domain)

    async def finish_arrival(self) -> None:
        """After the guest runs: drop the keys, and all that only an arrival needs."""
        running = self._running or read_running(self._where)
        if running is None:
            return
        self._running = msgspec.structs.replace(running, incoming=False)
        write_running(self._where, self._running)
        keys.forget_file(self._where)
        if self._monitor is not None:
            with contextlib.suppress(MonitorLostError):  # ``died`` tells
                await self._forget_arrival(self._monitor)
            await self._monitor.close()

    async def _forget_arrival(self, monitor: Monitor) -> None:
        await monitor.execute(
            "migrate-set-parameters",
            {"announce-rounds": _DEFAULT_ANNOUNCE_ROUNDS, "tls-creds": ""},
        )
        await monitor.execute(
            "migrate-set-capabilities", migration_capabilities(late_block_activate=False)
        )
        await keys.drop_key(monitor)
        with contextlib.suppress(CommandError):  # no disk was copied
            await monitor.execute("object-del", {"id": EXPORT_THREAD})

    async def kill(self) -> None:
        """End the machine, which never ran; returns when its processes are gone."""
        running = self._running or read_running(self._where)
        if running is not None:
            await end_processes(running.marker)
        with contextlib.suppress(OSError):
            await in_thread(self._explain)
        await self.close()
        keys.forget_file(self._where)

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        if self._arriving is not None:
            self._arriving.cancel()
            await asyncio.gather(self._arriving, return_exceptions=True)
        if self._monitor is not None:
            await self._monitor.close()
        for process in (self._process, *self._helpers):
            if process is not None:
                process.close()

    def _explain(self) -> None:
        """Say in the machine's log why it looks like a crash, if it does."""
        said = last_lines(self._where.log, self._log_start, 2)
        if _CUT_OFF in said and _NO_CRASH not in said:
            with self._where.log.open("a") as log:
                log.write(f"{_NO_CRASH}\n")

    def _standing(self) -> Monitor:
        if self._monitor is None:
            raise HypervisorError("the machine is not built")
        return self._monitor

    def _built(self) -> tuple[Monitor, DataPlane]:
        if self._plane is None:
            raise HypervisorError("the machine is not built")
        return self._standing(), self._plane

    def _failure(self) -> HypervisorError:
        said = plain(last_lines(self._where.log, self._log_start, 2)) or "it said nothing"
        if _CUT_OFF in said:
            said = "the source has cut its mirrors off"
        return HypervisorError(f"the machine being built has failed: {said}")
