"""Another machine that is made of a libvirt domain's save: its XML, and what keeps it from that.

libvirt restores no file whose XML has another UUID or MAC than it is given beside it. So the file
is copied with the other one's XML in it (``saveimage.py``), and restored as any.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from entourage.domain import Domain
from entourage.hypervisors.libvirt.domainxml import parse, read_domain

VARIABLES = "/var/lib/libvirt/qemu/nvram"
_LINES = frozenset(
    {"serial", "parallel", "console", "channel", "redirdev", "smartcard", "rng", "tpm"}
)
_MADE_ANEW = frozenset({"pty", "dev", "spicevmc"})
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
    for file in _files(root):
        key = "path" if file.tag == "source" else "file"
        file.set(key, own_place(file.get(key, ""), first.name, there.name))
    for variables in root.iterfind("os/nvram"):
        place = variables_of(there)
        source = variables.find("source")
        if source is not None:
            source.set("file", place)
        else:
            variables.text = place
    return ET.tostring(root, encoding="unicode")


def variables_of(domain: Domain) -> str:
    """Where libvirt has a domain's UEFI variables, unless its XML says otherwise."""
    return f"{VARIABLES}/{domain.name}_VARS.fd"


def own_place(path: str, first: str, name: str) -> str:
    """Where the other one has a file or socket; where the first has it, if that is not named so."""
    place = Path(path)
    return str(place.with_name(place.name.replace(first, name)))


def _files(root: ET.Element) -> Iterator[ET.Element]:
    """What says where a line of the guest's is taken on the host, and where it is logged."""
    for device in root.iterfind("devices/*"):
        source, log = device.find("source"), device.find("log")
        is_line = device.tag in _LINES and device.get("type") not in _MADE_ANEW
        if is_line and source is not None and source.get("path"):
            yield source
        if log is not None and log.get("file"):
            yield log


def only_one_can_have(text: str, there: Domain) -> Iterator[tuple[str, str]]:
    """What of the host the first one has for itself, and a remedy; and what nobody can tell of.

    Args:
        text: Its XML, as ``looks.facts`` has it.
        there: The other one. Looks for what would be its files. Blocks.
    """
    root = parse(text)
    first = root.findtext("name", "")
    for file in _files(root):
        path = file.get("path") or file.get("file") or ""
        own = own_place(path, first, there.name)
        if own == path:
            yield f"a line of its guest's has the place {path}, which is the first one's", _REMEDY
        elif os.path.lexists(own):
            yield f"a line of its guest's is to be in {own}, which is there already", _MOVE
    if root.find("os/nvram") is not None and os.path.lexists(place := variables_of(there)):
        yield f"there are UEFI variables in {place} already", _MOVE
    for device in root.iterfind("devices/*"):
        yield from _places(device)
    for disk in root.iterfind("devices/disk"):
        if disk.get("type") not in {"file", "block", "volume"} and disk.find("source") is not None:
            yield "it has a disk on the network, which stays with the first one", _REMEDY


def _places(device: ET.Element) -> Iterator[tuple[str, str]]:
    kind = f"{device.tag} of type {device.get('type')}" if device.get("type") else device.tag
    source = device.find("source")
    if device.tag in {"hostdev", "shmem", "lease"}:
        yield f"it has a {kind}, which is the first one's", _REMEDY
    service = source.get("service") if source is not None and device.tag in _LINES else None
    if service:
        yield f"its {kind} is at port {service}, which is the first one's", _REMEDY
    if device.tag == "graphics":
        fixed = device.get("port", "-1") != "-1" and device.get("autoport") != "yes"
        if fixed or device.get("socket"):
            place = device.get("socket") or f"port {device.get('port')}"
            yield f"its {kind} is at {place}, which is the first one's", _REMEDY
    cid = device.find("cid")
    if device.tag == "vsock" and cid is not None and cid.get("auto") != "yes":
        yield f"its vsock has the number {cid.get('address')}, which is the first one's", _REMEDY


def _set(root: ET.Element, tag: str, text: str) -> None:
    for found in root.findall(tag):
        found.text = text
