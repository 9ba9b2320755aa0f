"""The XML of a domain as it is to be on another host: other paths, bridges and networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from entourage.domain import Block, Domain, Net
from entourage.hypervisors.libvirt.domainxml import parse


def differs(here: Domain, there: Domain) -> bool:
    """Whether anything of it must be another in the XML."""
    return any(True for _ in _changes(here, there))


def retarget(text: str, here: Domain, there: Domain) -> str:
    """The same XML with the target's places in it.

    Args:
        text: Of the running domain, or of the definition it will be started from next time; what
            that does not have in common with the running one stays as it is.
        here: The domain on the source.
        there: The domain as it is to be.
    """
    root = parse(text)
    for old, new in _changes(here, there):
        match old, new:
            case Block(), Block():
                _move_disk(root, old, new)
            case Net(), Net():
                _move_nic(root, old, new)
            case _:
                pass
    return ET.tostring(root, encoding="unicode")


def _changes(here: Domain, there: Domain) -> Iterator[tuple[Block | Net, Block | Net]]:
    for disk in here.block:
        new = there.device(disk.label)
        if isinstance(new, Block) and new.path != disk.path:
            yield disk, new
    for nic in here.net:
        other = there.device(nic.label)
        if isinstance(other, Net) and _place(other) != _place(nic):
            yield nic, other


def _place(nic: Net) -> tuple[str, str | None]:
    return ("", nic.network) if nic.attach == "network" else (nic.bridge, nic.tap)


def _move_disk(root: ET.Element, old: Block, new: Block) -> None:
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is None or source is None or target.get("dev") != old.id:
            continue
        block = Path(new.path).is_relative_to("/dev") and not new.path.startswith("/dev/shm/")  # noqa: S108 - a disk's
        for key in ("file", "dev", "pool", "volume", "mode"):
            source.attrib.pop(key, None)
        disk.set("type", "block" if block else "file")
        source.set("dev" if block else "file", new.path)


def _move_nic(root: ET.Element, old: Net, new: Net) -> None:
    for nic in root.iterfind("devices/interface"):
        mac, source = nic.find("mac"), nic.find("source")
        if (
            source is None
            or mac is None
            or mac.get("address", "").lower() != (old.mac or "").lower()
        ):
            continue
        match old.attach:
            case "network":
                source.attrib.clear()
                source.set("network", new.network or "")
            case "bridge":
                source.set("bridge", new.bridge)
            case "direct":
                source.set("dev", new.bridge)
            case "other":
                pass
        target = nic.find("target")
        if old.tap and new.tap is None and target is not None:
            target.attrib.pop("dev", None)
