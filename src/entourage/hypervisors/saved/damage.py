"""What of a save is no longer what was saved: all of it is read for its digests, once.

That takes as long as reading takes. So it goes on beside a restore, whose guest waits for it before
it may run.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from entourage.domain import Domain
from entourage.errors import HypervisorError, UsageError
from entourage.hosts.digests import NICE
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.lineage import lineage
from entourage.hypervisors.saved.manifest import MEMORY, Manifest, SavedFile
from entourage.hypervisors.saved.storage import Storage
from entourage.steps import Refusal

_KNOWN_WITHIN = 10.0  # seconds: what has failed is told then, by whatever is known of it
_File: TypeAlias = tuple[str, Path, SavedFile]
"""The label of a device, a file of the save that is of it, and what that was."""


class Damage:
    """That of one save.

    Args:
        directory: The save's.
        manifest: What it consists of.
        domain: The domain, with the places in the save of disks that were copied.
        storage: Where the save is.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, domain: Domain, storage: Storage
    ) -> None:
        self._directory = directory
        self._manifest = manifest
        self._domain = domain
        self._storage = storage
        self._looking: asyncio.Future[Sequence[Refusal]] | None = None

    def begin(self, nice: int = NICE) -> asyncio.Future[Sequence[Refusal]]:
        """Begin to read, unless that was begun; what was found comes of it.

        Args:
            nice: How far the programs that read stand back for others.
        """
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look(nice))
        return self._looking

    async def found(self) -> Sequence[Refusal]:
        """Files whose digests are not those that were saved."""
        return await asyncio.shield(self.begin())

    async def check(self) -> None:
        """Wait until all of it was read; raises HypervisorError for what differs."""
        if self._looking is None:
            raise HypervisorError("nothing is being restored")
        if found := await asyncio.shield(self._looking):
            raise told(found[0])

    async def at_fault(self) -> HypervisorError | None:
        """What differs, for who could not restore it; None where nothing does that is soon seen."""
        if self._looking is None or self._looking.cancelled():
            return None
        try:
            async with asyncio.timeout(_KNOWN_WITHIN):
                found = await asyncio.shield(self._looking)
        except (HypervisorError, TimeoutError):
            return None  # what has failed otherwise is told
        return told(found[0]) if found else None

    async def end(self) -> None:
        """Nobody wants to know."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self, nice: int) -> Sequence[Refusal]:
        files: list[_File] = [("memory", self._directory / MEMORY, self._manifest.memory)]
        for copy in self._manifest.copies:
            disk = next(one for one in self._domain.block if one.label == copy.device)
            files.append((copy.device, Path(disk.path), copy.file))
        try:
            below = await self._storage.do(lineage, self._directory, self._manifest)
            files += [(one.label, one.path, one.file) for one in below]
        except UsageError as error:
            return [refused(error)]
        host, found = socket.gethostname(), list[Refusal]()
        for (device, *_), problem in zip(files, await _problems(files, nice), strict=True):
            if problem is not None:
                found.append(Refusal(device, host, *problem))
        return found


async def _problems(files: Sequence[_File], nice: int) -> list[tuple[str, str] | None]:
    """What is wrong with each; as many are read at once as there are processors for."""
    at_once = asyncio.Semaphore(os.cpu_count() or 1)

    async def problem(path: Path, saved: SavedFile) -> tuple[str, str] | None:
        async with at_once:
            return await manifests.problem_of(path, saved, nice=nice)

    return await asyncio.gather(*(problem(path, saved) for _, path, saved in files))


def told(found: Refusal) -> HypervisorError:
    """The same, of one that is being restored already."""
    return HypervisorError(found.reason, device=found.device, host=found.host, remedy=found.remedy)


def refused(error: UsageError) -> Refusal:
    """What is wrong with the save as a whole."""
    return Refusal("domain", socket.gethostname(), error.message, error.remedy)
