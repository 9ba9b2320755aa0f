"""The file of memory that another machine is restored from, for as long as that takes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from entourage import durable
from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt import saveimage


class ImageCopy:
    """A copy of what libvirt has written, with another machine's XML in it; beside the save.

    Args:
        file: What libvirt has written.
        uuid: The other machine's.
        ledger: Takes the copy before it is made.
    """

    def __init__(self, file: Path, uuid: str, ledger: Ledger) -> None:
        self._file = file
        self._into = Path(f"{file.parent}.{uuid}.memory")
        self._ledger = ledger
        self._making: asyncio.Future[None] | None = None

    async def make(self, xml: str) -> Path:
        """Make it; where it is."""
        self._ledger.record("scratch", path=str(self._into))
        self._making = in_thread(saveimage.copy, self._file, self._into, xml)
        try:
            await asyncio.shield(self._making)
        except OSError as error:
            raise HypervisorError(
                f"memory cannot be copied into {self._into}: {plain_words(error)}",
                remedy=what_to_do(error),
            ) from error
        return self._into

    async def remove(self) -> None:
        """It is not needed any more; again is no error."""
        if self._making is not None:
            await asyncio.wait({self._making})
            await in_thread(durable.remove, self._into)
