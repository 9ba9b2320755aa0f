"""Devices of this host that are plugged into a domain of xl's on its arrival."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Sequence

from entourage.domain import Pci
from entourage.errors import HypervisorError
from entourage.hypervisors.seams import HostDevice, Objection
from entourage.hypervisors.xen.hostdevices import HostDevices, test_plug

_PLUGS_WITHIN = 15.0
"""Seconds for all devices of the host together; the source waits for RAN, and would doubt."""


class XenPlugging:
    """Plugs them in.

    Args:
        find: Returns the domain's number here; None where there is none.
        name: What the user calls the domain.
    """

    def __init__(self, find: Callable[[], Awaitable[int | None]], name: str) -> None:
        self._find = find
        self._name = name
        self._devices: HostDevices | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._until = 0.0

    async def test_plug(self, device: HostDevice) -> Sequence[Objection]:
        """Why ``device.plug`` of this host cannot be plugged into a guest."""
        return await test_plug(device)

    async def plug(self, device: HostDevice) -> None:
        """Plug ``device.plug`` of this host in.

        Raises:
            HypervisorError: It is not there, or xl fails, or it takes too long; with the command
                to type.
        """
        loop, domid = asyncio.get_running_loop(), await self._find()
        if domid is None:
            raise HypervisorError("xl knows the domain no more", remedy="see `xl list`")
        if self._devices is None:
            self._devices = HostDevices(domid, self._name)
            self._until = loop.time() + _PLUGS_WITHIN
        plugging = asyncio.create_task(self._devices.plug(device))
        self._under_way.add(plugging)  # one that is late is left alone
        plugging.add_done_callback(lambda late: late.cancelled() or late.exception())
        await asyncio.wait({plugging}, timeout=max(0.0, self._until - loop.time()))
        if not plugging.done():
            command = "pci-list" if isinstance(device, Pci) else "usb-list"
            shows = f"`{shlex.join(['xl', command, self._name])}`"
            raise HypervisorError(
                f"xl has not done it within {_PLUGS_WITHIN:g} s",
                remedy=f"{shows} shows whether it has by now",
            )
        plugging.result()

    async def ended(self) -> None:
        """Wait for those that are late: an xl that is killed half-way leaves half of a device."""
        if self._under_way:
            await asyncio.wait(self._under_way)
