"""USB and PCI devices: what their two classes have in common.

An emulated one is part of the machine, and its state travels in the stream, unless the hypervisor
marks it as not migratable. One of the host's own holds state that nobody can read, and cannot
follow the guest. Where the user says which one of the target's stands for it, and the hypervisor
can do that (``Unplugging``), the guest lets go of it before its memory is copied, and gets the
other one on arrival; after a failure, its own again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from entourage.devices.base import Controller, Here, There
from entourage.devices.refusals import marked, no_way, refuse
from entourage.domain import Pci, Usb
from entourage.errors import DeviceError, HypervisorError
from entourage.hypervisors.seams import HostDevice
from entourage.steps import Planned, Refusal, Step

Own = TypeVar("Own", Usb, Pci)


class HostDeviceController(Controller[Own]):
    """The way of a USB or PCI device: in the stream, by another one in its place, or none."""

    example: ClassVar[str]
    """How the user says which one: what follows ``--usb usb0=``, say."""
    undoes_prepare = True

    def __init__(self, device: Own) -> None:
        super().__init__(device)
        self._unplugged = False

    @property
    def why_not(self) -> str:
        """Why one of the host's own cannot follow the guest."""
        raise NotImplementedError

    @property
    def stands(self) -> str | None:
        """What stands for it on the target; None where it has not been mapped."""
        return self.target_device.plug

    def memo(self) -> dict[str, Any]:
        """Whether the guest may have let go of it."""
        return {"mapped": True} if self.stands else {}

    def recall(self, memo: dict[str, Any]) -> None:
        """Plug it in again, then: where it was never out, that changes nothing."""
        self._unplugged = bool(memo.get("mapped"))

    async def test(self, here: Here) -> Sequence[Refusal]:
        """An emulated one moves unless the hypervisor itself says no; the host's own by a map."""
        device = self.target_device = self.device
        found = marked(here, device)
        if not device.host_names:
            return found
        option = f"--{device.device_class} {device.id}={self.example}"
        unplugging = here.machine.unplugging
        there = _mapped(device, getattr(here.options, device.device_class))
        if unplugging is None:
            also = f", and its hypervisor cannot do what {option} asks for" if there else ""
            remedy = "take it out of the domain first"
            return [no_way(device, here.source, f"{self.why_not}{also}", remedy)]
        if there is None:
            remedy = f"{option} says what stands for it on {here.target}; or take it out first"
            return [no_way(device, here.source, self.why_not, remedy)]
        self.target_device = msgspec.structs.replace(device, plug=there)
        for reason, remedy in await unplugging.test_unplug(device):
            found.append(refuse(device, here.source, reason, remedy))
        return [*found, *await here.peer(self.target_device, list[Refusal])]

    def planned(self, here: Here) -> Planned:
        """Another one stands for it there; or its state is in the stream."""
        if self.stands is None:
            return super().planned(here)
        return Planned(action="replugged", here=self.device.host_names[-1], there=self.stands)

    async def test_there(self, there: There, request: Any) -> Any:
        """Is there such a one here, and does nobody have it?"""
        device = msgspec.convert(request, type(self.device))
        plugging = there.incoming.plugging
        if plugging is None:
            return [no_way(device, there.host, "its hypervisor cannot plug in one of the host's")]
        objections = await plugging.test_plug(device)
        return [refuse(device, there.host, reason, remedy) for reason, remedy in objections]

    async def connect(self, here: Here) -> None:
        """The guest lets go of it, as late as that can be: memory is copied next."""
        if self.stands is None:
            return
        self._unplugged = True
        if here.machine.unplugging is not None:
            await here.machine.unplugging.unplug(self.device)

    async def recover(self, here: Here, last_good: Step) -> None:  # noqa: ARG002 - known better here
        """The guest gets it back."""
        unplugging = here.machine.unplugging
        if not self._unplugged or unplugging is None:
            return
        try:
            await unplugging.plug(self.device)
        except HypervisorError as error:
            said = f"the guest runs without it: {error.message}"
            raise DeviceError(said, remedy=f"on {here.source}: {error.remedy}") from error
        self._unplugged = False

    async def arrived(self, there: There) -> None:
        """The guest gets the one that stands for it here."""
        device = self.device_there(there)
        plugging = there.incoming.plugging
        if device.plug is None or plugging is None:
            return
        try:
            await plugging.plug(device)
        except HypervisorError as error:
            said = f"the guest runs without {device.plug}: {error.message}"
            raise DeviceError(said, remedy=f"on {there.host}: {error.remedy}") from error


def _mapped(device: HostDevice, wanted: Mapping[str, str]) -> str | None:
    """What the user has said of it, by whichever name."""
    return next((wanted[name] for name in device.host_names if name in wanted), None)
