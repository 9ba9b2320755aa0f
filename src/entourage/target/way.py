"""The target's part in proving, at TEST, that memory and disks will get here."""

from __future__ import annotations

from entourage import messages
from entourage.hosts.allowed import Allowed
from entourage.hosts.dataway import Awaited
from entourage.hypervisors.base import Incoming


class WayProof:
    """Listens for a source's proof; one at a time.

    Args:
        allowed: What the source may ask for here.
    """

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._awaited: Awaited | None = None

    async def begin(self, incoming: Incoming, way: messages.Way) -> messages.WayAwaited:
        """Listen as memory and disks will be listened for.

        Raises:
            NotAllowed: These ports may not be used here.
            HypervisorError: Nothing can listen there.
        """
        await self.close()
        self._allowed.ports(*way.ports)
        ports = await incoming.data_ports(way.address, way.ports)
        if ports is None or not way.address:
            return messages.WayAwaited(range=ports)
        self._awaited = awaited = await Awaited.open(way.address, ports, way.connections)
        return messages.WayAwaited(ports=awaited.ports, range=ports, token=awaited.token)

    async def close(self) -> None:
        """Listen no longer: the ports are free when this returns."""
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            await awaited.close()
