"""Who tells the network where a libvirt domain's guest is: QEMU, by itself or when told to."""

from __future__ import annotations

from collections.abc import Sequence

from entourage.domain import Net
from entourage.hypervisors.libvirt.connection import RefusedError
from entourage.hypervisors.libvirt.handle import Handle

# RARP packets of QEMU's: how many, and when (ms).
_ANNOUNCEMENT = {"initial": 50, "max": 550, "rounds": 5, "step": 100}


class SourceAnnouncing:
    """The guest is back: QEMU has announced it at the target, and so must here again.

    libvirt has no word for it: see ``connection.tell_qemu``.

    Args:
        handle: The domain, as libvirtd has it.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def announce(self, nets: Sequence[Net]) -> None:
        """Have QEMU announce all of its NICs; a guest that has ended is nowhere."""
        if not nets or self._handle.raw is None:
            return
        try:
            await self._handle.tell_qemu("announce-self", **_ANNOUNCEMENT)
        except RefusedError:
            if await self._handle.is_there():
                raise


class TargetAnnouncing:
    """QEMU has announced them by itself when memory had landed."""

    async def announce(self, nets: Sequence[Net]) -> None:
        """Nothing is left to be told."""
