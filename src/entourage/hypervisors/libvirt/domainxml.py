"""A domain as libvirt's XML describes it, as one of ours.

Only what needs a step of its own, or may be refused, becomes a device: disks, NICs, the TPM,
devices of the host's own, filesystems and redirected USB. All else is part of the machine, and
libvirt carries it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast
from xml.etree import ElementTree as ET

from entourage.domain import Block, Boot, Domain, Net, Pci, Tpm, Usb
from entourage.errors import HypervisorError
from entourage.hypervisors.side import NAMESPACE
from entourage.hypervisors.understood import checked, understood

_UNITS: Mapping[str, int] = {
    "b": 1, "bytes": 1,
    "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10,
    "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20,
    "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30,
    "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip
_NIC_MODELS: Mapping[str, Literal["virtio-net", "e1000e"]] = {
    "virtio": "virtio-net", "virtio-net-pci": "virtio-net", "e1000e": "e1000e",
}  # fmt: skip
_MAX_INTERFACE = 15
_MOST = 1 << 60  # bytes of memory
_FIRMWARE = tuple(Path("/usr/share", name) for name in ("qemu", "seabios", "qemu-kvm", "OVMF"))
"""Where QEMU looks for a loader without a directory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lookups:
    """What the XML leaves to libvirt's other objects.

    Attributes:
        volume: The path of a volume, by pool and name; empty where there is none.
        bridge: The bridge of a network, by its name; empty where it has none.
    """

    volume: Callable[[str, str], str] = lambda _pool, _name: ""
    bridge: Callable[[str], str] = lambda _name: ""


def parse(text: str) -> ET.Element:
    """The root of an XML text of libvirt's; raises HypervisorError where it is none."""
    try:
        return ET.fromstring(text)  # noqa: S314 - libvirtd's, which we trust with the machine
    except ET.ParseError as error:
        raise HypervisorError(f"libvirt's XML cannot be read: {error}") from error


def read_domain(text: str, lookups: Lookups = Lookups()) -> Domain:
    """The domain that an XML text describes.

    Raises:
        HypervisorError: It has something in it that cannot be expressed (its name, say).
    """
    root = parse(text)
    with understood("the domain's XML", "see it with `virsh dumpxml`"):
        domain = _domain(root, lookups)
    return checked(domain, "virsh")


def _domain(root: ET.Element, lookups: Lookups) -> Domain:
    machine = root.find("os/type")
    cpu = root.find("cpu")
    return Domain(
        name=root.findtext("name", ""),
        uuid=root.findtext("uuid", ""),
        memory=size_of(root.find("memory")),
        vcpus=_vcpus(root),
        machine=(machine.get("machine", "") if machine is not None else "") or "none",
        cpu=_cpu(cpu),
        accel="kvm" if root.get("type") == "kvm" else "tcg",
        boot=Boot(
            firmware=_firmware(root.findtext("os/loader")),
            kernel=root.findtext("os/kernel") or None,
            initrd=root.findtext("os/initrd") or None,
            cmdline=root.findtext("os/cmdline") or None,
        ),
        block=tuple(_disks(root, lookups)),
        net=tuple(_nics(root, lookups)),
        tpm=tuple(_tpms(root)),
        usb=tuple(_usbs(root)),
        pci=tuple(_pcis(root)),
    )


def _firmware(loader: str | None) -> str | None:
    """The file of a loader; None where it is one of QEMU's own, and not to be found here.

    That of a domain which is off may have no name yet: libvirt chooses one at its start.
    """
    if not loader or loader.startswith("/"):
        return loader or None
    found = (directory / loader for directory in _FIRMWARE if (directory / loader).is_file())
    return next((str(path) for path in found), None)


def side_text(text: str) -> str:
    """What a user wrote for Entourage into the domain's metadata; empty where that is nothing."""
    found = parse(text).find(f"metadata/{{{NAMESPACE}}}devices")
    return "" if found is None or found.text is None else found.text


def size_of(element: ET.Element | None) -> int:
    """Bytes, as libvirt writes an amount of memory; a MiB where it says none.

    Raises:
        ValueError: It is no number, or more than any machine has.
    """
    if element is None or element.text is None:
        return 1 << 20
    size = int(element.text) * _UNITS.get(element.get("unit", "KiB"), 1 << 10)
    if size > _MOST:
        raise ValueError(f"{element.text} is more memory than any machine has")
    return size


def _vcpus(root: ET.Element) -> int:
    vcpu = root.find("vcpu")
    return 1 if vcpu is None else int(vcpu.get("current") or vcpu.text or 1)


def _cpu(cpu: ET.Element | None) -> str | None:
    if cpu is None:
        return None
    mode = cpu.get("mode", "custom")
    if mode in {"host-passthrough", "maximum"}:
        return "host" if mode == "host-passthrough" else "max"
    return cpu.findtext("model") or None


def source_path(disk: ET.Element, lookups: Lookups) -> str:
    """Where a disk's image is on this host; empty where it is no file or device of it."""
    source = disk.find("source")
    if source is None:
        return ""
    match disk.get("type"):
        case "file":
            return source.get("file", "")
        case "block":
            return source.get("dev", "")
        case "volume":
            return lookups.volume(source.get("pool", ""), source.get("volume", ""))
        case _:
            return ""


def _disks(root: ET.Element, lookups: Lookups) -> Iterator[Block]:
    """Disks on this host's files and devices; libvirt's network storage needs nobody's help."""
    for disk in root.iterfind("devices/disk"):
        path = source_path(disk, lookups)
        target, driver = disk.find("target"), disk.find("driver")
        in_pool = disk.get("type") == "volume" and not path.startswith("/")  # of rbd, say
        if not path or in_pool or target is None:
            continue
        read_only = disk.find("readonly") is not None or disk.get("device") == "cdrom"
        kind = driver.get("type", "raw") if driver is not None else "raw"
        cache = driver.get("cache", "") if driver is not None else ""
        bus = target.get("bus", "")
        yield Block(
            id=target.get("dev", ""),
            path=path,
            format="qcow2" if kind == "qcow2" else "raw",
            readonly=read_only,
            shared="yes" if disk.find("shareable") is not None else "auto",
            cache=cast("Any", cache if cache in {"none", "writeback"} else "auto"),
            serial=disk.findtext("serial"),
            model="virtio-blk" if bus == "virtio" else "other",
        )


def _nics(root: ET.Element, lookups: Lookups) -> Iterator[Net]:
    for number, nic in enumerate(root.iterfind("devices/interface")):
        kind = nic.get("type", "")
        source, mac, mtu = nic.find("source"), nic.find("mac"), nic.find("mtu")
        said: Mapping[str, str] = source.attrib if source is not None else {}
        model = nic.find("model")
        network = said.get("network")
        attach: Literal["bridge", "network", "direct", "other"]
        match kind:
            case _ if network:  # while it runs, its type is what the network made of it
                own = said.get("bridge") or said.get("dev")
                attach, bridge = "network", own or lookups.bridge(network)
            case "bridge":
                attach, bridge = "bridge", said.get("bridge", "")
            case "direct":
                attach, bridge = "direct", said.get("dev", "")
            case _:
                attach, bridge = "other", kind
        yield Net(
            id=f"net{number}",
            bridge=(bridge or "none")[:_MAX_INTERFACE],
            attach=attach,
            network=network,
            mac=mac.get("address") if mac is not None else None,
            model=_NIC_MODELS.get(model.get("type", "") if model is not None else "", "other"),
            mtu=int(mtu.get("size", "1500")) if mtu is not None else None,
            tap=_own_tap(nic),
        )


def _own_tap(nic: ET.Element) -> str | None:
    """The tap's name where the user chose it: those that libvirt makes up are no one's."""
    target = nic.find("target")
    name = target.get("dev", "") if target is not None else ""
    return None if not name or name.startswith(("vnet", "macvtap", "macvlan")) else name


def _tpms(root: ET.Element) -> Iterator[Tpm]:
    for number, tpm in enumerate(root.iterfind("devices/tpm")):
        backend = tpm.find("backend")
        said = backend.attrib if backend is not None else {}
        device = backend.find("device") if backend is not None else None
        source = backend.find("source") if backend is not None else None
        model, kind = tpm.get("model", ""), said.get("type", "")
        yield Tpm(
            id=f"tpm{number}",
            version="1.2" if said.get("version") == "1.2" else "2.0",
            model=cast("Any", model if model in {"tpm-crb", "tpm-tis"} else "other"),
            type=cast("Any", kind if kind in {"emulator", "external"} else "passthrough"),
            path=device.get("path") if device is not None else None,
            socket=source.get("path") if source is not None and kind == "external" else None,
        )


def _usbs(root: ET.Element) -> Iterator[Usb]:
    for number, device in enumerate(_hosts_own(root, "usb")):
        vendor, product = device.find("source/vendor"), device.find("source/product")
        yield Usb(
            id=f"usb{number}",
            vendor=int(vendor.get("id", "0"), 0) if vendor is not None else 0,
            product=int(product.get("id", "0"), 0) if product is not None else 0,
        )
    for number, _ in enumerate(root.iterfind("devices/redirdev")):
        yield Usb(id=f"redir{number}", model="usb-redir")


def _pcis(root: ET.Element) -> Iterator[Pci]:
    for number, device in enumerate(_hosts_own(root, "pci")):
        at = device.find("source/address")
        yield Pci(id=f"pci{number}", host=pci_address(at))
    for number, device in enumerate(root.iterfind("devices/hostdev")):
        if device.get("type") not in {"usb", "pci"}:
            yield Pci(id=f"hostdev{number}", model=f"{device.get('type') or 'other'}-hostdev")
    for number, device in enumerate(root.iterfind("devices/filesystem")):
        driver = device.find("driver")
        kind = driver.get("type", "") if driver is not None else ""
        yield Pci(id=f"fs{number}", model="virtiofs" if kind == "virtiofs" else "virtio-9p")


def _hosts_own(root: ET.Element, kind: str) -> list[ET.Element]:
    return [each for each in root.iterfind("devices/hostdev") if each.get("type") == kind]


def pci_address(at: ET.Element | None) -> str:
    """``0000:3b:00.0``."""
    said: Mapping[str, str] = at.attrib if at is not None else {}
    domain, bus, slot, function = (
        int(said.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function")
    )
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
