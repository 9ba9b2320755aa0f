"""Disks of a libvirt domain that are copied out of a save, before libvirt opens them."""

from __future__ import annotations

from pathlib import Path

from entourage import durable
from entourage.domain import Block
from entourage.errors import HypervisorError
from entourage.hosts.nbd import NbdServer
from entourage.hosts.resources import Ledger
from entourage.hosts.threads import in_thread
from entourage.hypervisors.values import Export, LocalData


class RestoredDisks:
    """Takes what is copied out of a save, into images that were made for it.

    Args:
        ledger: Takes processes and sockets before they are made.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._local: LocalData | None = None
        self._servers: list[tuple[Path, NbdServer]] = []

    def stands(self, local: LocalData) -> None:
        """From here on disks can be taken."""
        self._local = local

    async def export(self, disk: Block) -> Export:
        """Serve an image for the writes of the copy."""
        if self._local is None:
            raise HypervisorError("nothing is being restored", device=disk.label)
        where, path = self._local.disk_socket(disk.id), Path(disk.path)
        server = NbdServer(self._ledger, where)
        self._servers.append((path, server))
        await server.serve(path, disk.format, disk.id)
        return Export(host="", port=0, name=disk.id, socket=where)

    async def end(self) -> None:
        """All is copied: it is on the disk, and nobody has the images open, when this returns.

        Raises:
            HypervisorError: The storage does not answer.
            OSError: It fails.
        """
        while self._servers:
            path, server = self._servers[0]
            await server.end()
            if path.is_file():
                await in_thread(durable.sync_file, path)
            del self._servers[0]

    async def kill(self) -> None:
        """Nothing is taken any more, whatever was not written yet; again is no error."""
        while self._servers:
            await self._servers[0][1].kill()
            del self._servers[0]
