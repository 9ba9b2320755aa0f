"""The target's part in proving, at TEST, that memory and disks will get here."""

from __future__ import annotations

import asyncio

from entourage import messages
from entourage.errors import UsageError
from entourage.hosts.allowed import Allowed
from entourage.hosts.dataway import TOKEN, Awaited
from entourage.hypervisors.base import Incoming


class WayProof:
    """Listens for a source's proof; one at a time, and none once the migration is open.

    Args:
        allowed: What the source may ask for here.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._awaited: Awaited | None = None
        self._one_by_one = asyncio.Lock()
        self._over = False

    async def begin(self, incoming: Incoming, way: messages.Way) -> messages.WayAwaited:
        """Listen as memory and disks will be listened for.

        Raises:
            NotAllowed: These ports may not be used here.
            HypervisorError: Nothing can listen there.
            UsageError: The migration is open.
        """
        async with self._one_by_one:
            await self._close()
            self._allowed.ports(*way.ports)
            if self._over or (way.address and len(way.token) != TOKEN):
                raise UsageError("the way is proven before the migration is open, with a token")
            ports = await incoming.data_ports(way.address, way.ports)
            offers = dict(await incoming.offers())
            if ports is None or not way.address:
                return messages.WayAwaited(range=ports, offers=offers)
            self._awaited = awaited = await Awaited.open(
                way.address, ports, way.connections, way.token
            )
            return messages.WayAwaited(ports=awaited.ports, range=ports, offers=offers)

    async def close(self) -> None:
        """Listen no longer, and never again: the ports are free when this returns."""
        self._over = True
        async with self._one_by_one:
            await self._close()

    async def _close(self) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            await awaited.close()
