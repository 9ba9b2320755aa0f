"""From a resolved domain to QEMU's arguments; pure.

On both hosts they are the same, but for what is the host's own (``HostThings``). What QEMU takes as
JSON is given as JSON, and no shell is involved anywhere. Ids in QEMU begin with the device's class,
so that a user's id can be anything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from entourage.domain import Block, Device, Domain, Net, Pci, Tpm, Usb
from entourage.errors import UsageError
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.resolve import USB_ADDRESS, is_q35

_NODE_ID_LENGTH = 24  # a node's name has 31 characters at most
_FIRMWARE = "firmware"
_Q35_CDS, _PC_CDS = 6, 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HostThings:
    """What of a machine is this host's alone.

    Attributes:
        qemu: The program.
        places: The domain's files.
        monitors: Listening sockets by the name of the monitor, as inherited descriptors.
        taps: Open taps by the id of their NIC, as inherited descriptors.
        host_devices: Paths of disks that are block devices.
        buffered: Paths of disks that cannot be used past the page cache here.
        vhost: Open devices of the kernel's vhost-net by the id of their NIC, as inherited
            descriptors; without one, QEMU moves the packets.
        console: The socket of the guest's serial port, as an inherited descriptor.
        incoming: Whether the machine waits for another's memory.
    """

    qemu: str
    places: Places
    monitors: Mapping[str, int]
    taps: Mapping[str, int]
    host_devices: frozenset[str] = frozenset()
    buffered: frozenset[str] = frozenset()
    vhost: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])
    console: int = -1
    incoming: bool = False


def command_line(domain: Domain, host: HostThings) -> list[str]:
    """The program and its arguments; the machine is made stopped.

    Raises:
        UsageError: A device lacks what tells what it is.
    """
    return [*_machine(domain, host), *_own(host), *_devices(domain, host)]


def device_id(device: Device) -> str:
    """What a device is called in QEMU."""
    if isinstance(device, Block) and device.model == "pflash":
        return "system.flash1"  # a part of the machine, which names it itself
    return f"{device.device_class}-{device.id}"


def port_ids(domain: Domain) -> tuple[str, ...]:
    """What the ports are called in QEMU that PCI devices have of their own."""
    return tuple(map(_port_id, domain.pci)) if is_q35(domain.machine) else ()


def disk_index(domain: Domain, disk: Block) -> int:
    """Which of the domain's disks it is.

    Raises:
        UsageError: None of them.
    """
    for index, mine in enumerate(domain.block):
        if mine.id == disk.id:
            return index
    raise UsageError(f"the domain {domain.name} has no such disk", device=disk.label)


def node_name(domain: Domain, disk: Block) -> str:
    """The block node of a disk, as the guest's device sees it."""
    return f"n{disk_index(domain, disk)}-{disk.id[:_NODE_ID_LENGTH]}"


def mirror_name(domain: Domain, disk: Block) -> str:
    """The block node, and the job, of a disk's mirror to another host."""
    return f"m{disk_index(domain, disk)}-{disk.id[:_NODE_ID_LENGTH]}"


def export_name(domain: Domain, disk: Block) -> str:
    """The block node through which a read-only disk takes a mirror's writes, and each export."""
    return f"x{disk_index(domain, disk)}-{disk.id[:_NODE_ID_LENGTH]}"


def block_node(
    disk: Block, name: str, host: HostThings, *, readonly: bool | None = None
) -> dict[str, Any]:
    """The block node of a disk.

    Args:
        disk: The disk.
        name: The node's name.
        host: This host.
        readonly: Instead of what the disk says.
    """
    cache = {"direct": disk.cache == "none" and disk.path not in host.buffered, "no-flush": False}
    if readonly is None:
        readonly = is_readonly(disk)
    both = {"read-only": readonly, "discard": "unmap", "cache": cache}
    driver = "host_device" if disk.path in host.host_devices else "file"
    part = {"size": disk.size} if disk.size is not None and disk.format == "raw" else {}
    return {
        "driver": disk.format,
        "node-name": name,
        **part,
        **both,
        "file": {"driver": driver, "filename": disk.path, **both},
    }


def is_readonly(disk: Block) -> bool:
    """Whether the guest can only read it."""
    return disk.readonly or disk.model == "ide-cd"


def usb_device(domain: Domain, usb: Usb) -> dict[str, Any]:
    """A USB device on the machine's controller, always in the same port."""
    port = str(1 + [mine.id for mine in domain.usb].index(usb.id))
    place = {"id": device_id(usb), "bus": "usb.0", "port": port}
    if usb.model:
        return {"driver": usb.model, **place}
    if usb.vendor is None or usb.product is None:
        raise UsageError("a USB device needs a model, or vendor and product", device=usb.label)
    return {"driver": "usb-host", "vendorid": usb.vendor, "productid": usb.product, **place}


def pci_device(domain: Domain, pci: Pci) -> dict[str, Any]:
    """A PCI device: on q35 in a port of its own, out of which it can be taken while it runs."""
    if is_q35(domain.machine):
        place = {"id": device_id(pci), "bus": _port_id(pci), "addr": "00.0"}
    else:
        place = {"id": device_id(pci), "bus": "pci.0", "addr": pci.address}
    if pci.model:
        return {"driver": pci.model, **place}
    if pci.host is None:
        raise UsageError("a PCI device needs a model, or a host address", device=pci.label)
    return {"driver": "vfio-pci", "host": pci.host, **place}


def escaped(value: str) -> str:
    """A value among QEMU's ``key=value,…``."""
    return value.replace(",", ",,")


def _machine(domain: Domain, host: HostThings) -> Iterator[str]:
    yield host.qemu
    yield from ("-name", f"guest={escaped(domain.name)},debug-threads=on")
    yield from ("-uuid", str(domain.uuid))
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on")
    yield "-sandbox"
    yield "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    variables = domain.variables
    if variables is not None and domain.boot.firmware is not None:
        flash = f",pflash0={_FIRMWARE},pflash1={node_name(domain, variables)}"
        yield from ("-blockdev", _json(_firmware_node(domain.boot.firmware)))
    else:
        flash = ""
    yield from ("-machine", f"{domain.machine}{flash}")
    yield from ("-accel", "tcg,thread=multi" if domain.accel == "tcg" else domain.accel)
    yield from ("-cpu", str(domain.cpu))
    yield from ("-m", f"size={domain.memory}B")
    yield from ("-smp", f"cpus={domain.vcpus}")
    boot = domain.boot
    for option, value in (
        ("-bios", None if flash else boot.firmware),
        ("-kernel", boot.kernel),
        ("-initrd", boot.initrd),
        ("-append", boot.cmdline),
    ):
        if value is not None:
            yield from (option, value)
    yield "-S"
    if host.incoming:
        yield from ("-incoming", "defer")


def _own(host: HostThings) -> Iterator[str]:
    """What is Entourage's, not the guest's; and the guest's serial port."""
    for name, descriptor in host.monitors.items():
        yield "-chardev"
        yield f"socket,id=monitor-{name},fd={descriptor},server=on,wait=off"
        yield from ("-mon", f"chardev=monitor-{name},mode=control")
    yield "-chardev"
    yield f"socket,id=console,fd={host.console},server=on,wait=off"
    yield from ("-serial", "chardev:console")


def _devices(domain: Domain, host: HostThings) -> Iterator[str]:
    cds = 0
    for index, disk in enumerate(domain.block):
        yield from ("-blockdev", _json(block_node(disk, node_name(domain, disk), host)))
        if disk.model == "pflash":  # see ``_machine``
            continue
        device = _disk_device(domain, disk, cds)
        cds += disk.model == "ide-cd"
        yield from ("-device", _json({**device, "bootindex": index + 1}))
    for net in domain.net:
        yield from _net(domain, net, host)
    for tpm in domain.tpm:
        yield from _tpm(tpm, host)
    if domain.usb:
        usb = {"driver": "qemu-xhci", "id": "usb", "p2": 15, "p3": 15}
        yield from ("-device", _json({**usb, "bus": _root(domain), "addr": USB_ADDRESS}))
    for device in domain.usb:
        yield from ("-device", _json(usb_device(domain, device)))
    for device in domain.pci:
        if is_q35(domain.machine):
            yield from ("-device", _json(_port(device)))
        yield from ("-device", _json(pci_device(domain, device)))


def _disk_device(domain: Domain, disk: Block, cds: int) -> dict[str, Any]:
    device: dict[str, Any] = {"id": device_id(disk), "drive": node_name(domain, disk)}
    place = {"bus": _root(domain), "addr": disk.address}
    serial = {"serial": disk.serial} if disk.serial else {}
    match disk.model:
        case "virtio-blk":
            return {"driver": "virtio-blk-pci", **device, **place, **serial, "write-cache": "on"}
        case "nvme":
            return {"driver": "nvme", **device, **place, "serial": disk.serial or disk.id}
        case "ide-cd":
            if cds >= (_Q35_CDS if is_q35(domain.machine) else _PC_CDS):
                raise UsageError("the machine has no place for one more CD", device=disk.label)
            bus = (
                {"bus": f"ide.{cds}"}
                if is_q35(domain.machine)
                else {"bus": f"ide.{cds // 2}", "unit": cds % 2}
            )
            return {"driver": "ide-cd", **device, **bus, **serial}
        case "pflash" | "other":
            raise UsageError("another hypervisor's disk cannot be made here", device=disk.label)


def _firmware_node(path: str) -> dict[str, Any]:
    """The block node of a UEFI firmware's code, which the guest can only read."""
    file = {"driver": "file", "filename": path, "read-only": True}
    return {"driver": "raw", "node-name": _FIRMWARE, "read-only": True, "file": file}


def _net(domain: Domain, net: Net, host: HostThings) -> Iterator[str]:
    vhost = f",vhost=on,vhostfd={host.vhost[net.id]}" if net.id in host.vhost else ""
    yield from ("-netdev", f"tap,id=netdev-{net.id},fd={host.taps[net.id]}{vhost}")
    device: dict[str, Any] = {
        "driver": "virtio-net-pci" if net.model == "virtio-net" else net.model,
        "id": device_id(net),
        "netdev": f"netdev-{net.id}",
        "mac": net.mac,
        "bus": _root(domain),
        "addr": net.address,
    }
    if net.mtu is not None and net.model == "virtio-net":
        device["host_mtu"] = net.mtu
    yield from ("-device", _json(device))


def _tpm(tpm: Tpm, host: HostThings) -> Iterator[str]:
    name = device_id(tpm)
    if tpm.type == "passthrough":
        yield "-tpmdev"
        yield f"passthrough,id={name},path={escaped(tpm.path or '/dev/tpm0')}"
    else:
        socket = str(host.places.swtpm) if tpm.type == "emulator" else tpm.socket
        if not socket:
            raise UsageError("an external TPM needs the path of its socket", device=tpm.label)
        yield from ("-chardev", f"socket,id={name},path={escaped(socket)}")
        yield from ("-tpmdev", f"emulator,id={name},chardev={name}")
    yield from ("-device", _json({"driver": tpm.model, "tpmdev": name}))


def _port(pci: Pci) -> dict[str, Any]:
    slot = int(str(pci.address).split(".")[0], 16)
    return {
        "driver": "pcie-root-port",
        "id": _port_id(pci),
        "bus": "pcie.0",
        "addr": pci.address,
        "chassis": slot,
        "slot": slot,
    }


def _port_id(pci: Pci) -> str:
    return f"port-{pci.id}"


def _root(domain: Domain) -> str:
    return "pcie.0" if is_q35(domain.machine) else "pci.0"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
