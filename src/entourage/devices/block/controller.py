"""Disks: the class ``block``. Shared storage stays where it is, local storage is mirrored.

What becomes of a disk is decided at TEST, by looking from both hosts:

    both hosts see the same file or device          nothing to copy (never believed: see storage.py)
    a read-only medium with the same content there  nothing to copy
    a file here, and nothing at that path there     made there, mirrored while the guest runs
    a file or device here, a named device there     mirrored onto it (``--disk disk0=/dev/sdb``)
    anything else                                   refused, with what would mend it

Nothing of the user's is overwritten on the target: a disk is made under a name that can only be
ours, and takes its own only while that is free.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import msgspec

from entourage.devices.base import Controller, Here, There
from entourage.devices.block import images, making, proof, sameness, space
from entourage.devices.block.deletion import Copied, as_it_is, delete
from entourage.devices.block.images import Image, NewImage
from entourage.devices.block.requests import Digest, Fill, Look, Make, Open
from entourage.devices.block.sameness import Match
from entourage.devices.block.space import Fit, Fitting
from entourage.devices.block.storage import Seen, Spot
from entourage.devices.refusals import marked, no_way, refuse, warn
from entourage.domain import Block
from entourage.errors import DeviceError, plain_words, what_to_do
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DiskCopy, Export
from entourage.steps import Planned, Refusal, Step

_CARRIED = frozenset({DiskCopy.CARRY, DiskCopy.CARRY_RAW})


class Placement(enum.Enum):
    """What becomes of a disk."""

    STAY = "both hosts see it, or have the same"
    MAKE = "it is copied into a file made for it"
    ONTO = "it is copied onto a device that the user named"


class BlockController(Controller[Block]):
    """A disk's way: shared, mirrored, or refused."""

    device_class = "block"
    settles = True

    def __init__(self, device: Block) -> None:
        super().__init__(device)
        self.placement = Placement.STAY
        self._copied: Copied | None = None
        self._new: NewImage | None = None
        self._made: NewImage | None = None
        self._mirroring = False

    def memo(self) -> dict[str, Any]:
        """Which file is to be deleted."""
        return msgspec.to_builtins(self._copied) if self._copied else {}

    def recall(self, memo: dict[str, Any]) -> None:
        """Know which file is to be deleted; and that a mirror of it may still run."""
        self._copied = msgspec.convert(memo, Copied) if memo else None
        self._mirroring = True

    # TEST on the source: what becomes of it?

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Find out what becomes of the disk, and every reason why nothing can."""
        disk = self.device
        path = here.options.disks.get(disk.id, disk.path)
        self.target_device = msgspec.structs.replace(disk, path=path)
        self.placement, self._copied, self._new = Placement.STAY, None, None
        self.left_out = False
        found = marked(here, disk)
        try:
            if clash := self._clash(here, path):
                return [*found, clash]
            chain = await images.inspect(disk.path, self._read_as(here))
            return [*found, *await self._decide(here, chain, path)]
        except DeviceError as error:
            host = error.host or here.source
            return [*found, refuse(disk, host, error.message, error.remedy)]

    async def test_provided(self, here: Here) -> Sequence[Refusal]:
        """Whether the target would open a disk there that it has not made itself."""
        disk, path = self.device, self.target_device.path
        try:
            [there] = await self._ask(here)([Spot(path=path)])
        except DeviceError as error:
            return [refuse(disk, error.host or here.target, error.message, error.remedy)]
        if there.opens:
            return []
        reason = f"{path}, which an external tool provides there, is not allowed to be opened there"
        remedy = (
            "a device: add it to agent.devices in the settings there; a file: agent.believe-shared"
        )
        return [refuse(disk, here.target, reason, remedy)]

    def _clash(self, here: Here, path: str) -> Refusal | None:
        """Two disks of one domain cannot become one on the target."""
        if not path.startswith("/"):
            return refuse(self.device, here.target, f"{path!r} is no absolute path", "begin with /")
        only_read = self.device.is_only_read
        for other in here.machine.domain.block:
            same = here.options.disks.get(other.id, other.path) == path
            if same and other.id != self.device.id and not (other.is_only_read and only_read):
                reason = f"{path} would be the place of {other.label} too"
                return refuse(self.device, here.target, reason, self._elsewhere())
        return None

    def _read_as(self, here: Here) -> str:  # noqa: ARG002 - a save's may be another
        """The format of the image that is copied."""
        return self.device.format

    def _elsewhere(self) -> str:
        return f"--disk {self.device.id}=/another/path"

    async def _decide(self, here: Here, chain: list[Image], path: str) -> list[Refusal]:
        """Leave it where it is, or copy it, or say what speaks against both."""
        disk = self.device
        written = [image.data_file for image in chain if image.data_file]
        below = [*(image.path for image in chain[1:]), *written]
        pairs = [(disk.path, path), *((lower, lower) for lower in below)]
        top, *lower = await sameness.compare(pairs, here.migration, self._ask(here))
        if disk.shared == "no" and top.same:
            reason = f"{path} is the same on both hosts: a copy would overwrite it"
            remedy = f'shared = "auto", or {self._elsewhere()}'
            return [refuse(disk, here.target, reason, remedy)]
        if disk.shared == "yes" and not (top.same or top.likely):
            remedy = 'mount the storage there at the same path, or shared = "auto"'
            return [refuse(disk, here.target, f"it is not shared: {top.reason}", remedy)]
        believed = disk.shared == "yes" and not top.same
        stays = top.same or believed or (disk.is_only_read and await self._same(here, top, path))
        if stays and not (top.there.opens or disk.is_only_read):
            reason = (
                f"{path} there is not proven to be this disk: {top.reason or 'nothing says so'}"
            )
            remedy = "agent.believe-shared in the settings there lets it be opened all the same"
            return [refuse(disk, here.target, reason, remedy)]
        if stays and believed:
            warn(here, disk, here.target, f'shared = "yes" is believed: {top.reason}')
        flat = not stays and (len(chain) == 1 or disk.copy == "flat")
        if not flat:
            remedy = "put it there" if stays else 'copy = "flat" copies all into one image'
            lacking = [
                one
                for one in lower
                # What the guest writes to is not the same for being equal at the moment.
                if not one.same
                and (one.path in written or not await self._same(here, one, one.path))
            ]
            if stays or lacking:
                return [self._lacks(here, match, remedy) for match in lacking]
        if disk.is_only_read and (carrying := here.machine.carrying):
            if top.there.kind == "none" and carrying.may_leave_out(disk):
                self.left_out = True
                warn(here, disk, here.target, f"there is no {path} there: the drive is empty there")
                return []
            if problems := carrying.objections(disk):
                return [refuse(disk, here.target, *problem) for problem in problems]
        if refusal := self._in_the_way(here, top, path):
            return [refusal]
        onto = top.there.kind == "device"
        return await self._copy(here, chain[0], path, None if flat else chain[1], onto=onto)

    def _ask(self, here: Here) -> sameness.Ask:
        async def ask(spots: Sequence[Spot]) -> list[Seen]:
            return await here.peer(Look(spots=tuple(spots)), list[Seen])

        return ask

    async def _same(self, here: Here, match: Match, path: str) -> bool:
        """Whether what is only read is the same there, if only by its content."""
        return await sameness.same_content(
            match, lambda known: here.peer(Digest(path=path, known=known), str)
        )

    def _lacks(self, here: Here, match: Match, remedy: str) -> Refusal:
        reason = f"{match.path}, which it is built on, is not the same there: {match.reason}"
        return refuse(self.device, here.target, reason, remedy)

    async def _copy(
        self, here: Here, image: Image, path: str, backing: Image | None, *, onto: bool
    ) -> list[Refusal]:
        """Go the way of a copy, or say why there is none."""
        disk, machine, need = self.device, here.machine, DiskCopy.MIRROR
        carrying = machine.carrying
        copies = carrying or machine.mirroring
        if copies and (problems := copies.objections(disk)):
            return [refuse(disk, here.source, *problem) for problem in problems]
        found = [refuse(disk, here.source, *problem) for problem in image.problems]
        knows: frozenset[DiskCopy] = frozenset()
        if carrying is not None:
            need = carrying.way
            knows = frozenset({need})
        elif machine.mirroring is not None:
            knows = machine.mirroring.ways
        if need is DiskCopy.CARRY_RAW and image.format != "raw":
            reason = f"a {image.format} image cannot be copied under a guest of this hypervisor"
            mend = "put it on shared storage, or qemu-img convert it to raw"
            found.append(no_way(disk, here.source, reason, mend))
        if disk.is_only_read and need is not DiskCopy.CARRY_RAW:
            need = DiskCopy.MIRROR_READONLY
        if need not in knows:
            found.append(space.cannot_copy(disk, here.source, need))
        if need is DiskCopy.MIRROR_READONLY and found:
            return found
        new = await self._new_image(here, image, path, backing)
        if disk.size is not None:
            new = msgspec.structs.replace(new, size=disk.size)
        fitting = await here.peer(Fit(new=new, onto_device=onto, need=need), Fitting)
        found += fitting.refusals
        if not found:
            self.placement, self._new = Placement.ONTO if onto else Placement.MAKE, new
            if onto:  # QEMU mirrors onto what is as large, and the guest goes on seeing that
                self.target_device = msgspec.structs.replace(disk, path=path, size=new.size)
            if image.kind == "file" and not disk.is_only_read:
                self._copied = await in_thread(as_it_is, image.path)
            if image.bitmaps and carrying is None:  # libvirt has them travel with the data
                warn(here, disk, here.source, f"bitmaps stay behind: {', '.join(image.bitmaps)}")
            for warning in fitting.warnings:
                warn(here, disk, here.target, warning)
        return found

    async def _new_image(
        self,
        here: Here,  # noqa: ARG002 - a save's may be another
        image: Image,
        path: str,
        backing: Image | None,
    ) -> NewImage:
        """What is to be made."""
        room = await images.room(image, flat=backing is None)
        return await in_thread(images.like, image, path, room=room, below=backing)

    def _in_the_way(self, here: Here, top: Match, path: str) -> Refusal | None:
        """Why nothing may be written to that place on the target."""
        disk, named = self.device, self.device.id in here.options.disks
        if top.here.kind == "device" and not named:
            reason = f"{path} is a device of this host, and not there: {top.reason}"
            remedy = f"name a device there that it is copied onto: --disk {disk.id}=/dev/…"
            return no_way(disk, here.target, reason, remedy)
        if top.there.kind == "none" or (top.there.kind == "device" and named):
            return None
        reason = f"{path} is there already, and is not this disk: {top.reason}"
        return refuse(disk, here.target, reason, f"remove it there, or {self._elsewhere()}")

    def planned(self, here: Here) -> Planned:
        """Whether it is copied; where to, how much, and what is deleted then."""
        there = self.target_device.path
        if self.placement is Placement.STAY or self._new is None:
            return Planned(action="in-place", here=self.device.path, there=there)
        erased = self._copied.path if self._copied and not here.options.keep_source_disks else ""
        return Planned(
            action="copied", here=self.device.path, there=there, size=self._new.room, erased=erased
        )

    # TEST on the target

    async def test_there(self, there: There, request: Any) -> Any:
        """Look, digest, or see whether the disk fits."""
        asked: Look | Digest | Fit = msgspec.convert(request, Look | Digest | Fit)
        match asked:
            case Look(spots=spots):
                return await asyncio.gather(*(proof.look(spot, there.allowed) for spot in spots))
            case Digest(path=path, known=known):
                try:
                    async with asyncio.timeout(there.settings.migration.test_timeout):
                        return await proof.digest(path, known, there.allowed)
                except OSError as error:
                    reason = f"{path} cannot be read: {plain_words(error)}"
                    raise DeviceError(
                        reason,
                        device=self.device.label,
                        host=there.host,
                        remedy=what_to_do(error),
                    ) from error
            case Fit():
                return await in_thread(space.fit, self.device, there, asked)

    # PREPARE

    async def prepare(self, here: Here) -> None:
        """Have the target make the file that it will be copied into; see who copies it."""
        carrying, new = here.machine.carrying, self._new
        if self.placement is not Placement.STAY and new is not None and carrying is not None:
            carrying.carry(self.device, top_only=new.backing is not None)
        if self.placement is Placement.MAKE and new is not None:
            done = await here.peer(Make(new=new), bool)
            if not done:
                message = "its filesystem cannot preallocate; the copy is sparse"
                warn(here, self.device, here.target, message)

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Make an empty image that is like the source's."""
        new, disk = msgspec.convert(request, Make).new, self.device_there(there)
        if self._made is not None or (new.path, new.format) != (disk.path, disk.format):
            reason = f"{new.path} is not the disk that the domain has there, or was made already"
            raise DeviceError(reason, device=disk.label, host=there.host)
        self._made = new
        return await making.create(new, there.migration, there.ledger, there.allowed)

    async def connect(self, here: Here) -> None:
        """Mirror the disk; from here on, every write of the guest goes to both."""
        machine = here.machine
        if self.placement is Placement.STAY or self._new is None or machine.carrying is not None:
            return
        if machine.mirroring is None:  # TEST has refused that
            raise DeviceError("the hypervisor cannot copy a disk", device=self.device.label)
        export = await here.peer(Open(), Export)
        self._mirroring = True
        await machine.mirroring.mirror(self.device, export, top_only=self._new.backing is not None)
        if self.placement is Placement.MAKE and self._new.preallocated:
            await here.peer(Fill(path=self._new.path), NoneType)

    async def connect_there(self, there: There, request: Any) -> Any:
        """Open the disk for the mirror; or fill the holes that it has punched."""
        asked: Open | Fill = msgspec.convert(request, Open | Fill)
        match asked:
            case Open():
                exports = there.incoming.exports
                if exports is None:
                    reason = "the hypervisor exports no disk"
                    raise DeviceError(reason, device=self.device.label, host=there.host)
                disk = self.device_there(there)
                if not there.allowed.may_overwrite(disk.path):
                    reason = f"{disk.path} was not made by this migration, and is not copied onto"
                    raise DeviceError(reason, device=disk.label, host=there.host)
                return await exports.export(disk)
            case Fill():
                await self._fill(there)
                return None

    async def arrived(self, there: There) -> None:
        """Set aside again what a carrier has freed of a file that was preallocated."""
        new = self._made
        carried = not there.incoming.takes.isdisjoint(_CARRIED)
        if new is not None and new.preallocated and carried:
            await self._fill(there)

    async def _fill(self, there: There) -> None:
        if self._made is not None:
            with there.allowed.images.parent(self._made.path) as directory:
                await making.set_aside(str(directory / Path(self._made.path).name))

    def progress(self, here: Here) -> tuple[int, int]:
        """How far the copy has come."""
        machine = here.machine
        if self._mirroring and machine.mirroring is not None:
            return machine.mirroring.progress(self.device)
        if self.placement is not Placement.STAY and machine.carrying is not None:
            return machine.carrying.progress(self.device)
        return (0, 0)

    # TRANSFER, and after

    async def transfer(self, here: Here) -> None:
        """The guest has stopped: its last writes go over, and the two disks part."""
        if self._mirroring and here.machine.mirroring is not None:
            await here.machine.mirroring.complete(self.device)
            self._mirroring = False

    async def recover(self, here: Here, last_good: Step) -> None:  # noqa: ARG002 - known better here
        """Give up the mirror; what was made on the target is undone there."""
        if self._mirroring and here.machine.mirroring is not None:
            await here.machine.mirroring.cancel(self.device)
            self._mirroring = False

    async def let_go(self, here: Here) -> None:
        """Delete the file that was copied, unless asked not to, or unless it is another one now."""
        copied = self._copied
        if copied is None or here.options.keep_source_disks:
            return
        try:
            is_another = not await in_thread(delete, copied)
        except OSError as error:
            raise DeviceError(
                f"{copied.path} cannot be deleted: {error.strerror}",
                device=self.device.label,
                host=here.source,
                remedy=f"delete it; the disk is on {here.target} now",
            ) from error
        if is_another:
            raise DeviceError(
                f"{copied.path} is not the file that was moved any more, and is left",
                device=self.device.label,
                host=here.source,
                remedy=f"see what put it there; the disk is on {here.target} now",
            )
