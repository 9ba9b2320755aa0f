"""Devices whose other end is a save: nothing of the host is used by one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import msgspec

from entourage.devices.base import AnyController, Here, There
from entourage.devices.block import images, making, space
from entourage.devices.block.controller import BlockController, Placement
from entourage.devices.block.images import Image, NewImage
from entourage.devices.block.requests import Fill, GiveRoom, Make, Open
from entourage.devices.block.space import Fit, Fitting
from entourage.devices.block.storage import Spot
from entourage.devices.net import Bridge, NetController
from entourage.devices.refusals import refuse, warn
from entourage.domain import Net
from entourage.errors import (
    DeviceError,
    EntourageError,
    HypervisorError,
    plain_words,
    what_to_do,
)
from entourage.hosts import programs
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import Export
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.another import AnotherMachine
from entourage.hypervisors.saved.copies import Belonged, CopiesIn
from entourage.hypervisors.saved.machine import SavedMachine
from entourage.hypervisors.saved.seals import sealed
from entourage.settings.units import format_size
from entourage.steps import Refusal

_ANY_MTU = 65535
_COPY_IT = "--disks=copy copies it into the save"
_GIVES_ROOM_WITHIN = 1.0  # seconds; the guest stands still
_FOR_CHANGES = {"cluster_size": "65536"}
"""Of an overlay: as much as one bit of QEMU's record stands for, so that nothing is read below."""


class SavedNet(NetController):
    """A NIC that goes nowhere, or comes back: its bridge is looked for when it is restored."""

    def mac_on_the_wire(self, here: Here) -> str | None:
        """That of the first machine, where another is made of it, until that is started again."""
        if isinstance(here.machine, AnotherMachine):
            return here.machine.first_mac(self.device.label)
        return super().mac_on_the_wire(here)

    async def test_there(self, there: There, request: Any) -> Any:  # noqa: ARG002 - see base
        """Everything will do."""
        return Bridge(mtu=_ANY_MTU, bridges=[], port="", tap_taken=False, announces=True)

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Keep it as it is."""
        nic = msgspec.convert(request, Net)
        there.domain = there.domain.with_device(nic)
        return nic


class SavedBlock(BlockController):
    """A disk that stays where it is and is sealed, or is copied into a save, or out of one."""

    _changed = 0
    """Bytes that were written since the checkpoint that only changes are copied of, at most."""
    _whole: Image | None = None
    """Of one in a save: the image that the others are built on, which is made as the disk was."""

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Of one that stays, whether it will be seen that it has changed."""
        found = [*await super().test(here)]
        disk = self.device
        if here.options.sealed and disk.id not in here.options.copies:
            try:
                await sealed(disk)
            except EntourageError as error:
                remedy = error.remedy or _COPY_IT
                found.append(refuse(disk, here.source, error.message, remedy))
        return found

    def _read_as(self, here: Here) -> str:
        """A copy of changes alone is an overlay, whatever the disk was."""
        if isinstance(here.machine, SavedMachine):
            return here.machine.format_of(self.device)
        return super()._read_as(here)

    async def _new_image(
        self, here: Here, image: Image, path: str, backing: Image | None
    ) -> NewImage:
        """One of the disk's own format; or what has changed, on the image of a checkpoint."""
        disk, since = self.device, here.options.since
        new = await super()._new_image(here, image, path, backing)
        if isinstance(here.machine, SavedMachine):
            options = self._whole.options if self._whole and disk.format == "qcow2" else {}
            return msgspec.structs.replace(new, format=disk.format, options=options)
        if since is None or disk.id not in since.images:
            return new
        below = manifests.copy_path(Path(since.directory), disk)
        return msgspec.structs.replace(
            new,
            format="qcow2",
            room=min(new.room, self._changed + images.MARGIN),
            options=_FOR_CHANGES,
            backing=str(below),
            backing_format=since.images[disk.id],
        )

    async def _objections(self, here: Here, image: Image) -> list[Refusal]:
        """Whether it is known what was written since the checkpoint that only changes are of."""
        disk, since = self.device, here.options.since
        if since is None or disk.id not in since.images:
            return []
        mirroring = here.machine.mirroring
        if mirroring is None:  # ``_copy`` refuses it
            return []
        whole = "leave --since out: a checkpoint of all of it"
        changed = await mirroring.changed(disk, since.mark)
        if changed is None:
            reason = (
                f"what was written since {since.directory} is not known: its guest was started"
                " anew since, has moved, or has another medium in it; many others were made; or the"
                " command that made it was ended just then"
            )
            return [refuse(disk, here.source, reason, whole)]
        self._changed = changed.written
        below = manifests.copy_path(Path(since.directory), disk)
        [earlier, *_] = await images.inspect(str(below), since.images[disk.id])
        if len({changed.size, image.virtual_size, earlier.virtual_size}) > 1:
            reason = (
                f"it had {format_size(earlier.virtual_size)} then, its guest sees"
                f" {format_size(changed.size)}, and the image has {format_size(image.virtual_size)}"
            )
            return [refuse(disk, here.source, reason, whole)]
        return []

    async def _decide(self, here: Here, chain: list[Image], path: str) -> list[Refusal]:
        """What is in a save is nowhere else: the whole of it is copied, whatever is there."""
        disk, restored = self.device, isinstance(here.machine, SavedMachine)
        if disk.id in here.options.copies:
            if found := await self._objections(here, chain[0]):
                return found
            self._whole = chain[-1]
            [there] = await self._ask(here)([Spot(path=path)])
            # Only one that its user has named: see ``restore_request``.
            onto = restored and there.kind == "device"
            found = await self._copy(here, chain[0], path, None, onto=onto)
            if isinstance(here.machine, SavedMachine):
                self._give_back(here, here.machine)
            return found
        if not restored and not here.options.sealed:
            return []
        found = await super()._decide(here, chain, path)
        if not restored and self.placement is not Placement.STAY:
            self.placement = Placement.STAY
            reason = f"{path} is to stay, and is not seen there"
            found.append(refuse(disk, here.target, reason, _COPY_IT))
        return found

    def _give_back(self, here: Here, saved: SavedMachine) -> None:
        """Have the restored image be whose it was, as far as this host's settings allow that."""
        if self._new is None or self.placement is not Placement.MAKE:
            return
        mode, owner, group = saved.belonged(self.device.label)
        self._new = msgspec.structs.replace(self._new, mode=mode, owner=owner, group=group)
        may = {"", *here.settings.agent.owners}
        if denied := [name for name in dict.fromkeys((owner, group)) if name not in may]:
            message = (
                f"it belonged to {owner}:{group}, and is to be root's in the place of"
                f" {', '.join(denied)}: agent.owners does not name that, or chown it then"
            )
            warn(here, self.device, here.target, message)

    async def transfer(self, here: Here) -> None:
        """Where what was written finds no room, it gives back what it has taken of the storage.

        The guest goes on before the save is undone, and its own disks may be on the same storage:
        what it cannot write there has QEMU stop it.
        """
        try:
            await super().transfer(here)
        except HypervisorError:
            since = here.options.since
            if since is not None and self.device.id in since.images:
                with contextlib.suppress(EntourageError, TimeoutError):
                    async with asyncio.timeout(_GIVES_ROOM_WITHIN):
                        await here.peer(GiveRoom(), NoneType)
            raise

    # The target's half, where that is the save

    async def test_there(self, there: There, request: Any) -> Any:
        """See whether a copy has room beside memory."""
        if request.get("type") != "fit" or not there.incoming.is_save:
            return await super().test_there(there, request)
        return await in_thread(self._fitting, there, msgspec.convert(request, Fit).new)

    def _fitting(self, there: There, new: NewImage) -> Fitting:
        disk, found = self.device, list[Refusal]()
        if not programs.has_qemu_nbd():
            remedy = "install qemu-utils"
            found.append(refuse(disk, there.host, "qemu-nbd is not installed", remedy))
        above = _directory(new).parent
        if above.is_dir():  # else the save itself is refused
            there.space.setdefault(above.stat().st_dev, {})["memory"] = there.domain.memory
            if refusal := space.too_full(disk, there, new, str(above)):
                remedy = "make room, or choose another directory"
                found.append(dataclasses.replace(refusal, remedy=remedy))
        return Fitting(refusals=found)

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Remember what is to be made: the save's directory comes later."""
        if not there.incoming.is_save:
            return await super().prepare_there(there, request)
        self._made = msgspec.convert(request, Make).new
        return True

    async def connect_there(self, there: There, request: Any) -> Any:
        """Make the image in the save, and take the mirror's writes."""
        if not there.incoming.is_save:
            return await super().connect_there(there, request)
        asked: Open | Fill = msgspec.convert(request, Open | Fill)
        return await self._taken(there) if isinstance(asked, Open) else None

    async def transfer_there(self, there: There, request: Any) -> Any:
        """Empty an image in the save, which is given up."""
        if not there.incoming.is_save:
            return await super().transfer_there(there, request)
        msgspec.convert(request, GiveRoom)
        if self._made is not None:
            # Storage may hang. It is removed later in any case.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_GIVES_ROOM_WITHIN):
                    await in_thread(os.truncate, self._image(there, self._made), 0)
        return None

    def _image(self, there: There, new: NewImage) -> Path:
        """Where it is made: in the directory that gets the save's name once that is whole."""
        partial = manifests.partial(_directory(new), there.domain)
        return manifests.copy_path(partial, self.device_there(there))

    async def _taken(self, there: There) -> Export:
        disk, new, exports = self.device_there(there), self._made, there.incoming.exports
        if new is None or exports is None:
            raise DeviceError("it was not prepared", device=disk.label, host=there.host)
        new = msgspec.structs.replace(new, preallocated=False)
        path = self._image(there, new)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            handle = await in_thread(os.open, path, flags, 0o600)
            try:
                if new.format == "raw":
                    await in_thread(os.ftruncate, handle, new.size)
                await making.fill_in(new, handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise DeviceError(
                f"{path} cannot be made: {plain_words(error)}",
                device=disk.label,
                host=there.host,
                remedy=what_to_do(error),
            ) from error
        if isinstance(exports, CopiesIn):
            belonged = Belonged(new.mode & 0o777, new.owner, new.group)
            exports.made(disk, new.format, belonged)
        return await exports.export(disk)


def _directory(new: NewImage) -> Path:
    """The save's, by the path that a copy in it will have: DIR/disks/ID."""
    return Path(new.path).parents[1]


CONTROLLERS: dict[type[AnyController], type[AnyController]] = {
    NetController: SavedNet,
    BlockController: SavedBlock,
}
"""In the place of those that are built in, where the other end is a save; others stay."""
