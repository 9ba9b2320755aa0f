"""Checkpoints of a libvirt domain, which incremental backups go by, are known again on its target.

Their bitmaps are in the disks, or travel with them. What libvirt knows of them goes to the target
in single values, and becomes libvirt's XML only there: XML from elsewhere would name what it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias
from xml.etree import ElementTree as ET

import msgspec
from msgspec import Meta

from entourage.hypervisors.libvirt.connection import bindings
from entourage.hypervisors.libvirt.constants import NO_SUPPORT
from entourage.hypervisors.libvirt.domainxml import parse

_TOPOLOGICAL = 1 << 1
_NO_DOMAIN = 1 << 1
_REDEFINE = 1 << 0


_Word: TypeAlias = Annotated[str, Meta(pattern=r"^[^/\x00-\x1f.][^/\x00-\x1f]{0,200}\Z")]
"""It becomes part of a file's name."""


class CheckpointDisk(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint has of one disk: the bitmap in which its changes since are written down."""

    name: str
    kind: Literal["no", "bitmap"]
    bitmap: str = ""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint.

    Attributes:
        name, description: Its own.
        parent: The one before it; empty for the first.
        created: When, in seconds since 1970.
        disks: What it has of each disk.
    """

    name: _Word
    description: str = ""
    parent: str = ""
    created: int = 0
    disks: tuple[CheckpointDisk, ...] = ()


def checkpoints_of(raw: Any) -> tuple[Checkpoint, ...]:
    """All of a domain, each after its parent; none where its libvirtd knows of no such thing."""
    try:
        found = raw.listAllCheckpoints(_TOPOLOGICAL)
        return tuple(read_checkpoint(each.getXMLDesc(_NO_DOMAIN)) for each in found)
    except bindings().libvirtError as error:
        if error.get_error_code() != NO_SUPPORT:
            raise
        return ()


def read_checkpoint(text: str) -> Checkpoint:
    """One, from libvirt's XML."""
    root = parse(text)
    return Checkpoint(
        name=root.findtext("name", ""),
        description=root.findtext("description", ""),
        parent=root.findtext("parent/name", ""),
        created=int(root.findtext("creationTime", "0")),
        disks=tuple(
            CheckpointDisk(
                name=disk.get("name", ""),
                kind="bitmap" if disk.get("checkpoint") == "bitmap" else "no",
                bitmap=disk.get("bitmap", ""),
            )
            for disk in root.iterfind("disks/disk")
        ),
    )


def checkpoint_xml(checkpoint: Checkpoint, domain: str) -> str:
    """The XML by which a libvirtd is told of a checkpoint that was made elsewhere.

    Args:
        checkpoint: The checkpoint.
        domain: The XML of the domain, as this libvirtd has it.
    """
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = checkpoint.name
    if checkpoint.description:
        ET.SubElement(root, "description").text = checkpoint.description
    if checkpoint.parent:
        ET.SubElement(ET.SubElement(root, "parent"), "name").text = checkpoint.parent
    ET.SubElement(root, "creationTime").text = str(checkpoint.created)
    disks = ET.SubElement(root, "disks")
    for disk in checkpoint.disks:
        said = {"name": disk.name, "checkpoint": disk.kind}
        ET.SubElement(disks, "disk", said | ({"bitmap": disk.bitmap} if disk.bitmap else {}))
    root.append(parse(domain))
    return ET.tostring(root, encoding="unicode")


def redefine(raw: Any, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Have a libvirtd know a domain's checkpoints; those it knows already are no error.

    Returns:
        What could not be done, each a sentence.
    """
    problems: list[str] = []
    if not checkpoints:
        return problems
    try:
        domain = raw.XMLDesc(0)
        known = {each.getName() for each in raw.listAllCheckpoints(0)}
    except bindings().libvirtError as error:
        return [f"its checkpoints are not known here: {error}"]
    for checkpoint in checkpoints:
        if checkpoint.name in known:
            continue
        try:
            raw.checkpointCreateXML(checkpoint_xml(checkpoint, domain), _REDEFINE)
        except bindings().libvirtError as error:
            problems.append(f"the checkpoint {checkpoint.name} is not known here: {error}")
    return problems
