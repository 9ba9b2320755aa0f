"""What a device in a domain's XML names of the host, where that is more than one value of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias
from xml.etree import ElementTree as ET

from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.libvirt.domainxml import Lookups, pci_address

Parts: TypeAlias = Iterator[HostPart]

LOGS = ("/var/log/libvirt",)
CHARDEVS = frozenset({"serial", "parallel", "console", "channel", "redirdev", "smartcard"})
_QUIET_CHARDEVS = frozenset(
    {"null", "vc", "pty", "stdio", "spicevmc", "spiceport", "qemu-vdagent", "dbus"}
)
_CHARDEVS_WITH_SOURCE = frozenset({"file", "pipe", "dev", "unix", "tcp", "udp"})
_FORMATS = frozenset({"raw", "qcow2"})
IMAGE_KEYS = frozenset({"@file", "@dev", "@dir", "@name", "@pool", "@volume"})
BACKED = ("backingStore", "mirror", "dataStore")
_DISPLAYS = frozenset({"vnc", "spice", "egl-headless", "dbus", "rdp"})
_QUIET_AUDIO = frozenset({"", "none", "spice", "dbus"})
_OF_NETWORKS = frozenset({"network", "bridge", "direct", "hostdev"})
_MADE_UP = ("vnet", "macvtap", "macvlan")
"""With these begin the names of interfaces that libvirt chooses anew."""
_SOCKETS = re.compile(
    r"(/var/lib/libvirt/qemu|(/var)?/run/libvirt/qemu)/channel/(target/)?(?!\.)[^/]+/"
)


@dataclasses.dataclass(frozen=True, slots=True)
class At:
    """An element, and where it is.

    Attributes:
        path: The names of the elements down to it: ``devices/serial/source``.
        place: The same with numbers, for people.
        label: Of the device that it is part of.
        domain: Its domain's name.
    """

    element: ET.Element
    path: str
    place: str
    label: str
    domain: str
    lookups: Lookups

    def part(self, kind: Kind, name: str, below: str = "", **more: Any) -> HostPart:
        """One that is named here, or in what is ``below`` it."""
        place = "/".join(filter(None, (self.place, below)))
        return HostPart(kind=kind, name=name, place=place, device=self.label, **more)

    def other(self, name: str, below: str = "") -> HostPart:
        """One that the settings must name."""
        return self.part(Kind.OTHER, name, below)

    def get(self, key: str) -> str:
        """An attribute; empty where there is none."""
        return self.element.get(key, "")

    def sources(self) -> list[ET.Element]:
        """What it is connected to; one, in all that libvirt writes."""
        return self.element.findall("source")


def _disk(at: At) -> Parts:
    for key in ("rawio", "sgio"):
        if at.get(key) not in {"", "no", "filtered"}:
            yield at.other(f"libvirt:{key}", f"@{key}")
    yield from image(at)


def image(at: At) -> Parts:
    """A disk's image, or one below it, or one that it is copied to."""
    disk, kind = at.element, at.get("type")
    described = disk.find("driver" if disk.tag == "disk" else "format")
    image_format = described.get("type", "raw") if described is not None else "raw"
    read_only = disk.tag == "backingStore" or (
        disk.tag == "disk" and (disk.find("readonly") is not None or disk.get("device") == "cdrom")
    )
    if image_format not in _FORMATS:  # what is in it could name any other file
        yield at.other(f"format:{image_format}")
    for source in at.sources():
        for name, key in _images_of(source, kind, at.lookups):
            unlisted = key == "@volume" or name.startswith("/")
            if kind == "vhostvdpa" or key == "@dir" or not unlisted:
                yield at.other(name, f"source/{key}")
            else:
                yield at.part(
                    Kind.IMAGE, name, f"source/{key}",
                    format=image_format, written=not read_only,
                )  # fmt: skip


def _images_of(source: ET.Element, kind: str, lookups: Lookups) -> Iterator[tuple[str, str]]:
    for key in ("file", "dev", "dir"):
        if value := source.get(key):
            yield value, f"@{key}"
    if pool := source.get("pool"):
        volume = source.get("volume", "")
        yield lookups.volume(pool, volume) or f"volume:{pool}/{volume}", "@volume"
    if kind == "network":
        yield remote(source), "@name"
    if kind == "nvme":
        yield f"pci:{pci_address(source.find('address'))}", "address"


def remote(source: ET.Element) -> str:
    """``rbd:pool/image``, ``nbd:host:port/export``."""
    protocol, name = source.get("protocol", ""), source.get("name", "")
    if protocol == "rbd":
        return f"rbd:{name}"
    hosts = [
        ":".join(filter(None, (host.get("name", ""), host.get("port", ""))))
        for host in source.iterfind("host")
    ]
    return f"{protocol}:{','.join(hosts)}/{name}"


def chardev(at: At) -> Parts:
    """What a serial line, a channel or the like is connected to."""
    kind = at.get("type")
    if at.element.tag == "smartcard":
        if at.get("mode") != "passthrough":
            yield at.other(f"smartcard:{at.get('mode')}")
    elif kind not in _QUIET_CHARDEVS | _CHARDEVS_WITH_SOURCE:
        yield at.other(f"chardev:{kind}")
    target = at.element.find("target")
    named = target.get("name", "") if target is not None else ""
    for source in at.sources():
        if (path := source.get("path", "")) and not _is_own(source, kind, named):
            beneath = LOGS if kind == "file" else ()
            yield at.part(Kind.OTHER, path, "source/@path", beneath=beneath)
        if kind not in {"tcp", "udp"}:
            continue
        host, service = source.get("host", ""), source.get("service", "")
        if kind == "tcp" and source.get("mode") == "bind":
            yield at.part(Kind.PORT, service, "source/@service")
        else:
            yield at.other(f"{kind}:{host}:{service}", "source")


def _is_own(source: ET.Element, kind: str, named: str) -> bool:
    """A terminal, or a socket, that libvirt makes for this domain, and names by itself."""
    path = source.get("path", "")
    if kind == "pty":
        return re.fullmatch(r"/dev/pts/\d+", path) is not None
    found = _SOCKETS.match(path)
    listens = kind == "unix" and source.get("mode") == "bind"
    return bool(listens and named and found and path[found.end() :] == named)


def _interface(at: At) -> Parts:
    kind = at.get("type")
    keys = {"network": "network", "bridge": "bridge", "direct": "dev"}
    networks = [found.get("network", "") for found in at.sources() if found.get("network")]
    if networks and kind in _OF_NETWORKS:  # its type while it runs is what the network made of it
        for network in networks:
            yield at.part(Kind.NETWORK, network, "source/@network")
    elif kind in keys:
        for found in at.sources():
            yield at.part(Kind.NETWORK, found.get(keys[kind], ""), f"source/@{keys[kind]}")
            if kind == "direct" and found.get("mode") == "passthrough":
                yield at.other(f"passthrough:{found.get('dev', '')}", "source/@mode")
    elif kind == "hostdev":
        yield from _pci(at)
    elif kind not in {"null", "ethernet"}:
        yield at.other(f"interface:{kind}", "@type")
    # libvirt opens a tap by this name, and the kernel gives it one that is there and that nobody
    # uses (TUNSETIFF). It would be put on the NIC's bridge, and deleted in the end.
    for found in at.element.findall("target"):
        name, is_hosts = found.get("dev", ""), found.get("managed") == "no"
        if is_hosts:
            yield at.other(f"tap:{name}", "target/@managed")
        elif name and not name.startswith(_MADE_UP):
            yield at.part(Kind.TAP, name, "target/@dev")


def _pci(at: At) -> Parts:
    for source in at.sources():
        for address in source.iterfind("address"):
            yield at.other(f"pci:{pci_address(address)}", "source/address")


def _hostdev(at: At) -> Parts:
    kind = at.get("type") if at.get("mode") == "subsystem" else at.get("mode")
    found = 0
    for source in at.sources():
        for name in _hardware(source, kind):
            found += 1
            yield at.other(name, "source")
    if not found:
        yield at.other(f"hostdev:{kind}", "@type")


def _hardware(source: ET.Element, kind: str) -> Iterator[str]:
    addresses = source.findall("address")
    vendor, product, adapter = source.find("vendor"), source.find("product"), source.find("adapter")
    match kind:
        case "pci":
            yield from (f"pci:{pci_address(address)}" for address in addresses)
        case "usb":
            if vendor is not None and product is not None:
                ids = (int(each.get("id", "0"), 0) for each in (vendor, product))
                yield "usb:{:04x}:{:04x}".format(*ids)
            for address in addresses:
                yield f"usb:{int(address.get('bus', '0'))}.{int(address.get('device', '0'))}"
        case "mdev":
            yield from (f"mdev:{address.get('uuid', '')}" for address in addresses)
        case "scsi" if source.get("protocol"):
            yield remote(source)
        case "scsi":
            name = adapter.get("name", "") if adapter is not None else ""
            for at in addresses:
                yield f"scsi:{name}:{at.get('bus')}:{at.get('target')}:{at.get('unit')}"
        case "scsi_host":
            yield f"scsi_host:{source.get('wwpn', '')}"
        case _:
            pass


def _graphics(at: At) -> Parts:
    if (kind := at.get("type")) not in _DISPLAYS:  # others are windows on the host's own
        yield at.other(f"graphics:{kind}", "@type")
    ports = ("websocket",) if at.get("autoport") == "yes" else ("port", "tlsPort", "websocket")
    for key in ports:
        if at.get(key) not in {"", "-1", "0"}:
            yield at.part(Kind.PORT, at.get(key), f"@{key}")


def _audio(at: At) -> Parts:
    if at.get("type") not in _QUIET_AUDIO:
        yield at.other(f"audio:{at.get('type')}")


def _tpm(at: At) -> Parts:
    for backend in at.element.iterfind("backend"):
        if (kind := backend.get("type")) == "passthrough":
            device = backend.find("device")
            path = device.get("path", "") if device is not None else ""
            yield at.other(path or "/dev/tpm0", "backend")
        elif kind not in {"emulator", "external"}:
            yield at.other(f"tpm:{kind}", "backend/@type")


def _shmem(at: At) -> Parts:
    yield at.other(f"/dev/shm/{at.get('name')}", "@name")  # noqa: S108 - QEMU's


RULES: Mapping[str, Callable[[At], Parts]] = {
    "disk": _disk,
    "interface": _interface,
    "hostdev": _hostdev,
    "graphics": _graphics,
    "audio": _audio,
    "shmem": _shmem,
    "tpm": _tpm,
}
