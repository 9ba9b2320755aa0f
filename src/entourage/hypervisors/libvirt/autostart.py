"""Whether libvirtd starts a domain with its host, while that is about to belong elsewhere.

A host whose power is cut just as a domain was handed over would start it again, as soon as it is
on: beside the machine that was made of it elsewhere, on the same disks. So that is off before.
That it was on is noted first, for whoever brings the domain back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.arrival import sync_definitions
from entourage.hypervisors.libvirt.connection import RefusedError, ask
from entourage.hypervisors.libvirt.constants import NO_DOMAIN
from entourage.hypervisors.libvirt.notes import NotesFile


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What is noted of a domain that is to start with its host again."""


class Autostart:
    """That of one domain.

    Args:
        path: The file of what is noted; None: it ends with this process.
    """

    def __init__(self, path: Path | None) -> None:
        says = "that a domain is to start with its host again (`virsh autostart`)"
        self._notes: NotesFile[Held] = NotesFile(path, Held, says)
        self._held = False

    async def hold(self, raw: Any) -> bool:
        """Have a domain that has a definition not start; on the disk when this returns.

        Returns:
            Whether it did, and does again once it is given back.

        Raises:
            LostError, RefusedError: libvirt does not do it.
            HypervisorError: It cannot be noted.
        """
        if not await ask(raw.autostart):
            if self._held:  # libvirtd went away as it was told, and had done it
                await _synced()
                return True
            await self.forget()  # an older note's: its user has switched it off since
            return False
        await ask(self._notes.write, Held())
        self._held = True
        await ask(raw.setAutostart, 0)
        await _synced()
        return True

    async def give_back(self, raw: Any) -> None:
        """Have it start again, if it was kept from that; a domain without definition does not.

        Raises:
            LostError, RefusedError: libvirt does not do it.
            HypervisorError: What is noted cannot be read, or not be removed.
        """
        if await in_thread(self._notes.read) is None:
            return
        try:
            if raw is not None and await ask(raw.isPersistent):
                await ask(raw.setAutostart, 1)
        except RefusedError as error:
            if error.code != NO_DOMAIN:
                raise
        await _synced()
        await self.forget()

    async def forget(self) -> None:
        """It does not start here any more; raises HypervisorError where that cannot be written."""
        self._held = False
        await ask(self._notes.remove)


async def _synced() -> None:
    try:
        await ask(sync_definitions)
    except OSError as error:
        raise HypervisorError(
            f"whether it starts with its host is not on the disk: {plain_words(error)}",
            remedy=what_to_do(error),
        ) from error
