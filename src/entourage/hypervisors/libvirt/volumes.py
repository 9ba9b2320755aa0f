"""Volumes in the storage pools of a libvirt elsewhere: looked at, made and deleted by its own API.

Only pools of files count: those whose volumes lie in one directory under their names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree as ET

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt.connection import Connection, RefusedError, ask
from entourage.hypervisors.libvirt.constants import NO_VOLUME
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.values import NewVolume, Place

_KINDS = frozenset({"dir", "fs", "netfs"})
_ACTIVE = 2
_PREALLOCATE = 1
"""``VIR_STORAGE_VOL_CREATE_PREALLOC_METADATA``; of a qcow2 with all its room, that as well."""


async def look(connection: Connection, path: str, beside: str) -> Place | None:
    """See ``Agentless.place``."""

    def see() -> Place | None:
        pool = _pool_of(connection, path)
        if pool is None:
            return None
        volume = _volume(pool, PurePosixPath(path).name)
        return Place(
            pool=pool.UUIDString(),
            free=pool.info()[3],
            size=None if volume is None else volume.info()[1],
            marked=bool(beside) and _volume(pool, beside) is not None,
        )

    return await ask(see)


async def make(connection: Connection, volume: NewVolume) -> None:
    """See ``Agentless.make_volume``."""

    def create() -> bool:
        pool = _pool_of(connection, volume.path)
        if pool is None:
            return False
        flags = _PREALLOCATE if volume.allocated and volume.format == "qcow2" else 0
        pool.createXML(volume_xml(volume), flags)
        return True

    if not await ask(create):
        raise HypervisorError(f"the storage pool of {volume.path} has gone meanwhile")


async def delete(connection: Connection, path: str) -> None:
    """See ``Agentless.delete_volume``."""

    def remove() -> bool:
        pool = _pool_of(connection, path)
        if pool is None:
            return False
        volume = _volume(pool, PurePosixPath(path).name)
        if volume is not None:
            volume.delete(0)
        return True

    if not await ask(remove):
        raise HypervisorError(f"its storage pool is not active: {PurePosixPath(path).parent}")


async def refresh(connection: Connection, paths: Iterable[str]) -> None:
    """Have libvirt look anew at the pools that these files are, or were, in.

    Where it has no storage driver, or cannot look at one, it goes by what it has last seen.
    """
    one_of_each = {str(PurePosixPath(path).parent): path for path in paths}
    for path in one_of_each.values():
        with contextlib.suppress(RefusedError):
            await ask(_pool_of, connection, path)


def volume_xml(volume: NewVolume) -> str:
    """What libvirt makes such a volume from."""
    root = ET.Element("volume")
    ET.SubElement(root, "name").text = PurePosixPath(volume.path).name
    ET.SubElement(root, "capacity", unit="bytes").text = str(volume.size)
    allocation = volume.size if volume.allocated else 0
    ET.SubElement(root, "allocation", unit="bytes").text = str(allocation)
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", type=volume.format)
    if volume.format == "qcow2":
        ET.SubElement(target, "compat").text = "1.1"
        if volume.cluster_size is not None:
            ET.SubElement(target, "clusterSize", unit="B").text = str(volume.cluster_size)
    rights = ET.SubElement(target, "permissions")
    ET.SubElement(rights, "mode").text = f"{volume.mode:04o}"
    if volume.owner >= 0:
        ET.SubElement(rights, "owner").text = str(volume.owner)
        ET.SubElement(rights, "group").text = str(volume.group)
    if volume.backing is not None:
        below = ET.SubElement(root, "backingStore")
        ET.SubElement(below, "path").text = volume.backing
        ET.SubElement(below, "format", type=volume.backing_format or "raw")
    return ET.tostring(root, encoding="unicode")


def _pool_of(connection: Connection, path: str) -> Any:
    """The active pool whose directory the path is in, as it is now; None where there is none."""
    wanted = str(PurePosixPath(path).parent)
    for pool in connection.raw.listAllStoragePools(_ACTIVE):
        root = parse(pool.XMLDesc(0))
        there = root.findtext("target/path", "").rstrip("/") or "/"
        if root.get("type") in _KINDS and there == wanted:
            pool.refresh(0)  # libvirt goes by what it has last seen
            return pool
    return None


def _volume(pool: Any, name: str) -> Any:
    """A volume of a pool; None where there is none."""
    try:
        return pool.storageVolLookupByName(name)
    except Exception as error:
        code = getattr(error, "get_error_code", None)
        if code is not None and code() == NO_VOLUME:
            return None
        raise
