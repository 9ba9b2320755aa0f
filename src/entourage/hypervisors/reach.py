"""Where a target may have the source connect to: there, where it was asked to listen."""

from __future__ import annotations

from entourage.errors import HypervisorError
from entourage.hypervisors.values import DataPlane


def check_reach(plane: DataPlane, host: str, port: int, what: str) -> None:
    """See that a target names its own address, and a port of those that it was given.

    Args:
        plane: What the target was asked to listen at.
        host: The host that it names.
        port: The port.
        what: What is to go there, for people.

    Raises:
        HypervisorError: It names something else, which could be anybody's.
    """
    first, last = plane.ports
    if host != plane.address or not first <= port <= last:
        raise HypervisorError(
            f"the target has {what} go to {host} port {port}, and was asked for"
            f" {plane.address}, ports {first} to {last}",
            remedy="it is not the Entourage that it says it is, or an older one: look at that host",
        )
