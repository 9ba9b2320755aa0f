"""The XML of a domain as it is to be on another host: other paths, bridges and networks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from entourage.domain import Block, Domain, Net
from entourage.hypervisors.libvirt.domainxml import Lookups, parse, source_path

# Where a network has put a NIC: the target's puts it elsewhere.
_OF_THE_NETWORK = ("bridge", "dev", "mode", "portid")


def differs(here: Domain, there: Domain) -> bool:
    """Whether anything of it must be another in the XML."""
    return any(True for _ in _changes(here, there))


def retarget(text: str, here: Domain, there: Domain, lookups: Lookups) -> str:
    """The same XML with the target's places in it.

    Args:
        text: Of the running domain, as libvirt migrates it, or of the definition it will be started
            from next time; what that does not have in common with the running one stays as it is.
        here: The domain on the source.
        there: The domain as it is to be.
        lookups: What the XML leaves to libvirt's other objects; each blocks.
    """
    root = parse(text)
    for old, new in _changes(here, there):
        match old, new:
            case Block(), Block():
                _move_disk(root, old, new, lookups)
            case Block(), None:
                _eject(root, old, lookups)
            case Net(), Net():
                _move_nic(root, old, new)
            case _:
                pass
    return ET.tostring(root, encoding="unicode")


def flat(text: str, disks: Collection[str]) -> str:
    """The same XML, with each of these disks one image by itself, without any below it.

    Args:
        text: The domain's.
        disks: What the guest sees them as.
    """
    if not disks:
        return text
    root = parse(text)
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None and target.get("dev") in disks:
            for below in disk.findall("backingStore"):
                disk.remove(below)
    return ET.tostring(root, encoding="unicode")


def _mac(nic: ET.Element) -> str:
    return _attribute(nic, "mac", "address").lower()


def _attribute(nic: ET.Element, tag: str, name: str) -> str:
    found = nic.find(tag)
    return "" if found is None else found.get(name, "")


def _changes(here: Domain, there: Domain) -> Iterator[tuple[Block | Net, Block | Net | None]]:
    """Each device that is another there, and as which; None for a drive that is empty there."""
    places = {disk.id: disk for disk in there.block}
    for disk in here.block:
        new = places.get(disk.id)
        if new is None or new.path != disk.path:
            yield disk, new
    for nic in here.net:
        other = there.device(nic.label)
        if isinstance(other, Net) and _place(other) != _place(nic):
            yield nic, other


def _place(nic: Net) -> tuple[str, str | None]:
    return ("", nic.network) if nic.attach == "network" else (nic.bridge, nic.tap)


def _move_disk(root: ET.Element, old: Block, new: Block, lookups: Lookups) -> None:
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or source is None or target.get("dev") != old.id:
            continue
        if source_path(disk, lookups) != old.path:
            continue  # the definition has another one there for the next start
        block = Path(new.path).is_relative_to("/dev") and not new.path.startswith("/dev/shm/")  # noqa: S108 - a disk's
        for key in ("file", "dev", "pool", "volume", "mode"):
            source.attrib.pop(key, None)
        disk.set("type", "block" if block else "file")
        source.set("dev" if block else "file", new.path)


def _eject(root: ET.Element, old: Block, lookups: Lookups) -> None:
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if target is None or (target.get("dev"), source_path(disk, lookups)) != (old.id, old.path):
            continue
        for tag in ("source", "backingStore"):
            for gone in disk.findall(tag):
                disk.remove(gone)


def _move_nic(root: ET.Element, old: Net, new: Net) -> None:
    key = {"network": "network", "bridge": "bridge", "direct": "dev"}.get(old.attach)
    was, then = (old.network, new.network) if old.attach == "network" else (old.bridge, new.bridge)
    for nic in root.iterfind("devices/interface"):
        source = nic.find("source")
        if source is None or _mac(nic) != (old.mac or "").lower():
            continue
        if key is not None and source.get(key) == was:
            source.set(key, then or "")
            for own in _OF_THE_NETWORK if old.attach == "network" else ():
                source.attrib.pop(own, None)
        target = nic.find("target")
        if old.tap and new.tap is None and target is not None:
            target.attrib.pop("dev", None)
