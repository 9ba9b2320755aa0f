"""Disks that are copied into a save, and out of one. No byte of them passes through here."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from entourage import durable
from entourage.domain import Block, Domain
from entourage.errors import DeviceError, HypervisorError, plain_words
from entourage.hosts import programs
from entourage.hosts.nbd import NbdServer
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, Export
from entourage.hypervisors.reach import check_local_disk
from entourage.hypervisors.saved.manifest import Copy, copy_path, measured
from entourage.hypervisors.seams import Changed, DiskCopy, Objection
from entourage.hypervisors.values import LocalData

_PROGRESS = re.compile(rb"\((\d+\.\d+)/100%\)")
_SAID = 4096  # bytes of what qemu-img prints that are looked at


class Belonged(NamedTuple):
    """Whose an image is.

    Attributes:
        mode: Its permissions.
        owner, group: By name; empty: not known.
    """

    mode: int = 0o600
    owner: str = ""
    group: str = ""


class CopiesIn:
    """Takes the writes of the source's mirrors, while a machine is being saved.

    Args:
        directory: What the save is called while it is being made.
        ledger: Takes processes and sockets before they are made.
    """

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self._directory = directory
        self._ledger = ledger
        self._local: LocalData | None = None
        self._servers: dict[str, tuple[Block, NbdServer]] = {}
        self._belonged: dict[str, Belonged] = {}
        self._formats: dict[str, str] = {}

    def made(self, disk: Block, image_format: str, belonged: Belonged) -> None:
        """An image was made for a disk, in this format.

        Args:
            disk: The disk.
            image_format: ``raw`` or ``qcow2``: of the image here.
            belonged: Whose the image is that is copied: who restores it is told.
        """
        self._formats[disk.label] = image_format
        self._belonged[disk.label] = belonged

    def stands(self, local: LocalData) -> None:
        """The directory stands: from here on disks can be taken."""
        self._local = local

    async def export(self, disk: Block) -> Export:
        """Take the writes of a disk, whose image was made in the directory."""
        if self._local is None:
            raise HypervisorError("nothing is being saved", device=disk.label)
        where = self._local.disk_socket(disk.id)
        server = NbdServer(self._ledger, where)
        self._servers[disk.label] = (disk, server)
        await server.serve(copy_path(self._directory, disk), self._format(disk), disk.id)
        return Export(host="", port=0, name=disk.id, socket=where)

    async def written(self) -> tuple[Copy, ...]:
        """Wait until all of it is on the disk; returns what is to be recorded of it.

        Raises:
            OSError, HypervisorError: The storage fails, or does not answer.
        """
        return tuple([await self._written(*each) for each in self._servers.values()])

    async def _written(self, disk: Block, server: NbdServer) -> Copy:
        await server.end()
        path = copy_path(self._directory, disk)
        synced = in_thread(durable.sync_file, path)
        file, _ = await asyncio.gather(measured(path), synced)
        await in_thread(durable.sync_directory, path.parent)
        to = self._belonged.get(disk.label, Belonged())
        return Copy(
            device=disk.label,
            format=self._format(disk),
            file=file,
            mode=to.mode,
            owner=to.owner,
            group=to.group,
        )

    def _format(self, disk: Block) -> str:
        return self._formats.get(disk.label, disk.format)

    async def close(self) -> None:
        """Nothing is taken any more."""
        for _, server in self._servers.values():
            await server.kill()
        self._servers.clear()


class CopiesOut:
    """Copies disks out of a save to the machine that is being restored. Nobody writes to them.

    Args:
        copies: What is in the save.

    Attributes:
        plane: How disks travel; None until the machine is armed.
    """

    ways = frozenset({DiskCopy.MIRROR})

    def __init__(self, copies: Sequence[Copy] = ()) -> None:
        self.plane: DataPlane | None = None
        self._formats = {copy.device: copy.format for copy in copies}
        self._progress: dict[str, tuple[int, int]] = {}

    def format_of(self, disk: Block) -> str:
        """The format of its copy."""
        return self._formats.get(disk.label, disk.format)

    async def changed(self, disk: Block, mark: str) -> Changed | None:  # noqa: ARG002 - see seams
        """Nobody asks."""
        return None

    @property
    def begun(self) -> bool:
        """Whether any is on its way."""
        return bool(self._progress)

    async def kept(self) -> None:
        """It is no checkpoint."""

    def objections(self, disk: Block) -> Sequence[Objection]:  # noqa: ARG002 - see seams
        """None: it is an image of the save's."""
        return ()

    async def mirror(self, disk: Block, export: Export, *, top_only: bool) -> None:  # noqa: ARG002 - a copy has no chain
        """Copy the disk to the export; nothing changes it meanwhile."""
        local = self.plane.local if self.plane else None
        if local is None:
            raise HypervisorError("a save is restored by a process of the host that it is on")
        check_local_disk(local, export.socket, disk.id)
        target = {
            "driver": "nbd",
            "export": export.name,
            "server.type": "unix",
            "server.path": export.socket,
        }
        await self._copied(disk, target)

    async def _copied(self, disk: Block, target: Mapping[str, str]) -> None:
        where = ",".join(f"{key}={text.replace(',', ',,')}" for key, text in target.items())
        size = (await in_thread(os.stat, disk.path)).st_size
        self._progress[disk.id] = (0, size)
        read_as = self.format_of(disk)
        command = ("qemu-img", "convert", "-p", "-n", "-f", read_as, "--target-image-opts")
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                disk.path,
                where,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise DeviceError(
                f"qemu-img cannot be run: {plain_words(error)}",
                device=disk.label,
                remedy="install qemu-utils",
            ) from error
        try:
            said = await self._watched(disk, size, process)
        finally:
            await programs.kill(process)
        if process.returncode:
            raise DeviceError(f"it cannot be copied out of the save: {said}", device=disk.label)
        self._progress[disk.id] = (size, size)

    async def _watched(self, disk: Block, size: int, process: asyncio.subprocess.Process) -> str:
        """Show how far it is, until it ends; what it said on stderr."""
        out, err = process.stdout, process.stderr
        assert out is not None and err is not None  # noqa: S101, PT018 - both are pipes
        told = asyncio.create_task(err.read())
        try:
            while said := await out.read(_SAID):
                if found := _PROGRESS.findall(said):
                    self._progress[disk.id] = (int(size * float(found[-1]) / 100), size)
            text = (await told).decode(errors="replace")
        finally:
            told.cancel()
        await process.wait()
        return " ".join(text.split())

    def progress(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total."""
        return self._progress.get(disk.id, (0, 0))

    async def complete(self, disk: Block) -> None:
        """All of it is there."""

    async def cancel(self, disk: Block) -> None:
        """Nothing runs: it ended with ``mirror``."""


def in_the_save(domain: Domain, directory: Path, copies: tuple[Copy, ...]) -> Domain:
    """The domain with the disks that were copied at their places in the save."""
    labels = {copy.device for copy in copies}
    copied = [disk for disk in domain.block if disk.label in labels]
    return domain.with_paths({disk.id: str(copy_path(directory, disk)) for disk in copied})
