"""A running domain's disks, mirrored to another host's machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hosts.local import connected_here
from entourage.hosts.tcp import FellSilentError, answered_within, connected
from entourage.hypervisors import marks
from entourage.hypervisors.base import DataPlane, DiskCopy, Export
from entourage.hypervisors.frontends import frontends
from entourage.hypervisors.qemu import keys
from entourage.hypervisors.qemu.cmdline import device_id, mirror_name
from entourage.hypervisors.qemu.qmp import Known, Monitor, MonitorLostError
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.reach import check_local_disk, check_reach
from entourage.hypervisors.seams import Changed, Objection

_SHOW_EVERY = 0.25
# Seconds that the guest may stand still for, at most, while QEMU's main loop greets the target; how
# often a target may be too busy for that, and how long the guest goes on in between.
_GREETED_WITHIN, _GREETINGS, _BREATH = 0.8, 4, 1.0


class Mirrors:
    """All mirrors of one machine. Node and job of a disk's mirror have the same, fixed name.

    So whatever an earlier process left running can be ended too.

    Args:
        monitor: The machine's.
        domain: Its configuration.
        flushed: Waits until QEMU itself is done with its disks, once the guest has stopped.

    Attributes:
        plane: How disks travel; None until the machine is armed.
    """

    ways = frozenset({DiskCopy.MIRROR, DiskCopy.MIRROR_READONLY})

    def __init__(
        self, monitor: Monitor, domain: Domain, flushed: Callable[[], Awaitable[object]]
    ) -> None:
        self.plane: DataPlane | None = None
        self._monitor = monitor
        self._domain = domain
        self._flushed = flushed
        self._progress: dict[str, tuple[int, int]] = {}
        self._given_up: set[str] = set()
        self._nodes: dict[str, str] = {}
        self._marked: dict[str, tuple[Block, str]] = {}

    def objections(self, disk: Block) -> Sequence[Objection]:  # noqa: ARG002 - see seams
        """None that its image does not show."""
        return ()

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:
        """Copy the disk to the export and keep it so; returns when both are the same."""
        name = mirror_name(self._domain, disk)
        node: dict[str, Any] = {
            "driver": "nbd",
            "node-name": name,
            "server": {"type": "fd", "str": name},
            "export": export.name,
            "discard": "unmap",
        }
        if self.plane is not None and self.plane.local is not None:
            check_local_disk(self.plane.local, export.socket, disk.id)
        elif self.plane is not None:
            check_reach(self.plane, export.host, export.port, disk.path)
        if self.plane is not None and self.plane.secret is not None:
            node["tls-creds"] = keys.OBJECT
        await self._open(node, disk, export)
        self._monitor.known.jobs.pop(name, None)
        self._given_up.discard(name)
        self._progress[name] = (0, 0)
        inserted = await self._inserted(disk)
        root = self._nodes[name] = str(inserted["node-name"])
        since = self._since(disk)
        if self._mark:  # from now on: nothing of it is left to be done in the blackout
            await marks.begin(self._monitor, inserted, disk.label)
            self._marked[disk.label] = disk, root
        if since:
            changed = marks.changed(inserted, since)
            self._progress[name] = (0, changed.written if changed else 0)
            return
        await self._run(
            "blockdev-mirror",
            {
                "job-id": name,
                "device": root,
                "target": name,
                "sync": "top" if top_only else "full",
                # The guest's writes wait for the target's: so it converges by construction. A UEFI
                # writes its few variables byte by byte, with QEMU's main lock held.
                "copy-mode": "background" if disk.model == "pflash" else "write-blocking",
                # Never ends by itself while the guest runs; see ``give_up``.
                "on-source-error": "stop",
                "on-target-error": "stop",
            },
            disk,
        )

        def ready(known: Known) -> bool | None:
            job = known.job(name)
            return job.ready or job.ended or bool(job.error) or None

        waiting = asyncio.ensure_future(self._monitor.until(ready))
        try:
            while not waiting.done():
                # Only how far it has come must be asked for; that it is done comes by itself.
                await self.look()
                await asyncio.wait({waiting}, timeout=_SHOW_EVERY)
        finally:
            waiting.cancel()
        await waiting
        await self._check(disk)

    async def _open(self, node: dict[str, Any], disk: Block, export: Export) -> None:
        """Open the target's export, which a busy target's QEMU may be slow to greet."""
        for left in reversed(range(_GREETINGS)):
            try:
                async with _connected(export, disk) as connection:
                    with answered_within(connection, _GREETED_WITHIN):
                        await self._monitor.give(node["node-name"], connection.fileno())
                        await self._run("blockdev-add", node, disk)
            except FellSilentError:
                if not left:
                    raise
                await asyncio.sleep(_BREATH)
            else:
                return

    async def changed(self, disk: Block, mark: str) -> Changed | None:
        """What was written since a checkpoint; None where QEMU has no record of that."""
        return marks.changed(await self._inserted(disk), mark)

    async def kept(self) -> None:
        """The checkpoint is kept: the records that were begun with it bear its mark."""
        marked, self._marked = self._marked, {}
        await marks.keep_each(self._monitor, marked.values(), self._inserted, self._mark)

    async def _inserted(self, disk: Block) -> Mapping[str, Any]:
        """What the guest reads and writes: another node than at the start, if it was changed.

        A medium that was taken out and put in again has a name of QEMU's own.
        """
        blocks = await self._monitor.execute("query-block")
        inserted = frontends(blocks).get(device_id(disk), {}).get("inserted")
        if not inserted:
            raise HypervisorError("there is no medium in it", device=disk.label)
        return inserted

    @property
    def _mark(self) -> str:
        """What the record of what is written after this is called; empty: none is kept."""
        local = self.plane.local if self.plane else None
        return local.mark if local else ""

    def _since(self, disk: Block) -> str:
        """The mark of the checkpoint since which it is copied; empty: all of it is."""
        since = self.plane.local.since if self.plane and self.plane.local else None
        return since.mark if since and disk.id in since.images else ""

    async def look(self) -> None:
        """Ask how far the mirrors have come; raises HypervisorError where one has failed."""
        if not self._progress:
            return
        for job in await self._monitor.execute("query-block-jobs"):
            if job["device"] in self._progress:
                self._progress[job["device"]] = (job["offset"], job["len"])
        for disk in self._domain.block:
            if mirror_name(self._domain, disk) in self._progress:
                await self._check(disk)

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total, as last asked."""
        return self._progress.get(mirror_name(self._domain, disk), (0, 0))

    async def complete(self, disk: Block) -> None:
        """The guest has stopped: the target has all when this returns, and the source its own."""
        name = mirror_name(self._domain, disk)

        def settled(known: Known) -> bool | None:
            job = known.job(name)
            return job.ended or bool(job.error) or None

        await self._flushed()
        await self._check(disk)
        self._progress.pop(name, None)
        root = self._nodes.pop(name, "")
        if since := self._since(disk):
            marks.check_recorded(await self._inserted(disk), root, since, disk.label)
            await self._run("blockdev-backup", marks.copy(root, name, since), disk)
        else:
            await self._run("block-job-cancel", {"device": name, "force": False}, disk)
        await self._monitor.until(settled)
        if self._monitor.known.job(name).error:
            await self._check(disk)

    async def give_up(self, *, run_again: bool) -> None:
        """Cancel every mirror there is, also over links that have died.

        QEMU (seen in 7.2; the code is the same in 10.0) frees a mirror's bitmap when the job is
        cancelled by force or fails, without waiting for the guest's writes that it holds up: they
        then write into freed memory, and the guest is dead a moment later. ``stop`` waits for all
        of them, and no write begins that a cancelled job still takes part in.

        A copy of changes alone is a backup job, which must be gone before the guest goes on: as
        long as it is there, it fails writes of the guest's that it cannot copy for (``marks.py``).

        Args:
            run_again: Let the guest go on, unless it is a migration that holds it.
        """
        ours = {mirror_name(self._domain, disk) for disk in self._domain.block}
        # Not asked for one after the other: a mirror over a dead link holds up QEMU's main loop.
        jobs, *_ = await asyncio.gather(
            self._monitor.execute("query-block-jobs"), *map(self._cut, ours)
        )
        names = {job["device"] for job in jobs} & ours - self._given_up
        if not names:
            return
        self._given_up |= names
        backups = {job["device"] for job in jobs if job["type"] == "backup"} & names
        cont = [self._cont()] if run_again else []
        # Sent at once, and done in this order.
        at_once = [] if backups else cont
        await asyncio.gather(self._monitor.execute("stop"), *map(self._cancel, names), *at_once)
        if backups:
            await self._monitor.until(
                lambda known: all(known.job(name).gone for name in backups) or None
            )
            await asyncio.gather(*cont)

    async def cancel(self, disk: Block) -> None:
        """Nothing is left of the mirror when this returns, whatever it did; nor of its key.

        Also where its connection has died. The key goes with the last mirror that used it.
        """
        await self._end(disk)
        with contextlib.suppress(MonitorLostError):
            await keys.drop_key(self._monitor)

    async def _end(self, disk: Block) -> None:
        name = mirror_name(self._domain, disk)
        self._progress.pop(name, None)
        with contextlib.suppress(MonitorLostError):
            await self._cut(name)
            jobs, status = await asyncio.gather(
                self._monitor.execute("query-jobs"), self._monitor.execute("query-status")
            )
            if any(job["id"] == name for job in jobs):
                await self.give_up(run_again=status["running"])
                await self._monitor.until(lambda known: known.job(name).gone or None)
            self._monitor.known.jobs.pop(name, None)
            with contextlib.suppress(CommandError):
                await self._run("blockdev-del", {"node-name": name}, disk)

    async def _cut(self, name: str) -> None:
        """Out of band: over a link that has died, a mirror holds up QEMU's main loop."""
        instance = {"type": "block-node", "node-name": name}
        with contextlib.suppress(CommandError):  # there is no such connection (any more)
            await self._monitor.execute("yank", {"instances": [instance]}, urgent=True)

    async def _cancel(self, name: str) -> None:
        with contextlib.suppress(CommandError):  # it has ended meanwhile
            await self._monitor.execute("block-job-cancel", {"device": name, "force": True})

    async def _cont(self) -> None:
        with contextlib.suppress(CommandError):  # a migration has stopped it
            await self._monitor.execute("cont")

    async def _check(self, disk: Block) -> None:
        """Raise HypervisorError where the mirror has failed or ended."""
        name = mirror_name(self._domain, disk)
        job = self._monitor.known.job(name)
        if not (job.ended or job.error):
            return
        reason = job.error
        if not job.ended:
            jobs = await self._monitor.execute("query-block-jobs")
            if any(job["device"] == name and job["io-status"] == "nospace" for job in jobs):
                reason = "there is no space left on the target"
        raise HypervisorError(
            f"the mirror to the target ended: {reason or 'it was given up'}", device=disk.label
        )

    async def _run(self, command: str, arguments: dict[str, Any], disk: Block) -> Any:
        return await self._monitor.execute(command, arguments, device=disk.label)


def _connected(
    export: Export, disk: Block
) -> contextlib.AbstractAsyncContextManager[socket.socket]:
    """A connection to where a disk's writes are taken."""
    if export.socket:
        return connected_here(export.socket)
    return connected(export.host, export.port, device=disk.label)
