"""What a guest has written since a checkpoint, copied into another save by QEMU's own jobs.

libvirt has no word for it: its checkpoints are of qcow2 images alone, and are written into these.
So QEMU is told past libvirt, which takes no notice of nodes and jobs that are not its own.

Beside a guest that runs, such a job fails the guest's writes where the save's storage fails
(``marks.py``). So it is begun once the guest stands still, and whoever lets the guest go on ends it
first: ``end`` here, and the deadman, which finds them by the same names.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from entourage.domain import Block
from entourage.errors import HypervisorError
from entourage.hypervisors import marks
from entourage.hypervisors.frontends import frontends
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask
from entourage.hypervisors.libvirt.constants import CHANGES
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.job import Job
from entourage.hypervisors.libvirt.machine import let_run
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.seams import Changed
from entourage.hypervisors.understood import understood

_SOON = 0.001  # seconds between two looks at whether a copy has ended: the guest stands still
_ENDS_WITHIN = 0.1  # seconds for a copy that is given up; then its connection is cut off
_GIVES_UP_AFTER = 60.0  # seconds


class Changes:
    """QEMU's records of one domain's disks, and the copies of what they show.

    Args:
        handle: The domain, as libvirtd has it.
        job: What is heard of it.
    """

    def __init__(self, handle: Handle, job: Job) -> None:
        self._handle = handle
        self._job = job
        self._marked: dict[str, tuple[Block, str]] = {}
        self._aliases: dict[str, str] = {}
        self._opened: dict[str, str] = {}
        self._one_at_a_time = asyncio.Lock()

    async def written(self, disk: Block, mark: str) -> Changed | None:
        """What was written since a checkpoint; None where QEMU has no record of that."""
        return marks.changed(await self._inserted(disk), mark)

    async def begin(self, disk: Block) -> None:
        """Begin the record of what is written after this checkpoint, if QEMU can keep one.

        Where it cannot, the checkpoint is one of all that nothing can be since.
        """
        try:
            inserted = await self._inserted(disk)
            await marks.begin(self._handle, inserted, disk.label)
        except LostError:
            raise
        except HypervisorError:
            self._marked.pop(disk.label, None)
        else:
            self._marked[disk.label] = disk, str(inserted["node-name"])

    async def kept(self, mark: str) -> None:
        """The checkpoint is kept: the records that were begun with it bear its mark.

        Raises:
            HypervisorError: That of one disk could not be kept; those of others were.
        """
        marked, self._marked = self._marked, {}
        await marks.keep_each(self._handle, marked.values(), self._inserted, mark)

    async def open(self, disk: Block, socket: str, export: str) -> None:
        """Have QEMU open where the changes go to; the guest runs.

        Args:
            disk: The disk.
            socket: The unix socket of an NBD server, which QEMU may connect to.
            export: The export's name.
        """
        name = copy_name(disk)
        await self._end([name])  # of a process that was killed, and not recovered
        self._opened[name] = str((await self._inserted(disk))["node-name"])
        node = {
            "driver": "nbd",
            "node-name": name,
            "server": {"type": "unix", "path": socket},
            "export": export,
            "discard": "unmap",
        }
        await self._handle.execute("blockdev-add", node, device=disk.label)

    async def copy(self, disk: Block, mark: str) -> None:
        """The guest stands still: copy what it has written; all of it is there on return.

        Raises:
            HypervisorError: It cannot be; or somebody has let the guest run.
        """
        async with self._one_at_a_time:
            await self._copy(disk, mark)

    async def _copy(self, disk: Block, mark: str) -> None:
        """Copy one disk's, while nothing else goes to the save.

        Before it begins such a job, QEMU (seen in 7.2) waits until none of its disks has anything
        under way. Beside another one, whose storage hangs, it would wait for ever, and answer
        nobody who could cut that off: libvirt speaks to its main loop alone.
        """
        name, feed = copy_name(disk), self._job.heard()
        feed.known.copies.pop(name, None)
        _check_still(feed.known)
        root = self._opened.get(name)
        if root is None:
            raise HypervisorError("its copy was given up", device=disk.label)
        marks.check_recorded(await self._inserted(disk), root, mark, disk.label)
        arguments = marks.copy(root, name, mark)
        await self._handle.execute("blockdev-backup", arguments, device=disk.label)

        def ended(known: Known) -> str | None:
            _check_still(known)
            return known.copies.get(name)

        if why := await feed.until(ended):
            raise HypervisorError(
                f"what was written to it cannot be copied into the save: {why}",
                device=disk.label,
                remedy="see whether there is room for it, and the log of its QEMU",
            )
        await self._drop(name)

    async def end(self, disks: Iterable[Block], *, whoever: bool) -> None:
        """No copy of changes is left when this returns, nor can one begin: the guest may go on.

        Their nodes are cut off. While a copy of a whole disk is there, they stay: call it again.

        Args:
            disks: Those whose copies are ended.
            whoever: Also copies that an earlier process has begun.

        Raises:
            HypervisorError: libvirt does not pass it on, or one does not end, as where a disk of
                the guest's own does not answer: the guest must not go on yet.
        """
        names = [name for name in map(copy_name, disks) if whoever or name in self._opened]
        try:
            await self._end(names)
        except LostError:
            await self._handle.find_again()
            await self._end(names)

    async def _end(self, names: Sequence[str]) -> None:
        left, began = list(names), time.monotonic()
        while left and self._handle.raw is not None:
            try:
                jobs = await self._handle.execute("query-block-jobs")
                with understood("QEMU's answer to query-block-jobs"):
                    busy = {str(job["device"]) for job in jobs}
                for name in busy.intersection(left):
                    # Not cut off at once: if somebody has let the guest run, its writes would fail.
                    await self._cancel(name, cut=time.monotonic() - began > _ENDS_WITHIN)
                if not busy.intersection(left):
                    for name in left:
                        await self._cut(name)
                    if busy:  # to drop a node, QEMU 10.0 waits until nothing is under way to any
                        return
                    left = [name for name in left if not await self._drop(name)]
            except RefusedError:
                if await self._handle.is_there():
                    raise
                return  # its QEMU has ended
            if left and time.monotonic() - began > _GIVES_UP_AFTER:
                raise HypervisorError(
                    f"QEMU does not end its copy into the save ({left[0]})",
                    remedy="see whether the storage of the guest's disks answers",
                )
            if left:
                await asyncio.sleep(_SOON)

    async def _drop(self, name: str) -> bool:
        """Take a node away that no job has any more; whether it is gone, or never was.

        It is cut off first: all that was copied has been taken, and QEMU would wait for the save's
        storage to have it on the disk, with the guest, which is the save's own to do.
        """
        await self._cut(name)
        try:
            await self._handle.execute("blockdev-del", {"node-name": name})
        except CommandError as error:
            if "in use" in error.reason:
                return False
        self._opened.pop(name, None)
        return True

    async def _cancel(self, name: str, *, cut: bool) -> None:
        """Give a copy up; ``cut``, it waits for storage that hangs."""
        with contextlib.suppress(CommandError):  # it has ended meanwhile
            await self._handle.execute("block-job-cancel", {"device": name, "force": True})
        if cut:
            await self._cut(name)

    async def _cut(self, name: str) -> None:
        instance = {"type": "block-node", "node-name": name}
        with contextlib.suppress(CommandError):  # there is no such connection (any more)
            await self._handle.execute("yank", {"instances": [instance]})

    async def _inserted(self, disk: Block) -> Mapping[str, Any]:
        """What the guest reads and writes."""
        if disk.id not in self._aliases:
            live = parse(await ask(self._handle.raw.XMLDesc, 0))
            for each in live.iterfind("devices/disk"):
                target, alias = each.find("target"), each.find("alias")
                if target is not None and alias is not None:
                    self._aliases[target.get("dev", "")] = alias.get("name", "")
        blocks = await self._handle.execute("query-block")
        with understood("QEMU's answer to query-block"):
            found = frontends(blocks).get(self._aliases.get(disk.id, ""), {}).get("inserted")
            if found and found["node-name"]:
                return found
        raise HypervisorError("QEMU has no such disk, or no medium in it", device=disk.label)


def _check_still(known: Known) -> None:
    """Raise HypervisorError where the guest was let run since it was stopped."""
    if known.first_resumed_at:
        raise let_run()


def copy_name(disk: Block) -> str:
    """What QEMU calls the copy of a disk's changes: the job and its target."""
    return f"{CHANGES}{disk.id}"
