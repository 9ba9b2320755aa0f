"""QEMU tells the network where a guest's MACs are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from entourage.domain import Net
from entourage.hypervisors.qemu.cmdline import device_id
from entourage.hypervisors.qemu.qmp import Monitor, MonitorLostError

# RARP packets of QEMU's: how many, and when (ms).
_ANNOUNCEMENT = {"initial": 50, "max": 550, "rounds": 5, "step": 100}


class QemuAnnouncing:
    """Has QEMU announce NICs; those that the guest can announce itself it asks to do so.

    Args:
        monitor: Returns the machine's, on either host.
    """

    def __init__(self, monitor: Callable[[], Monitor]) -> None:
        self._monitor = monitor

    async def announce(self, nets: Sequence[Net]) -> None:
        """Tell the network where the guest's MACs are."""
        if nets:
            names = [device_id(net) for net in nets]
            what = {**_ANNOUNCEMENT, "interfaces": names}
            with contextlib.suppress(MonitorLostError):  # a guest that has ended is nowhere
                await self._monitor().execute("announce-self", what)
