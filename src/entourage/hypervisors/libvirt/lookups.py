"""What a domain's XML leaves to other objects of its libvirtd."""

from __future__ import annotations

from entourage.hypervisors.libvirt.connection import Connection, bindings
from entourage.hypervisors.libvirt.domainxml import Lookups


def lookups_of(connection: Connection) -> Lookups:
    """Volumes of its pools and bridges of its networks; each lookup blocks."""
    libvirt = bindings()

    def volume(pool: str, name: str) -> str:
        try:
            return str(
                connection.raw.storagePoolLookupByName(pool).storageVolLookupByName(name).path()
            )
        except libvirt.libvirtError:
            return ""

    def bridge(name: str) -> str:
        try:
            return str(connection.raw.networkLookupByName(name).bridgeName())
        except libvirt.libvirtError:
            return ""

    return Lookups(volume=volume, bridge=bridge)
