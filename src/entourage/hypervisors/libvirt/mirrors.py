"""Disks of a running libvirt domain that are copied into a save, by libvirt's own block copy.

The copy follows the guest's writes until it is given up with the guest suspended, and is what the
disk was then: libvirt promises that of one that is given up once it mirrors. The domain's own
images, and what they are built on, stay as they are from beginning to end.

QEMU writes to the save's ``qemu-nbd``, never to its storage: where that hangs or fails, the copy
does, and the guest goes on.

Of a disk of which only the changes since a checkpoint are wanted, libvirt copies nothing: see
``changes.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from entourage.domain import Block
from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.changes import Changes
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask
from entourage.hypervisors.libvirt.constants import (
    BLOCK_JOB_ABORT_ASYNC,
    BlockCopy,
    BlockJob,
)
from entourage.hypervisors.libvirt.copying import Traits
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.errors import plain
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.job import Job
from entourage.hypervisors.libvirt.process import pid_of
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.reach import check_local_disk
from entourage.hypervisors.seams import Changed, DiskCopy, Objection
from entourage.hypervisors.values import DataPlane, Export, LocalData

SOCKETS = Path("/run/entourage-copies")
"""Where QEMU finds the sockets: its user may pass through, and AppArmor can be told of it."""
_SHOW_EVERY = 0.25
_SOON = 0.05  # seconds between two looks at whether a copy has ended
_ENDS_WITHIN = 2.0  # seconds for a copy that is given up; then its connection is cut off
_CUT_WITHIN = 10.0  # seconds after that
_APPARMOR = "where it is AppArmor that denies the socket, docs/saving.md has the rule"


class Mirrors:
    """The copies of one domain's disks.

    Args:
        handle: The domain, as libvirtd has it.
        job: What is heard of it.

    Attributes:
        plane: How disks travel; None until the machine is armed.
    """

    ways = frozenset({DiskCopy.MIRROR})

    def __init__(self, handle: Handle, job: Job) -> None:
        self.plane: DataPlane | None = None
        self._handle = handle
        self._job = job
        self._progress: dict[str, tuple[int, int]] = {}
        self._traits: Mapping[str, Traits] = {}
        self._changes = Changes(handle, job)
        self._whole: set[str] = set()
        self._wholes_ended = asyncio.Event()

    def know(self, traits: Mapping[str, Traits]) -> None:
        """What ``objections`` goes by."""
        self._traits = traits

    def objections(self, disk: Block) -> Sequence[Objection]:
        """One that QEMU decrypts: asked at TEST."""
        if self._traits.get(disk.id, Traits()).encrypted:
            remedy = "--disks=reference, and a copy of the image as it is"
            return [("it is encrypted (LUKS), and its copy would not be", remedy)]
        return ()

    async def changed(self, disk: Block, mark: str) -> Changed | None:
        """What was written since a checkpoint; None where QEMU has no record of that."""
        return await self._changes.written(disk, mark)

    async def kept(self) -> None:
        """The checkpoint is kept: the records that were begun with it bear its mark."""
        if self._local.mark:
            await self._changes.kept(self._local.mark)

    async def end_changes(self) -> None:
        """Before the guest goes on: no copy of changes is left, whoever has begun it."""
        await self._changes.end(self._handle.domain.block, whoever=self.plane is None)

    @property
    def _local(self) -> LocalData:
        if self.plane is None or self.plane.local is None:
            raise HypervisorError("a machine is saved by a process of the host that it runs on")
        return self.plane.local

    def _since(self, disk: Block) -> str:
        """The mark of the checkpoint since which it is copied; empty: all of it is."""
        since = self._local.since
        return since.mark if since and disk.id in since.images else ""

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:
        """Copy the disk to the export and keep it so; returns when both are the same."""
        check_local_disk(self._local, export.socket, disk.id)
        if self._local.mark:  # from now on: nothing of it is left to be done in the blackout
            await self._changes.begin(disk)
        try:
            path = str(await in_thread(self._let_in, disk, export.socket))
        except OSError as error:
            reason = f"QEMU cannot be let in to where it is copied: {plain_words(error)}"
            raise HypervisorError(reason, device=disk.label, remedy=what_to_do(error)) from error
        if since := self._since(disk):
            changed = await self._changes.written(disk, since)
            self._progress[disk.id] = (0, changed.written if changed else 0)
            try:
                await self._changes.open(disk, path, export.name)
            except CommandError as error:
                error.remedy = _APPARMOR
                raise
            return
        flags = BlockCopy.REUSE_EXT | BlockCopy.TRANSIENT_JOB
        flags |= BlockCopy.SHALLOW if top_only else BlockCopy(0)
        feed = self._job.heard()
        await feed.hear_of_block_jobs()
        feed.known.block_jobs.pop(disk.id, None)
        self._progress[disk.id] = (0, 0)
        self._whole.add(disk.id)
        try:
            text = destination(path, export.name)
            await ask(self._handle.raw.blockCopy, disk.id, text, {}, flags)
        except RefusedError as error:
            raise HypervisorError(
                f"libvirt cannot copy it: {plain(error.message)}",
                device=disk.label,
                remedy=_APPARMOR,
            ) from error
        waiting = asyncio.ensure_future(feed.until(lambda known: known.block_jobs.get(disk.id)))
        try:
            while not waiting.done():
                await self._look(disk)
                await asyncio.wait({waiting}, timeout=_SHOW_EVERY)
        finally:
            waiting.cancel()
        await self._check(disk, waiting.result())

    async def _look(self, disk: Block) -> None:
        with contextlib.suppress(RefusedError):
            if info := await ask(self._handle.raw.blockJobInfo, disk.id, 0):
                self._progress[disk.id] = (info["cur"], info["end"])

    async def _check(self, disk: Block, said: BlockJob) -> None:
        if said != BlockJob.READY:
            why = "it failed" if said == BlockJob.FAILED else "somebody has ended it"
            raise HypervisorError(
                f"libvirt's copy of it into the save has ended: {why}",
                device=disk.label,
                remedy="see whether there is room for it, and the log of its QEMU",
            )

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total, as last asked."""
        return self._progress.get(disk.id, (0, 0))

    async def complete(self, disk: Block) -> None:
        """The guest is suspended: end the copy once all of it is there."""
        if since := self._since(disk):
            if self._whole:  # beside these, QEMU may wait for storage that hangs
                await self._wholes_ended.wait()
            await self._changes.copy(disk, since)
            self._progress.pop(disk.id, None)
            await in_thread(self._shut_out, disk)
            return
        known = self._job.heard().known
        await self._check(disk, known.block_jobs.get(disk.id, BlockJob.FAILED))

        def ended(known: Known) -> BlockJob | None:
            said = known.block_jobs.get(disk.id)
            return None if said == BlockJob.READY else said

        # libvirt is not to wait: whoever gives this up could not let the guest run meanwhile.
        await ask(self._handle.raw.blockJobAbort, disk.id, BLOCK_JOB_ABORT_ASYNC)
        if await self._job.heard().until(ended) == BlockJob.FAILED:
            await self._check(disk, BlockJob.FAILED)
        self._whole.discard(disk.id)
        if not self._whole:
            self._wholes_ended.set()
        self._progress.pop(disk.id, None)
        await in_thread(self._shut_out, disk)

    async def cancel(self, disk: Block) -> None:
        """Nothing is left of the copy when this returns, whatever it did.

        Raises:
            HypervisorError: libvirt does not end it.
        """
        self._progress.pop(disk.id, None)
        try:
            await self._end(disk)
        except LostError:
            await self._handle.find_again()
            await self._end(disk)
        await self._changes.end([disk], whoever=self.plane is None)
        await in_thread(self._shut_out, disk)

    async def _end(self, disk: Block) -> None:
        began, cut = time.monotonic(), False
        while await self._runs(disk):
            with contextlib.suppress(RefusedError):  # it has ended meanwhile
                await ask(self._handle.raw.blockJobAbort, disk.id, BLOCK_JOB_ABORT_ASYNC)
            late = time.monotonic() - began
            if late > _CUT_WITHIN:
                raise HypervisorError(
                    "libvirt does not end its copy into the save",
                    device=disk.label,
                    remedy=f"virsh blockjob {self._handle.domain.name} {disk.id} --abort",
                )
            if late > _ENDS_WITHIN and not cut:
                cut = True
                await self._cut()
            await asyncio.sleep(_SOON)  # where libvirtd was restarted, nobody tells of it

    async def _runs(self, disk: Block) -> bool:
        """Whether a copy of this disk into a save is under way; a copy of its user's is none."""
        if self._handle.raw is None:
            return False
        try:
            text = await ask(self._handle.raw.XMLDesc, 0)
            under_way = await ask(self._handle.raw.blockJobInfo, disk.id, 0)
        except RefusedError:  # it is off
            return False
        return bool(under_way) and is_ours(parse(text), disk.id)

    async def _cut(self) -> None:
        """Have QEMU close its connections: storage that hangs holds the end of a copy up.

        It has none of its own: a domain with a disk on the network is not saved.
        """
        with contextlib.suppress(RefusedError):
            ends: list[dict[str, str]] = await self._handle.tell_qemu("query-yank") or []
            nodes = [end for end in ends if end.get("type") == "block-node"]
            if nodes:
                await self._handle.tell_qemu("yank", instances=nodes)

    def _let_in(self, disk: Block, socket: str) -> Path:
        """Give the socket a name that QEMU's user gets to, and that user the right to connect."""
        if not SOCKETS.is_dir():
            SOCKETS.mkdir(mode=0o711, exist_ok=True)
            SOCKETS.chmod(0o711)  # whatever the umask
        self._shut_out(disk)
        # Not to be guessed: other domains' QEMUs are of the same user, and see no names here.
        path = SOCKETS / f"{self._name(disk)}{secrets.token_hex(8)}"
        os.link(socket, path)
        if user := user_of(pid_of(self._handle.domain.name)):
            os.chown(path, user, -1)
        return path

    def _shut_out(self, disk: Block) -> None:
        for path in SOCKETS.glob(f"{glob.escape(self._name(disk))}*"):
            path.unlink(missing_ok=True)

    def _name(self, disk: Block) -> str:
        return f"{self._handle.domain.uuid}.{disk.id}."


def destination(socket: str, name: str) -> str:
    """The XML of a disk that is an NBD export at a unix socket.

    Args:
        socket: Its path.
        name: The export's.
    """
    root = ET.Element("disk", type="network", device="disk")
    ET.SubElement(root, "driver", name="qemu", type="raw")
    source = ET.SubElement(root, "source", protocol="nbd", name=name)
    ET.SubElement(source, "host", transport="unix", socket=socket)
    return ET.tostring(root, encoding="unicode")


def is_ours(live: ET.Element, disk: str) -> bool:
    """Whether a disk is being copied to a socket of ours.

    Args:
        live: The running domain's XML.
        disk: What the guest sees the disk as.
    """
    for each in live.iterfind("devices/disk"):
        target, host = each.find("target"), each.find("mirror/source/host")
        if target is not None and target.get("dev") == disk and host is not None:
            return Path(host.get("socket", "/")).parent == SOCKETS
    return False


def user_of(pid: int) -> int:
    """The number of the user that a process acts as; 0 where that cannot be seen. Blocks."""
    found: Any = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("Uid:"):
                found = line.split()[2]
    return int(found)
