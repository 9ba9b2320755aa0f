"""Three simulated devices, as controllers of the engine's own kind.

A disk that is copied, made on the target and deleted at the source, if it remembers that it was
copied; a TPM whose state is in the stream, is locked while it is on its way, and must be unlocked
before the guest may run again; and a thing that is taken out at PREPARE and put back, if it
remembers what was. What each is told when it is put back must be what it has done.
"""

from __future__ import annotations

import asyncio
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


def done(device: str, finished: Step) -> None:
    """A device has come through its own part of a step on the source."""
    _host().finished[device] = finished


def check_told(device: str, last_good: Step, *parts: Step) -> None:
    """See that a device that is put back is told of no step that it has not finished.

    Args:
        device: Which.
        last_good: What it is told.
        parts: The steps that it has a part in.
    """
    host = _host()
    told = max((part for part in parts if part <= last_good), default=Step.NONE)
    if told > host.finished.get(device, Step.NONE):
        host.world.violated(f"{device} is put back as if it had finished {told.name}")


class Mirror:
    """A disk's mirror: the newest writes are on their way, until it is completed.

    It is the hypervisor's, and outlives the process that began it.
    """

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
        self.copied = False

    def memo(self) -> dict[str, Any]:
        return {"copied": True} if self.copied else {}

    def recall(self, memo: dict[str, Any]) -> None:
        self.copied = bool(memo)

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
        self.copied = True

    async def prepare_there(self, there: There, request: Any) -> None:
        host = _host()
        await host.asked("disk.make")
        there.ledger.record("disk", path="disk")
        host.world.point("make.disk")
        try:
            await host.takes(0.02)
        except asyncio.CancelledError:
            await host.ends(lambda: setattr(host, "disk", 0))
            raise
        host.disk = 0
        await host.answers("disk.make")

    async def connect(self, here: Here) -> None:
        await here.peer("export", NoneType)
        async with step("disk") as host:
            await host.asked("disk.mirror")
            await host.takes(host.world.copying)
            if host.other.disk is None or host.world.net.silent:
                raise DeviceError("nobody takes the mirror's writes")
            Mirror(host, host.other)
            await host.answers("disk.mirror")
            done("disk", Step.PREPARE)

    async def connect_there(self, there: There, request: Any) -> None:
        host = _host()
        await host.asked("disk.export")
        if host.disk is None:
            raise DeviceError("there is no disk")

    async def transfer(self, here: Here) -> None:
        async with step("disk") as host:
            await host.asked("disk.complete")
            mirror = host.world.guest.mirror
            if mirror is None:
                raise DeviceError("there is no mirror any more")
            mirror.complete()
            if mirror.broken or host.world.net.silent:
                raise DeviceError("the mirror has broken")
            await host.answers("disk.complete")
            done("disk", Step.TRANSFER)

    async def recover(self, here: Here, last_good: Step) -> None:
        check_told("disk", last_good, Step.PREPARE, Step.TRANSFER)
        async with step("disk") as host:
            await host.asked("disk.cancel")
            host.end_mirror()
            await host.answers("disk.cancel")

    async def let_go(self, here: Here) -> None:
        host = _host()
        await host.asked("disk.delete")
        if self.copied:
            host.check_may_erase("disk")
            host.disk = None
        await host.answers("disk.delete")


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
            await host.answers("tpm.lock")
            done("tpm", Step.TRANSFER)

    async def recover(self, here: Here, last_good: Step) -> None:
        check_told("tpm", last_good, Step.TRANSFER)
        async with step("tpm") as host:
            try:
                await host.asked("tpm.unlock")
            except BaseException:
                host.excused_tpm = True
                raise
            host.locked_tpm = False
            await host.answers("tpm.unlock")

    async def let_go(self, here: Here) -> None:
        host = _host()
        await host.asked("tpm.erase")
        host.check_may_erase("tpm")
        host.tpm, host.locked_tpm = None, False
        await host.answers("tpm.erase")

    async def persist(self, there: There) -> None:
        host = _host()
        await host.asked("tpm.persist")
        if host.tpm is not None:
            host.tpm = "safe"
        await host.answers("tpm.persist")


class ThingController(Controller[Thing]):
    device_class = "thing"
    spec = Thing
    undoes_prepare = True

    def __init__(self, device: Thing) -> None:
        super().__init__(device)
        self.was = ""

    def memo(self) -> dict[str, Any]:
        return {"was": self.was} if self.was else {}

    def recall(self, memo: dict[str, Any]) -> None:
        self.was = memo.get("was", "")

    async def test(self, here: Here) -> list[Refusal]:
        host = _host()
        await host.asked("thing.test")
        self.was = host.thing
        return []

    async def prepare(self, here: Here) -> None:
        async with step("thing") as host:
            await host.asked("thing.take-out")
            host.thing = "out"
            await host.takes(0.01)
            await host.answers("thing.take-out")
            done("thing", Step.PREPARE)

    async def sync(self, here: Here) -> None:
        await here.peer("there?", NoneType)
        done("thing", Step.SYNC)

    async def sync_there(self, there: There, request: Any) -> None:
        await _host().asked("thing.sync")

    async def recover(self, here: Here, last_good: Step) -> None:
        check_told("thing", last_good, Step.PREPARE, Step.SYNC)
        async with step("thing") as host:
            try:
                await host.asked("thing.put-back")
            except BaseException:
                host.excused_thing = True
                raise
            host.thing = self.was
            await host.answers("thing.put-back")

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
        await host.answers("thing.plug")


ADDED = {
    each.device_class: f"{__name__}:{each.__name__}"
    for each in (DiskController, TpmController, ThingController)
}
"""The classes of devices that only the simulation has."""
