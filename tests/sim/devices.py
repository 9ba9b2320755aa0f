"""Three simulated devices, as controllers of the engine's own kind.

A disk that is copied, made on the target and deleted at the source; a TPM whose state is in the
stream, is locked while it is on its way, and must be unlocked before the guest may run again; and
a thing that is taken out at PREPARE and put back, which remembers how far it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from types import NoneType
from typing import Any, ClassVar

from entourage.devices.base import Controller, Here, There
from entourage.domain import Device
from entourage.errors import DeviceError
from entourage.steps import Planned, Refusal, Step
from tests.sim.seams import Here as Simulation


class VDisk(Device, frozen=True):
    device_class: ClassVar[str] = "vdisk"


class VTpm(Device, frozen=True):
    device_class: ClassVar[str] = "vtpm"


class Thing(Device, frozen=True):
    device_class: ClassVar[str] = "thing"


def _host() -> Any:
    return Simulation.loop.current.host


@contextlib.asynccontextmanager
async def step(device: str) -> AsyncGenerator[Any]:
    """A device goes through a step, or is put back: never both at once."""
    host = _host()
    if device in host.busy:
        host.world.violated(f"{device} goes through two steps at once, or is put back meanwhile")
    host.busy.add(device)
    try:
        yield host
    finally:
        host.busy.discard(device)


class Mirror:
    """A disk's mirror: the newest writes are on their way, until it is completed."""

    def __init__(self, source: Any, target: Any) -> None:
        self.source, self.target = source, target
        self.broken = False
        source.world.guest.write()
        target.disk = source.disk
        source.world.guest.mirror = self

    def wrote(self) -> None:
        """The guest has written: the mirror has what came before."""
        world = self.source.world
        if world.net.silent or not self.target.on or self.target.disk is None:
            self.broken = True
        if not self.broken:
            self.target.disk = self.source.disk - 1

    def complete(self) -> None:
        """The guest has stopped: what is on its way arrives."""
        self.end()
        if not self.broken and self.target.disk is not None:
            self.target.disk = self.source.disk

    def end(self) -> None:
        """The two disks part."""
        guest = self.source.world.guest
        guest.write()
        if guest.mirror is self:
            guest.mirror = None


class DiskController(Controller[VDisk]):
    device_class = "vdisk"
    spec = VDisk
    settles = True

    def __init__(self, device: VDisk) -> None:
        super().__init__(device)
        self.mirror: Mirror | None = None

    async def test(self, here: Here) -> list[Refusal]:
        await _host().asked("disk.test")
        return await here.peer("fit", list[Refusal])

    async def test_there(self, there: There, request: Any) -> list[Refusal]:
        await _host().asked("disk.fit")
        return []

    def planned(self, here: Here) -> Planned:
        return Planned(action="copied", size=1 << 30)

    async def prepare(self, here: Here) -> None:
        await here.peer("make", NoneType)

    async def prepare_there(self, there: There, request: Any) -> None:
        host = _host()
        await host.asked("disk.make")
        there.ledger.record("disk", path="disk")
        host.world.point("make.disk")
        await host.takes(0.02)
        host.disk = 0

    async def connect(self, here: Here) -> None:
        await here.peer("export", NoneType)
        async with step("disk") as host:
            await host.asked("disk.mirror")
            await host.takes(1.0)
            if host.other.disk is None or host.world.net.silent:
                raise DeviceError("nobody takes the mirror's writes")
            self.mirror = Mirror(host, host.other)

    async def connect_there(self, there: There, request: Any) -> None:
        host = _host()
        await host.asked("disk.export")
        if host.disk is None:
            raise DeviceError("there is no disk")

    async def transfer(self, here: Here) -> None:
        async with step("disk") as host:
            await host.asked("disk.complete")
            mirror = self.mirror
            if mirror is None:
                return
            mirror.complete()
            self.mirror = None
            if mirror.broken or host.world.net.silent:
                raise DeviceError("the mirror has broken")

    async def recover(self, here: Here, last_good: Step) -> None:
        async with step("disk") as host:
            await host.asked("disk.cancel")
            if self.mirror is not None:
                self.mirror.end()
                self.mirror = None

    async def let_go(self, here: Here) -> None:
        host = _host()
        await host.asked("disk.delete")
        host.check_may_erase("disk")
        host.disk = None


class TpmController(Controller[VTpm]):
    device_class = "vtpm"
    spec = VTpm
    recovers_first = True

    async def test(self, here: Here) -> list[Refusal]:
        await _host().asked("tpm.test")
        return []

    async def transfer(self, here: Here) -> None:
        async with step("tpm") as host:
            await host.asked("tpm.lock")
            host.locked_tpm = True

    async def recover(self, here: Here, last_good: Step) -> None:
        async with step("tpm") as host:
            try:
                await host.asked("tpm.unlock")
            except BaseException:
                host.excused_tpm = True
                raise
            host.locked_tpm = False

    async def let_go(self, here: Here) -> None:
        host = _host()
        await host.asked("tpm.erase")
        host.check_may_erase("tpm")
        host.tpm, host.locked_tpm = None, False

    async def persist(self, there: There) -> None:
        host = _host()
        await host.asked("tpm.persist")
        if host.tpm is not None:
            host.tpm = "safe"


class ThingController(Controller[Thing]):
    device_class = "thing"
    spec = Thing
    undoes_prepare = True

    def memo(self) -> dict[str, Any]:
        return {"was": "in"}

    async def test(self, here: Here) -> list[Refusal]:
        await _host().asked("thing.test")
        return []

    async def prepare(self, here: Here) -> None:
        async with step("thing") as host:
            await host.asked("thing.take-out")
            host.thing = "out"
            await host.takes(0.01)

    async def sync(self, here: Here) -> None:
        await here.peer("there?", NoneType)

    async def sync_there(self, there: There, request: Any) -> None:
        await _host().asked("thing.sync")

    async def recover(self, here: Here, last_good: Step) -> None:
        async with step("thing") as host:
            try:
                await host.asked("thing.put-back")
            except BaseException:
                host.excused_thing = True
                raise
            host.thing = "in"

    async def let_go(self, here: Here) -> None:
        _host().thing = ""

    async def arrived(self, there: There) -> None:
        host = _host()
        try:
            await host.asked("thing.plug")
        except BaseException:
            host.excused_thing = True
            raise
        host.thing = "in"


ADDED = {
    each.device_class: f"{__name__}:{each.__name__}"
    for each in (DiskController, TpmController, ThingController)
}
"""The classes of devices that only the simulation has."""
