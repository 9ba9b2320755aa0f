"""A running domain's disks, mirrored to another host's machine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import Export
from entourage.hypervisors.qemu.cmdline import mirror_name, node_name
from entourage.hypervisors.qemu.keys import OBJECT
from entourage.hypervisors.qemu.qmp import CommandError, Known, Monitor, MonitorLostError

_SHOW_EVERY = 0.25


class Mirrors:
    """All mirrors of one machine. Node and job of a disk's mirror have the same, fixed name.

    So whatever an earlier process left running can be ended too.
    """

    def __init__(self, monitor: Monitor, domain: Domain) -> None:
        self._monitor = monitor
        self._domain = domain
        self._progress: dict[str, tuple[int, int]] = {}

    async def begin(self, disk: Block, export: Export, *, top_only: bool, tls: bool) -> None:
        """Copy the disk to the export and keep it so; returns when both are the same."""
        name = mirror_name(self._domain, disk)
        node: dict[str, Any] = {
            "driver": "nbd",
            "node-name": name,
            "server": {"type": "inet", "host": export.host, "port": str(export.port)},
            "export": export.name,
            "discard": "unmap",
        }
        if tls:
            node["tls-creds"] = OBJECT
        await self._run("blockdev-add", node, disk)
        self._monitor.known.jobs.pop(name, None)
        self._progress[name] = (0, 0)
        await self._run(
            "blockdev-mirror",
            {
                "job-id": name,
                "device": node_name(self._domain, disk),
                "target": name,
                "sync": "top" if top_only else "full",
                # The guest's writes wait for the target's: so it converges by construction.
                "copy-mode": "write-blocking",
            },
            disk,
        )

        def ready(known: Known) -> bool | None:
            job = known.job(name)
            if job.ended:
                raise _failed(disk, job.error)
            return job.ready or None

        waiting = asyncio.ensure_future(self._monitor.until(ready))
        try:
            while not waiting.done():
                # Only how far it has come must be asked for; that it is done comes by itself.
                await self.look()
                await asyncio.wait({waiting}, timeout=_SHOW_EVERY)
        finally:
            waiting.cancel()
        await waiting

    async def look(self) -> None:
        """Ask how far the mirrors have come; raises HypervisorError where one has failed."""
        if not self._progress:
            return
        for job in await self._monitor.execute("query-block-jobs"):
            if job["device"] in self._progress:
                self._progress[job["device"]] = (job["offset"], job["len"])
        for disk in self._domain.block:
            name = mirror_name(self._domain, disk)
            if name in self._progress and (job := self._monitor.known.job(name)).ended:
                raise _failed(disk, job.error)

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total, as last asked."""
        return self._progress.get(mirror_name(self._domain, disk), (0, 0))

    async def settle(self, disk: Block) -> None:
        """The guest has stopped: the target has all when this returns, and the source its own."""
        name = mirror_name(self._domain, disk)

        def settled(known: Known) -> bool | None:
            job = known.job(name)
            if job.error:
                raise _failed(disk, job.error)
            return job.ended or None

        if self._monitor.known.job(name).ended:
            raise _failed(disk, self._monitor.known.job(name).error)
        self._progress.pop(name, None)
        await self._run("block-job-cancel", {"device": name, "force": False}, disk)
        await self._monitor.until(settled)

    async def end(self, disk: Block) -> None:
        """Give the mirror up, whatever it does, also over a link that has died."""
        name = mirror_name(self._domain, disk)
        self._progress.pop(name, None)
        with contextlib.suppress(MonitorLostError):
            await self._cut(name)
            jobs = await self._monitor.execute("query-jobs")
            if any(job["id"] == name for job in jobs):
                with contextlib.suppress(CommandError):
                    await self._run("block-job-cancel", {"device": name, "force": True}, disk)
                await self._monitor.until(lambda known: known.job(name).gone or None)
            self._monitor.known.jobs.pop(name, None)
            with contextlib.suppress(CommandError):
                await self._run("blockdev-del", {"node-name": name}, disk)

    async def cut_off(self) -> None:
        """Cut every mirror's connection, so that nothing of QEMU waits for the other host."""
        names = [mirror_name(self._domain, disk) for disk in self._domain.block]
        await asyncio.gather(*map(self._cut, names))

    async def _cut(self, name: str) -> None:
        """Out of band: over a link that has died, a mirror holds up QEMU's main loop."""
        instance = {"type": "block-node", "node-name": name}
        with contextlib.suppress(CommandError):  # there is no such connection (any more)
            await self._monitor.execute("yank", {"instances": [instance]}, urgent=True)

    async def _run(self, command: str, arguments: dict[str, Any], disk: Block) -> Any:
        return await self._monitor.execute(command, arguments, device=disk.label)


def _failed(disk: Block, reason: str) -> HypervisorError:
    return HypervisorError(
        f"the mirror to the target ended: {reason or 'it was given up'}", device=disk.label
    )
