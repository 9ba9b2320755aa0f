"""A QEMU machine that runs here: the source's half of a migration."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from entourage.domain import Domain, Net
from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hosts.process import ProcessHandle, await_marked, last_lines
from entourage.hypervisors.base import DiskMirroring
from entourage.hypervisors.files import digest
from entourage.hypervisors.qemu import tpm as tpms
from entourage.hypervisors.qemu.binary import loses_state
from entourage.hypervisors.qemu.carrier import Carrier
from entourage.hypervisors.qemu.cmdline import device_id
from entourage.hypervisors.qemu.drift import drift
from entourage.hypervisors.qemu.errors import device_of, plain
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import CommandError, Monitor, MonitorLostError
from entourage.hypervisors.qemu.record import Running, disown
from entourage.hypervisors.qemu.virtio import ORDINARY_QUEUE, largest_queue
from entourage.hypervisors.seams import MachineSeams
from entourage.steps import Refusal

_QUIT_PATIENCE = 5.0
_MONITOR_PATIENCE = 10.0
# RARP packets of QEMU's: how many, and when (ms).
_ANNOUNCEMENT = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
_CPU_FLAGS = Path("/proc/cpuinfo")


class GoneError(HypervisorError):
    """The machine has ended."""


class QemuMachine(Carrier, MachineSeams):
    """A domain that runs on this host. Use ``QemuMachine.open``."""

    # No ``unplugging``: a machine here lets go of devices, and its target's half has no like of it.
    non_live = True

    @classmethod
    async def open(cls, running: Running, where: Places) -> QemuMachine:
        """Take hold of a machine.

        Raises:
            HypervisorError: It is gone, does not answer, or is not what was written down.
        """
        process = ProcessHandle.open(running.pid, running.began)
        if process is None:
            raise GoneError(f"{running.domain.name} has ended")
        monitor = None
        try:
            monitor = await open_monitor(where.qmp)
            await _check(monitor, running.domain)
            status = (await monitor.execute("query-status"))["status"]
        except BaseException:
            if monitor is not None:
                await monitor.close()
            process.close()
            raise
        return cls(monitor, process, running, where, was_running=status == "running")

    @classmethod
    def gone(cls, running: Running, where: Places) -> QemuMachine:
        """What is left of a machine that has ended."""
        return cls(Monitor.lost(), None, running, where, was_running=True)

    @property
    def domain(self) -> Domain:
        """The running configuration: everything that was left open is filled in."""
        return self._running.domain

    @property
    def mirroring(self) -> DiskMirroring:
        """Disks are mirrored one by one, by block jobs of QEMU's."""
        return self._mirrors

    @property
    def tpm(self) -> tpms.QemuTpm:
        """Swtpm's state is in QEMU's stream."""
        return tpms.QemuTpm(self.domain, self._where)

    @property
    def announcing(self) -> QemuAnnouncing:
        """QEMU announces NICs when it is told to."""
        return QemuAnnouncing(lambda: self._monitor)

    async def reattach(self, *, was_running: bool) -> Guest:
        """Take up a migration that another process began; what became of the guest here."""
        self._was_running = was_running
        try:
            status, info = await asyncio.gather(
                self._monitor.execute("query-status"), self._monitor.execute("query-migrate")
            )
        except MonitorLostError:
            self._gone = True
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
        await self._monitor.close()
        if self._process is not None:
            self._process.close()
        if self._deadman is not None:
            self._deadman.close()

    async def facts(self) -> Mapping[str, str]:
        """QEMU's version, digests of the boot files; with KVM the CPU's flags."""
        found = {"qemu": ".".join(map(str, self._monitor.version))}
        if (entries := await largest_queue(self._monitor)) > ORDINARY_QUEUE:
            found["virtio-queues"] = str(entries)
        for path in self.domain.boot.files:
            found[f"sha256:{path}"] = await asyncio.to_thread(digest, path)
        if self.domain.accel == "kvm":
            found["cpu-flags"] = " ".join(sorted(cpu_flags()))
        return found

    async def blockers(self) -> Sequence[Refusal]:
        """What QEMU itself marks as not migratable, and what is not as it was started."""
        host = socket.gethostname()
        info, found = await asyncio.gather(
            self._monitor.execute("query-migrate"), drift(self._monitor, self.domain, host)
        )
        reasons: list[str] = info.get("blocked-reasons", [])
        found += [
            Refusal(
                device=device_of(self.domain, reason) or "domain",
                host=host,
                reason=f"QEMU cannot move it: {reason}",
                remedy="take the device out of the machine, or set an external tool for it",
                no_way=True,
            )
            for reason in reasons
        ]
        models = {device: device.model for device in (*self.domain.usb, *self.domain.pci)}
        lost = await loses_state(model for model in models.values() if model)
        found += [
            Refusal(
                device=device.label,
                host=host,
                reason=f"QEMU does not carry the state of a {model}, and does not say so",
                remedy="take the device out of the machine, or set an external tool for it",
                no_way=True,
            )
            for device, model in models.items()
            if model in lost
        ]
        found += await self._dead_tpms(host)
        return found

    async def _dead_tpms(self, host: str) -> list[Refusal]:
        """A TPM whose emulator has ended has lost what it had in memory: nothing can be moved."""
        emulated = [tpm for tpm in self.domain.tpm if tpm.type == "emulator"]
        if not emulated or await asyncio.to_thread(tpms.is_alive, self._running.marker):
            return []
        remedy = f"stop {self.domain.name} and start it again: the TPM's state on disk is whole"
        reason = "its emulator (swtpm) has ended"
        return [Refusal(tpm.label, host, reason, remedy) for tpm in emulated]

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        if self._process is not None:
            await self._process.ended()
        if reason := self._monitor.known.shutdown:
            return f"QEMU has ended ({reason})"
        said = plain(last_lines(self._where.log, _near_end(self._where.log), 1))
        return f"QEMU has ended; its last words: {said}"

    # The end

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        await self._monitor.execute("stop")

    async def release(self) -> None:
        """The domain runs on the target: end the copy here and free what it held."""
        await end_machine(self._monitor, self._process, self._running, self._where)
        await asyncio.to_thread(disown, self._where)
        await self._dismiss()

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again, or stays paused."""
        try:
            await super().abort()
        except MonitorLostError as error:
            # Its processes end with it, and so do its taps; the domain stays this host's.
            await after_end(self._running, self._where)
            await self._dismiss()
            if not self._gone:
                raise GoneError(await self.died()) from error


async def open_monitor(path: Path) -> Monitor:
    """Connect to a machine's monitor, which takes one at a time.

    Raises:
        HypervisorError: Another process has it, or QEMU hangs.
    """
    try:
        async with asyncio.timeout(_MONITOR_PATIENCE):
            return await Monitor.connect(path)
    except TimeoutError as error:
        raise HypervisorError(
            f"QEMU does not answer at {path}",
            remedy="see whether another process is connected, or QEMU hangs",
        ) from error


class QemuAnnouncing:
    """Has QEMU announce NICs; those that the guest can announce itself it asks to do so.

    Args:
        monitor: Returns the machine's, on either host.
    """

    def __init__(self, monitor: Callable[[], Monitor]) -> None:
        self._monitor = monitor

    async def announce(self, nets: Sequence[Net]) -> None:
        """Tell the network where the guest's MACs are."""
        if nets:
            names = [device_id(net) for net in nets]
            await self._monitor().execute("announce-self", {**_ANNOUNCEMENT, "interfaces": names})


async def end_machine(
    monitor: Monitor, process: ProcessHandle | None, running: Running, where: Places
) -> None:
    """End QEMU at once and wait for all of its processes; sockets and keys go, disks stay."""
    if process is not None:
        try:
            async with asyncio.timeout(_QUIT_PATIENCE):
                with contextlib.suppress(MonitorLostError, CommandError):
                    await monitor.execute("quit")
                await process.ended()
        except TimeoutError:
            process.kill()
            await process.ended()
    await monitor.close()
    await after_end(running, where)


async def after_end(running: Running, where: Places) -> None:
    """QEMU has ended: wait for the processes that end with it, and remove its sockets."""
    if running.marker:
        await await_marked(running.marker, _QUIT_PATIENCE)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(where.run)


def cpu_flags() -> frozenset[str]:
    """What this host's CPU can do, in Linux' words."""
    for line in _CPU_FLAGS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


async def _check(monitor: Monitor, domain: Domain) -> None:
    """See that it is this machine's QEMU; what its user has changed since is ``drift``'s to say."""
    kind, memory = await asyncio.gather(
        monitor.execute("qom-get", {"path": "/machine", "property": "type"}),
        monitor.execute("query-memory-size-summary"),
    )
    problems: list[str] = []
    if kind != f"{domain.machine}-machine":
        problems.append(f"it is a {kind}, not a {domain.machine}")
    if abs(memory["base-memory"] - domain.memory) >= 1 << 20:
        problems.append(f"it has {memory['base-memory']} bytes of memory, not {domain.memory}")
    if problems:
        raise HypervisorError(
            f"{domain.name} is not what was started: {'; '.join(problems)}",
            remedy="stop it and start it again",
        )


def _near_end(log: Path) -> int:
    try:
        return max(0, log.stat().st_size - 4096)
    except OSError:
        return 0
