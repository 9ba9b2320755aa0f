"""A QEMU machine that runs here, as its QEMU has it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError, plain_words
from entourage.hosts.process import ProcessHandle, await_marked, last_lines
from entourage.hosts.threads import in_thread
from entourage.hypervisors.qemu.access import take_back
from entourage.hypervisors.qemu.errors import plain
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.qmp import Monitor, MonitorLostError
from entourage.hypervisors.qemu.record import Running
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.understood import understood

_QUIT_PATIENCE = 5.0
_MONITOR_PATIENCE = 10.0


class Handle:
    """One machine: its QEMU, and what was written down of it. Use ``Handle.open``.

    Args:
        monitor: The owner's monitor.
        process: QEMU; None where it has ended.
        running: What was written down when it was started.
        where: The domain's places.
        was_running: Whether its user lets the guest run.

    Attributes:
        monitor, process, running, where, was_running: As above, and as they are now.
        gone: Whether it is known to have ended.
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
        self.monitor = monitor
        self.process = process
        self.running = running
        self.where = where
        self.was_running = was_running
        self.gone = process is None

    @classmethod
    async def open(cls, running: Running, where: Places) -> Handle:
        """Take hold of a machine.

        Raises:
            GoneError: It has ended.
            HypervisorError: It does not answer, or is not what was written down.
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
    def of_ended(cls, running: Running, where: Places) -> Handle:
        """What is left of a machine that has ended."""
        return cls(Monitor.lost(), None, running, where, was_running=True)

    @property
    def domain(self) -> Domain:
        """The running configuration: everything that was left open is filled in."""
        return self.running.domain

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await self.monitor.close()
        if self.process is not None:
            self.process.close()

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        if self.process is not None:
            await self.process.ended()
        if reason := self.monitor.known.shutdown:
            return f"QEMU has ended ({reason})"
        said = plain(last_lines(self.where.log, _near_end(self.where.log), 1))
        return f"QEMU has ended; its last words: {said}"


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


async def end_machine(
    monitor: Monitor,
    process: ProcessHandle | None,
    running: Running,
    where: Places,
    *,
    moved: bool = False,
) -> None:
    """End QEMU at once and wait for all of its processes; sockets and keys go, disks stay.

    Args:
        monitor: Of the machine.
        process: QEMU; None where it has ended.
        running: What was written down of it.
        where: Its places.
        moved: Its guest runs on another host.
    """
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
    await after_end(running, where, moved=moved)


async def after_end(running: Running, where: Places, *, moved: bool = False) -> None:
    """QEMU has ended: wait for what ends with it, remove its sockets, give its files back."""
    if running.marker:
        await await_marked(running.marker, _QUIT_PATIENCE)
    try:
        await in_thread(take_back, where, moved=moved)
    except OSError as error:
        # No reason to keep a machine that has ended; the next start tries again.
        with contextlib.suppress(OSError), where.log.open("a") as log:
            log.write(
                f"entourage: files are not given back to their owners: {plain_words(error)}\n"
            )
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(where.run)


async def _check(monitor: Monitor, domain: Domain) -> None:
    """See that it is this machine's QEMU; what its user has changed since is ``drift``'s to say."""
    kind, memory = await asyncio.gather(
        monitor.execute("qom-get", {"path": "/machine", "property": "type"}),
        monitor.execute("query-memory-size-summary"),
    )
    problems: list[str] = []
    if kind != f"{domain.machine}-machine":
        problems.append(f"it is a {kind}, not a {domain.machine}")
    with understood("QEMU's answer about its memory"):
        size = int(memory["base-memory"])
    if abs(size - domain.memory) >= 1 << 20:
        problems.append(f"it has {size} bytes of memory, not {domain.memory}")
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
