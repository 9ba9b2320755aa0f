"""Another machine that is made of a libvirt domain's save: its XML, and what keeps it from that.

libvirt restores no file whose XML has another UUID or MAC than it is given beside it. So the file
is copied with the other one's XML in it (``saveimage.py``), and restored as any.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from entourage.domain import Domain
from entourage.hypervisors.libvirt.domainxml import parse, read_domain
from entourage.hypervisors.libvirt.needs import CHARDEVS, LIBVIRTS_OWN, values

VARIABLES = "/var/lib/libvirt/qemu/nvram"
_LINES = frozenset({*CHARDEVS, "rng", "tpm"})
_MADE = frozenset({"file", "unix"})
_MADE_ANEW = frozenset({"", "pty", "spicevmc", "spiceport", "vc", "null", "stdio", "emulator"})
_ITS_OWN = {
    "devices/memory/source/path": "what a memory module is backed by",
    "os/varstore/@path": "its file of UEFI variables",
}
_MADE_FOR_IT = re.compile(r"/var/lib/libvirt/qemu/domain-[^/]+/")
"""The directory that libvirt makes for a domain as it starts."""
_MOVE = "choose another name, or move it away"
_REMEDY = "no other machine can be made of one that has it"


def renamed(text: str, there: Domain) -> str:
    """The first one's XML with the other one's name, UUID, MACs, and place for UEFI's variables.

    A domain with a ``<genid>`` gets a new one, by which its guest knows that it is a copy.

    Args:
        text: The first one's, with the other one's places in it already.
        there: The other one.
    """
    root = parse(text)
    first = read_domain(text)
    macs = {nic.mac: other.mac for nic, other in zip(first.net, there.net, strict=True)}
    _set(root, "name", there.name)
    _set(root, "uuid", str(there.uuid))
    _set(root, "genid", str(uuid.uuid4()))
    for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):
        entry.text = str(there.uuid)
    for mac in root.iterfind("devices/interface/mac"):
        mac.set("address", macs.get(mac.get("address")) or mac.get("address", ""))
    for device, file in _files(root):
        key = "path" if file.tag == "source" else "file"
        path = file.get(key, "")
        if _is_placed(device, file):
            del file.attrib[key]  # libvirt makes a place of its own for each domain
        else:
            file.set(key, own_place(path, first.name, there.name))
    for variables in root.iterfind("os/nvram"):
        place = variables_of(there)
        source = variables.find("source")
        if source is not None:
            source.set("file", place)
        else:
            variables.text = place
    return ET.tostring(root, encoding="unicode")


def made_for(text: str) -> Iterator[str]:
    """The files and sockets that libvirt and QEMU make for such a machine, and leave when it ends.

    Args:
        text: Its XML, as ``renamed`` has it.
    """
    root = parse(text)
    for device, file in _files(root):
        path = file.get("path" if file.tag == "source" else "file", "")
        if path and not _is_placed(device, file):
            yield path
    for variables in root.iterfind("os/nvram"):
        source = variables.find("source")
        yield (source.get("file", "") if source is not None else variables.text) or ""


def variables_of(domain: Domain) -> str:
    """Where libvirt has a domain's UEFI variables, unless its XML says otherwise."""
    return variables_of_name(domain.name)


def variables_of_name(name: str) -> str:
    """The same of a domain of that name."""
    return f"{VARIABLES}/{name}_VARS.fd"


def own_place(path: str, first: str, name: str) -> str:
    """Where the other one has a file or socket; where the first has it, if that is not named so."""
    place = Path(path)
    return str(place.with_name(place.name.replace(first, name)))


def _files(root: ET.Element) -> Iterator[tuple[ET.Element, ET.Element]]:
    """The devices with a line of the guest's, and what says where it is made, and is logged."""
    for device in root.iterfind("devices/*"):
        source, log = device.find("source"), device.find("log")
        if source is not None and source.get("path") and _is_made(device, source):
            yield device, source
        if log is not None and log.get("file"):
            yield device, log


def _is_placed(device: ET.Element, file: ET.Element) -> bool:
    """Whether libvirt finds a place for it where it has none: for a virtio channel's socket alone.

    A log, and any other line, has none then, wherever the first one's is.
    """
    target = device.find("target")
    kind = device.tag, device.get("type"), target.get("type") if target is not None else ""
    is_own = LIBVIRTS_OWN.match(file.get("path", "")) is not None
    return file.tag == "source" and kind == ("channel", "unix", "virtio") and is_own


def _is_made(device: ET.Element, source: ET.Element) -> bool:
    """Whether a line's place is made for it; else it is somebody's that it connects to."""
    made = device.tag in _LINES and device.get("type") in _MADE
    return made and source.get("mode") != "connect"


def only_one_can_have(text: str, there: Domain) -> Iterator[tuple[str, str]]:
    """What of the host the first one has for itself, and a remedy; and what nobody can tell of.

    Args:
        text: Its XML, as ``looks.facts`` has it.
        there: The other one. Looks for what would be its files. Blocks.
    """
    root = parse(text)
    first = root.findtext("name", "")
    for device, file in _files(root):
        path = file.get("path") or file.get("file") or ""
        own = own_place(path, first, there.name)
        if _is_placed(device, file):
            continue
        if own == path:
            yield f"a line of its guest's has the place {path}, which is the first one's", _REMEDY
        elif os.path.lexists(own):
            yield f"a line of its guest's is to be in {own}, which is there already", _MOVE
    if root.find("os/nvram") is not None and os.path.lexists(place := variables_of(there)):
        yield f"there are UEFI variables in {place} already", _MOVE
    for where, what in _ITS_OWN.items():
        for path in values(root, where):
            yield f"{what}, {path}, is the first one's", _REMEDY
    for device in root.iterfind("devices/*"):
        yield from _places(device)
    for disk in root.iterfind("devices/disk"):
        if disk.get("type") not in {"file", "block", "volume"} and disk.find("source") is not None:
            yield "it has a disk on the network, which stays with the first one", _REMEDY


def _places(device: ET.Element) -> Iterator[tuple[str, str]]:
    kind = f"{device.tag} of type {device.get('type')}" if device.get("type") else device.tag
    if device.tag in {"hostdev", "shmem", "lease"}:
        yield f"it has a {kind}, which is the first one's", _REMEDY
    if device.tag in _LINES:
        yield from _line(device, kind)
    if device.tag == "graphics" and (place := _display(device)):
        yield f"its {kind} is at {place}, which is the first one's", _REMEDY
    cid = device.find("cid")
    if device.tag == "vsock" and cid is not None and cid.get("auto") != "yes":
        yield f"its vsock has the number {cid.get('address')}, which is the first one's", _REMEDY


def _line(device: ET.Element, kind: str) -> Iterator[tuple[str, str]]:
    for source in device.iter("source"):
        if service := source.get("service"):
            yield f"its {kind} is at port {service}, which is the first one's", _REMEDY
        path = source.get("path")
        anew = device.get("type", "") in _MADE_ANEW and device.tag in CHARDEVS
        if path and not anew and not _is_made(device, source):
            yield f"its {kind} is connected to {path}, which is the first one's", _REMEDY


def _display(device: ET.Element) -> str:
    """Where a display is always; empty where libvirt finds it a place."""
    places = [device.get("socket"), *(one.get("socket") for one in device.iterfind("listen"))]
    if device.get("autoport") != "yes":
        ports = (device.get(key, "-1") for key in ("port", "tlsPort", "websocket"))
        places += [f"port {port}" for port in ports if port != "-1"]
    return next((place for place in places if place and not _MADE_FOR_IT.match(place)), "")


def _set(root: ET.Element, tag: str, text: str) -> None:
    for found in root.findall(tag):
        found.text = text
