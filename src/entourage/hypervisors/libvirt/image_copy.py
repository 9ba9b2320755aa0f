"""The file of memory that another machine is restored from, for as long as that takes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from entourage import durable
from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt import saveimage

_ENDS_WITHIN = 20.0  # seconds for one piece of memory to be copied


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
        self._stop = threading.Event()

    async def make(self, xml: str) -> Path:
        """Make it; where it is."""
        # On storage that may not be mounted: what is not seen there is not taken for removed.
        self._ledger.record("scratch", path=str(self._into), beside=str(self._file.parent))
        self._making = in_thread(saveimage.copy, self._file, self._into, xml, self._stop)
        try:
            await asyncio.shield(self._making)
        except OSError as error:
            raise HypervisorError(
                f"memory cannot be copied into {self._into}: {plain_words(error)}",
                remedy=what_to_do(error),
            ) from error
        return self._into

    async def remove(self) -> None:
        """It is not needed any more; again is no error.

        Raises:
            HypervisorError: It is left, and the ledger has it.
        """
        if self._making is None:
            return
        self._stop.set()
        await self._ended(self._making)
        removing = in_thread(durable.remove, self._into)
        await self._ended(removing)
        try:
            removing.result()
        except OSError as error:
            raise HypervisorError(
                f"{self._into} cannot be removed: {plain_words(error)}", remedy=what_to_do(error)
            ) from error

    async def _ended(self, doing: asyncio.Future[None]) -> None:
        await asyncio.wait({doing}, timeout=_ENDS_WITHIN)
        if not doing.done():
            raise HypervisorError(
                f"the storage of {self._into} has not answered for {_ENDS_WITHIN:g} s",
                remedy="see whether its server is there; `entourage recover` removes what is left",
            )
