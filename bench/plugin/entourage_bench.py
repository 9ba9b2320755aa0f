"""Controllers for the benchmarks: devices that take their time, or fail, and do nothing else."""

from __future__ import annotations

import asyncio

from entourage.devices.base import Controller, Here
from entourage.domain import External
from entourage.errors import DeviceError

SECONDS = 0.2


class Slow(Controller[External]):
    """``[[external]] type = "slow"``: takes that long in step 2."""

    device_class = "external"

    async def transfer(self, here: Here) -> None:  # noqa: ARG002 - a step's signature
        """Take that long."""
        await asyncio.sleep(SECONDS)


class Fails(Controller[External]):
    """``[[external]] type = "fails"``: fails in step 3, as many ms into it as its subtype says."""

    device_class = "external"

    async def sync(self, here: Here) -> None:  # noqa: ARG002 - a step's signature
        """Fail."""
        await asyncio.sleep(int(self.device.subtype or 0) / 1000)
        raise DeviceError("this failure is meant", device=self.device.label)
