"""The built-in controllers, failing where they are told to.

``FAULT="CLASS HALF KIND"`` in the environment of a host's Entourage lets the half ``HALF``
(``prepare``, ``prepare_there``, …) of each device of that class, or of ``every``, fail there after
it has done its work, so that as much as can be is there to be undone. KIND says how: ``error``,
``os``, ``bug`` or, before the work, ``early``.

With ``FAULT_ASK`` set on the source, each half asks its other half even where a built-in has
nothing to ask, so that every class has a half on the target that can fail in every step.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from types import NoneType
from typing import Any

from entourage.devices.base import Controller, Here, There
from entourage.devices.block.controller import BlockController
from entourage.devices.host.pci import PciController
from entourage.devices.host.usb import UsbController
from entourage.devices.net import NetController
from entourage.devices.tpm import TpmController
from entourage.domain import External
from entourage.errors import DeviceError
from entourage.steps import Refusal, Step

MESSAGE = "this fault is injected"
_ASKED = "only asked so that it can fail"


class _Faulty(Controller[Any]):
    """Goes before a built-in controller in the order of bases."""

    def _fails(self, half: str, *, early: bool) -> None:
        wanted = os.environ.get("FAULT", "").split()
        if not wanted or wanted[0] not in {"every", self.device_class} or wanted[1] != half:
            return
        if (wanted[2] == "early") is not early:
            return
        match wanted[2]:
            case "os":
                raise OSError(5, MESSAGE)
            case "bug":
                raise ZeroDivisionError(MESSAGE)
            case _:
                raise DeviceError(MESSAGE)

    async def _half(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        self._fails(name, early=True)
        result = await work()
        self._fails(name, early=False)
        return result

    async def _step(self, here: Here, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        async def both() -> Any:
            result = await work()
            if "FAULT_ASK" in os.environ:
                await here.peer(_ASKED, NoneType)
            return result

        return await self._half(name, both)

    async def _there(self, name: str, request: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        """The other half; a question that no built-in asks gets no answer of one."""
        if request != _ASKED:
            return await self._half(name, work)
        self._fails(name, early=True)
        self._fails(name, early=False)
        return None

    async def test(self, here: Here) -> Sequence[Refusal]:
        return await self._step(here, "test", lambda: super(_Faulty, self).test(here))

    async def prepare(self, here: Here) -> None:
        await self._step(here, "prepare", lambda: super(_Faulty, self).prepare(here))

    async def connect(self, here: Here) -> None:
        await self._step(here, "connect", lambda: super(_Faulty, self).connect(here))

    async def transfer(self, here: Here) -> None:
        await self._step(here, "transfer", lambda: super(_Faulty, self).transfer(here))

    async def sync(self, here: Here) -> None:
        await self._step(here, "sync", lambda: super(_Faulty, self).sync(here))

    async def recover(self, here: Here, last_good: Step) -> None:
        await self._half("recover", lambda: super(_Faulty, self).recover(here, last_good))

    async def let_go(self, here: Here) -> None:
        await self._half("let_go", lambda: super(_Faulty, self).let_go(here))

    async def test_there(self, there: There, request: Any) -> Any:
        work = super().test_there
        return await self._there("test_there", request, lambda: work(there, request))

    async def prepare_there(self, there: There, request: Any) -> Any:
        work = super().prepare_there
        return await self._there("prepare_there", request, lambda: work(there, request))

    async def connect_there(self, there: There, request: Any) -> Any:
        work = super().connect_there
        return await self._there("connect_there", request, lambda: work(there, request))

    async def transfer_there(self, there: There, request: Any) -> Any:
        work = super().transfer_there
        return await self._there("transfer_there", request, lambda: work(there, request))

    async def sync_there(self, there: There, request: Any) -> Any:
        work = super().sync_there
        return await self._there("sync_there", request, lambda: work(there, request))

    async def persist(self, there: There) -> None:
        await self._half("persist", lambda: super(_Faulty, self).persist(there))

    async def arrived(self, there: There) -> None:
        await self._half("arrived", lambda: super(_Faulty, self).arrived(there))


class FaultyBlock(_Faulty, BlockController):
    """A disk."""


class FaultyNet(_Faulty, NetController):
    """A NIC."""


class FaultyTpm(_Faulty, TpmController):
    """A TPM."""


class FaultyUsb(_Faulty, UsbController):
    """A USB device."""


class FaultyPci(_Faulty, PciController):
    """A PCI device."""


class FaultyGadget(_Faulty, Controller[External]):
    """What no hypervisor knows, ``[[external]] type = "gadget"``: all that it does is to fail."""

    device_class = "external"
