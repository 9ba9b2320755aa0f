"""What is recorded of the file of memory, found while that grows."""

from __future__ import annotations

from pathlib import Path

from entourage.hosts.digests import GrowingDigest
from entourage.hosts.flow import TRAILER
from entourage.hosts.growing import Following, Writeback
from entourage.hypervisors.saved.manifest import SavedFile, measured
from entourage.hypervisors.saved.written import WrittenFile


class Measuring:
    """The digest of memory's file, made as it grows, while the kernel writes that to the disk.

    Args:
        path: The file.
        said: Who writes it.
        far: A relay adds its trailer to it.
    """

    def __init__(self, path: Path, said: WrittenFile, *, far: bool) -> None:
        self._path = path
        self._grows = said.comes or bool(said.turns)
        self._told = said.comes
        self._digest = GrowingDigest(path, behind=TRAILER if far else 0, turns=said.turns)
        self._writeback: Writeback | None = None
        self._following: Following | None = None

    @property
    def passed(self) -> int:
        """Bytes of it that its digest is of already."""
        return self._digest.passed

    async def begin(self) -> None:
        """The file is soon made. One that is written in an order unknown is read at its end."""
        if not self._grows:
            return
        await self._digest.begin()
        self._writeback = Writeback(self._path)
        if not self._told:
            self._following = Following(self._path, self.written)

    def written(self, count: int) -> None:
        """So many bytes more are written, one after the other; from any thread."""
        self._digest.written(count)
        if self._writeback is not None:
            self._writeback.written(count)

    async def finish(self) -> SavedFile:
        """The file is whole; raises HypervisorError or OSError where it cannot be read."""
        self._end_threads()
        return await measured(self._path, self._digest)

    async def end(self) -> None:
        """Nobody wants it any more."""
        self._end_threads()
        await self._digest.end()

    def _end_threads(self) -> None:
        for one in (self._writeback, self._following):
            if one is not None:
                one.end()
