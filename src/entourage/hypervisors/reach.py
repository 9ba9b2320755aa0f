"""Where a target may have the source connect to: there, where it was asked to listen."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import unquote

from entourage.errors import HypervisorError
from entourage.hypervisors.values import DataPlane, LocalData

PRIVILEGED = 1024
"""Ports below it are those of the system's own services."""
NOT_OURS = "it is not the Entourage that it says it is, or an older one: look at that host"
"""The remedy, where a target names what it was not asked for."""


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
            remedy=NOT_OURS,
        )


def check_local(local: LocalData, uri: str) -> None:
    """See that memory that does not leave this host goes to the socket that was named for it.

    Args:
        local: What the other half was asked to listen at.
        uri: What it says that it listens at.

    Raises:
        HypervisorError: It is something else.
    """
    _check_socket(uri, {f"unix:{local.socket}"}, "memory")


def check_local_disk(local: LocalData, path: str, disk: str) -> None:
    """The same of a disk.

    Args:
        local: What the other half was asked to listen at.
        path: The socket that it says it listens at.
        disk: The disk's id.
    """
    _check_socket(path, {local.disk_socket(), local.disk_socket(disk)}, f"block/{disk}")


def _check_socket(said: str, asked: Collection[str], what: str) -> None:
    if said not in asked:
        raise HypervisorError(
            f"{what} is to go to {said!r}, and does not leave this host", remedy=NOT_OURS
        )


def image_of_save(plane: DataPlane, uuid: str, said: bytes) -> str:
    """The file that a hypervisor itself writes a machine into which is saved.

    Args:
        plane: How the data travels: to a save, whose directory is the name of the target.
        uuid: The domain's.
        said: What the other half says: the cookie of its ticket.

    Raises:
        HypervisorError: It is another file than that of this save: any other would be overwritten.
    """
    expected = f"{plane.host}.{uuid}.partial/memory"
    if not plane.host.startswith("/") or said != expected.encode():
        raise HypervisorError(
            f"memory is to be written to {said!r}, and not into the save", remedy=NOT_OURS
        )
    return expected


def check_host(plane: DataPlane, host: str, port: int | None, what: str) -> None:
    """The same where the target chooses the port by its own configuration.

    Args:
        plane: What the target was asked to listen at; without an address, it chooses that as well.
        host: The host that it names, as it stands in a URI.
        port: The port.
        what: What is to go there, for people.

    Raises:
        HypervisorError: It names another host, or the port of a system's service.
    """
    asked = plane.address
    if asked and asked.lower() not in {host.lower(), unquote(host).lower()}:
        raise HypervisorError(
            f"the target has {what} go to {host}, and was asked for {asked}", remedy=NOT_OURS
        )
    if port is None or port < PRIVILEGED:
        raise HypervisorError(
            f"the target has {what} go to {host} port {port}, and only ports from {PRIVILEGED} on"
            " can be its libvirt's",
            remedy=NOT_OURS,
        )
