"""A controller of another package: directories that virtiofsd shows the guest.

Nothing is copied: the directory must be the same on both hosts. A file in it tells which one it is,
`uuidgen > DIRECTORY/.share-id`, and both hosts must see the same content there. In a domain file:

    [[external]]
    id = "home"
    type = "virtiofs"
    subtype = "/srv/home"
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from entourage.devices.base import Controller, Here, There
from entourage.devices.refusals import refuse
from entourage.domain import External
from entourage.errors import DeviceError
from entourage.events import Warned
from entourage.steps import Refusal

ID = ".share-id"


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """TEST asks the target: is this the directory that has this id?

    Attributes:
        path: The directory.
        id: What its file says on the source.
    """

    path: str
    id: str


class VirtiofsController(Controller[External]):
    """A directory that both hosts see: it is compared at TEST, and nothing of it moves."""

    device_class = "external"

    @property
    def path(self) -> Path:
        """The directory, on both hosts.

        Raises:
            DeviceError: The device names none.
        """
        if not self.device.subtype:
            raise DeviceError("it names no directory", remedy='subtype = "/srv/home"')
        return Path(self.device.subtype)

    async def test(self, here: Here) -> Sequence[Refusal]:
        """Step 0, on the source: which directory is it? Then the target is asked."""
        try:
            mine = await asyncio.to_thread(Path(self.path, ID).read_text, encoding="utf-8")
        except OSError as error:
            remedy = f"uuidgen > {self.path}/{ID}"
            return [refuse(self.device, here.source, f"{self.path}/{ID}: {error.strerror}", remedy)]
        return await here.peer(Shared(path=str(self.path), id=mine), list[Refusal])

    async def test_there(self, there: There, request: Any) -> Sequence[Refusal]:
        """Step 0, on the target. What arrives is a claim: its type and its path are checked."""
        asked = msgspec.convert(request, Shared)
        try:
            there.allowed.images.real(asked.path)  # raises NotAllowed where the settings say no
            mine = await asyncio.to_thread(Path(asked.path, ID).read_text, encoding="utf-8")
        except OSError as error:
            reason, remedy = f"{asked.path}/{ID}: {error.strerror}", f"mount {asked.path} there"
            return [refuse(self.device, there.host, reason, remedy)]
        if mine != asked.id:
            reason = f"{asked.path} is another directory than on the source"
            return [refuse(self.device, there.host, reason, "mount the same one there")]
        return []

    async def let_go(self, here: Here) -> None:
        """The guest runs on the target, for good."""
        message = f"{self.path} is still mounted here"
        here.emit(Warned(at=here.now(), message=message, device=self.device.label))
