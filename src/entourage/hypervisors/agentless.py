"""What else a hypervisor is asked where no Entourage is on its host: storage, and the network."""

from __future__ import annotations

from typing import Protocol

from entourage.hypervisors.values import NewVolume, Place

VOLUME = "volume"
"""The kind of a row of the ledger that only ``Agentless.delete_volume`` can undo; its ``path``."""


class Agentless(Protocol):
    """What an ``Incoming`` is asked besides where no Entourage is on the host that it builds on.

    Nobody can look at that host but its hypervisor, which is asked over the network. Every method
    raises HypervisorError where it says no, or cannot be reached.
    """

    async def place(self, path: str, beside: str = "") -> Place | None:
        """What is at a path there; None where the hypervisor has no storage pool of files there.

        Args:
            path: The path.
            beside: The name of a file to be looked for in the same directory.
        """
        ...

    async def make_volume(self, volume: NewVolume) -> None:
        """Make an image; one that is there already is an error."""
        ...

    async def delete_volume(self, path: str) -> None:
        """Delete an image; one that is gone is no error."""
        ...

    async def interfaces(self) -> frozenset[str]:
        """The host's bridges and interfaces; empty where the hypervisor does not say."""
        ...
