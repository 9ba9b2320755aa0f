"""What speaks against libvirt's copying of a disk, and what its XML must not have for that.

libvirt exports the disk from the target's QEMU by NBD and has the source's mirror it, as the guest
sees it: so what is written there is encrypted anew by the target, into an image that must be one
that is encrypted already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree as ET

from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.seams import Objection

EXPORTS_FROM_THREADS = 8_000_000
"""QEMU before it (seen with 7.2) aborts on the target as the export of such a disk ends."""


@dataclasses.dataclass(frozen=True, slots=True)
class Traits:
    """What of a disk matters for its copy.

    Attributes:
        removable: It is a CD or a floppy: the drive stays without its medium.
        encrypted: QEMU has the key, and the image is encrypted.
        optional: Its machine does without it on a host that has none.
    """

    removable: bool = False
    encrypted: bool = False
    optional: bool = False


def traits_of(root: ET.Element) -> Mapping[str, Traits]:
    """Of each disk of a domain, by what the guest sees it as."""
    found: dict[str, Traits] = {}
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None:
            found[target.get("dev", "")] = Traits(
                removable=disk.get("device") in {"cdrom", "floppy"},
                encrypted=bool([*disk.iterfind("encryption"), *source.iterfind("encryption")]),
                optional=source.get("startupPolicy") in {"optional", "requisite"},
            )
    return found


def objections(name: str, disk: str, path: str, traits: Traits, *, read: bool) -> list[Objection]:
    """What speaks against copying a disk.

    Args:
        name: The domain's.
        disk: What the guest sees the disk as.
        path: Of its image.
        traits: What is known of it.
        read: Whether the guest only reads it.
    """
    if read:
        eject = f"virsh change-media {name} {disk} --eject"
        remedy = f"copy {path} there" + (f", or {eject}" if traits.removable else "")
        reason = f"there is no {path} with the same content, and libvirt copies no such medium"
        return [(reason, remedy)]
    if traits.encrypted:
        reason = "it is encrypted (LUKS), and libvirt cannot make an encrypted image on the target"
        return [(reason, "put it on shared storage, or move the domain while it is off")]
    return []


def unthreaded(text: str, copied: Sequence[str], version: int) -> str:
    """The XML without the I/O threads of SCSI controllers that a disk is copied behind.

    The guest sees nothing of them; the definition keeps them for the next start.

    Args:
        text: The domain's, for the target.
        copied: The disks that are copied.
        version: Of the target's QEMU; 0 where that is not known.
    """
    if version >= EXPORTS_FROM_THREADS:
        return text
    root = parse(text)
    drivers = list(threaded(root, copied))
    for driver in drivers:
        driver.attrib.pop("iothread", None)
    return ET.tostring(root, encoding="unicode") if drivers else text


def threaded(root: ET.Element, disks: Sequence[str]) -> Iterator[ET.Element]:
    """The drivers of the SCSI controllers with an I/O thread behind which these disks are."""
    behind: set[str] = set()
    for disk in root.iterfind("devices/disk"):
        target, address = disk.find("target"), disk.find("address")
        if target is not None and address is not None and target.get("dev") in disks:
            behind |= {address.get("controller", "")} if target.get("bus") == "scsi" else set()
    for controller in root.iterfind("devices/controller[@type='scsi']"):
        driver = controller.find("driver")
        if driver is not None and driver.get("iothread") and controller.get("index") in behind:
            yield driver
