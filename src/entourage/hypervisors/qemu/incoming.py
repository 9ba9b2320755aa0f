"""A QEMU machine that is being built here: the target's half of a migration."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Mapping
from functools import partial

import msgspec

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hosts.process import ProcessHandle, last_lines
from entourage.hosts.resources import Ledger, end_processes
from entourage.hypervisors.backlog import bound
from entourage.hypervisors.base import DataPlane, Export, Plan, Ticket
from entourage.hypervisors.qemu import keys
from entourage.hypervisors.qemu import tpm as tpms
from entourage.hypervisors.qemu.binary import tls_in_threads
from entourage.hypervisors.qemu.carrier import NO_PLAN, migration_capabilities
from entourage.hypervisors.qemu.checks import IN_THE_CLEAR
from entourage.hypervisors.qemu.cmdline import block_node, disk_index, export_name
from entourage.hypervisors.qemu.errors import plain
from entourage.hypervisors.qemu.launch import bring_up, host_things
from entourage.hypervisors.qemu.machine import QemuAnnouncing, open_monitor
from entourage.hypervisors.qemu.mirrors import Mirrors
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import CommandError, Known, Monitor, MonitorLostError
from entourage.hypervisors.qemu.record import Running, read_running, write_owned, write_running
from entourage.hypervisors.qemu.sockets import bracketed, listening_at_once
from entourage.hypervisors.seams import DiskCopy, DiskExports, IncomingSeams

_DEFAULT_ANNOUNCE_ROUNDS = 5
_MEMORY = "memory"
_THREAD = "copies"
"""Takes the mirrors' writes: QEMU's main thread is busy with memory for many ms at a time, and a
guest whose write waits for the target would wait for that."""
_NO_TPM = "the TPM emulator of the machine being built has ended"
_NEVER_RELEASED = frozenset({"inmigrate", "paused", "prelaunch"})


class QemuIncoming(IncomingSeams):
    """A domain that is being built on this host.

    Args:
        domain: The domain; of what ``build`` is given only its identity is used here.
        where: Its places on this host.
        ledger: Takes every resource before it is made.
        encrypted: Refuse memory and disks in the clear.
    """

    def __init__(
        self, domain: Domain, where: Places, ledger: Ledger, *, encrypted: bool = False
    ) -> None:
        self._encrypted = encrypted
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
        self._nbd_port = 0
        self._core_limit = 0
        self._arriving: asyncio.Task[None] | None = None
        self._nbd_starting = asyncio.Lock()
        self._writable: list[str] = []
        self._thread: dict[str, str | bool] = {}

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """What a source mirrors."""
        return Mirrors.ways

    @property
    def exports(self) -> DiskExports:
        """Its NBD server takes the mirrors' writes."""
        return self

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
            status = (await monitor.execute("query-status"))["status"]
        except MonitorLostError:
            process.close()
            return Guest.DEAD
        self._monitor, self._process, self._running = monitor, process, running
        self._domain = running.domain
        self._released = status not in _NEVER_RELEASED
        emulated = any(tpm.type == "emulator" for tpm in self._domain.tpm)
        self._has_tpm = not emulated or await asyncio.to_thread(tpms.is_alive, running.marker)
        return Guest.RUNNING if self._released else Guest.STOPPED

    async def offers(self) -> Mapping[str, str]:
        """Nothing that the source must know."""
        return {}

    async def networks(self) -> Mapping[str, str]:
        """None: QEMU knows of bridges only."""
        return {}

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan = NO_PLAN) -> None:  # noqa: ARG002 - all is in the domain
        """Make the machine, paused, from the running configuration; what it opens exists."""
        if self._encrypted and plane.secret is None:
            raise HypervisorError(IN_THE_CLEAR[0], remedy=IN_THE_CLEAR[1])
        self._plane = plane
        self._host = await _bindable(plane.address)
        self._log_start = self._where.log.stat().st_size if self._where.log.exists() else 0
        up = await bring_up(domain, self._where, self._ledger, incoming=True)
        self._monitor, self._process, self._running, self._helpers = up
        self._domain = up.running.domain
        if plane.secret is not None:
            await keys.add_key(up.monitor, self._where, plane.secret, server=True)
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

    async def export(self, disk: Block) -> Export:
        """Open a disk of the built machine for the mirror's writes."""
        monitor, plane = self._built()
        async with self._nbd_starting:
            if not self._nbd_port:
                self._nbd_port = await self._start_nbd(monitor, plane)
                self._core_limit = self._limit_core(0)
                if plane.secret is None or tls_in_threads(monitor.version):
                    await monitor.execute("object-add", {"qom-type": "iothread", "id": _THREAD})
                    self._thread = {"iothread": _THREAD, "fixed-iothread": True}
        disk = self._domain.block[disk_index(self._domain, disk)]  # as it is here
        export = export_name(self._domain, disk)
        # A node of its own, for the guest's must stay out of other threads. That one is not active
        # and holds no lock before the guest runs: another can write to the file until all is there.
        things = host_things(self._domain, self._where)
        node = block_node(disk, export, things, readonly=False)
        await monitor.execute("blockdev-add", node, device=disk.label)
        self._writable.append(export)
        await monitor.execute(
            "block-export-add",
            {
                "type": "nbd",
                "id": export,
                "node-name": export,
                "name": export,
                "writable": True,
                **self._thread,
            },
            device=disk.label,
        )
        return Export(host=plane.address, port=self._nbd_port, name=export)

    async def listen(self) -> Ticket:
        """Wait for memory; returns where.

        The connection is accepted here and given to QEMU: after a ``migrate-incoming`` that failed,
        because of a port that is in use say, QEMU 10 refuses every other.
        """
        monitor, plane = self._built()
        server = _listening(self._host, plane)
        port: int = server.getsockname()[1]
        self._arriving = asyncio.create_task(self._take_memory(monitor, server))
        return Ticket(uri=f"tcp:{bracketed(plane.address)}:{port}")

    async def _take_memory(self, monitor: Monitor, server: socket.socket) -> None:
        """Give QEMU the one connection that memory comes by."""
        server.settimeout(0)
        with server:
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
        with connection:
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
        if not self._nbd_port:
            return
        await self._close_exports(monitor)
        self._nbd_port = 0
        self._writable.clear()
        self._limit_core(self._core_limit)

    async def _close_exports(self, monitor: Monitor) -> None:
        """No export ends before the one before it is gone, or QEMU 11.1 aborts.

        As an export ends, its node leaves the export's thread. QEMU has the lock of its block graph
        meanwhile; and if the node is qcow2, it waits for a timer of that, and does what else is
        due: the next export's end, which wants the same lock (``bdrv_graph_wrlock: Assertion
        '!has_writer' failed``). Seen in 11.1.3; 10.0.13 has no such wait.
        """
        # The server ends the last one. Not where that has no thread: it would wait for itself.
        alone = self._writable[:-1] if self._thread else self._writable
        for name in alone:
            await monitor.execute("block-export-del", {"id": name, "mode": "hard"})
            await monitor.until(partial(_is_gone, name))
        # All at once: QEMU does them in this order.
        await asyncio.gather(
            monitor.execute("nbd-server-stop"),
            *(monitor.execute("blockdev-del", {"node-name": name}) for name in self._writable),
        )

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

        Where QEMU dies before it has answered, the guest may have run: this returns as if it had,
        and ``died`` tells the rest.
        """
        monitor = self._standing()
        # What is dead before anything was said to it has never run.
        if monitor.known.lost or (self._process is not None and self._process.has_ended):
            raise self._failure()
        if not self._has_tpm or any(helper.has_ended for helper in self._helpers):
            raise HypervisorError(_NO_TPM)
        self._released = True
        if paused:
            return time.monotonic_ns()
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
        await asyncio.to_thread(write_owned, self._where, domain)

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
            await monitor.execute("object-del", {"id": _THREAD})

    async def kill(self) -> None:
        """End the machine, which never ran; returns when its processes are gone."""
        running = self._running or read_running(self._where)
        if running is not None:
            await end_processes(running.marker)
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

    def _limit_core(self, limit: int) -> int:
        """Set how large a core QEMU may dump, in bytes; returns what it was.

        A source that goes back cuts its mirrors off at once. An export in a thread of its own makes
        QEMU (7.2.14 and later 7.2) abort then: what is killed in a moment need not fill this host's
        disk with the guest's memory before.
        """
        process = self._process
        if process is None or process.has_ended:
            return limit
        try:
            before, most = resource.prlimit(process.pid, resource.RLIMIT_CORE)
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (limit, most))
        except OSError:  # it has ended, or is somebody else's
            return limit
        return before

    async def _start_nbd(self, monitor: Monitor, plane: DataPlane) -> int:
        tls = {} if plane.secret is None else {"tls-creds": keys.OBJECT}
        with _listening(self._host, plane) as server:
            await monitor.give("nbd", server.fileno())
            address = {"type": "fd", "data": {"str": "nbd"}}
            await monitor.execute(
                "nbd-server-start", {"addr": address, "max-connections": 0, **tls}
            )
            port: int = server.getsockname()[1]
            return port

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
        return HypervisorError(f"the machine being built has failed: {said}")


def _is_gone(export: str, known: Known) -> bool | None:
    return export in known.exports_gone or None


async def _bindable(address: str) -> str:
    """What to listen at so that the address is reached: itself, or, behind a NAT, everything."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HypervisorError(
            f"the data address {address} is none: {error.strerror}",
            remedy="set data-address to one of this host's",
        ) from error
    for family, kind, protocol, _, where in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as trial:
            trial.bind(where)
            return str(where[0])
    return "::" if found[0][0] == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - meant


def _listening(host: str, plane: DataPlane) -> socket.socket:
    """A socket at the first free port of those that are allowed."""
    first, last = plane.ports
    try:
        server = listening_at_once(host, range(first, last + 1))
    except OSError as error:
        raise HypervisorError(
            f"nothing can listen at {bracketed(host)}:{first}: {error.strerror}",
            remedy="set migration.ports, or data-address, to what this host allows",
        ) from error
    if server is None:
        raise HypervisorError(
            f"no port from {first} to {last} is free", remedy="set migration.ports to a wider range"
        )
    return server
