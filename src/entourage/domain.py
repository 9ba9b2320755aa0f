"""What a domain is, apart from any hypervisor: frozen values, the same in a file and on the link.

Sizes are bytes. Paths are absolute and mean the host they are used on. Everything that a domain
file leaves out is None here until the hypervisor that starts the domain has resolved it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

# A name goes into file names, process names and a tool's arguments: no slash, no control
# characters, no leading dot or dash. Spaces, quotes and $ are allowed and passed through unharmed.
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[^/\x00-\x1f\x7f.\-][^/\x00-\x1f\x7f]{0,62}\Z")]
DeviceId: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,30}\Z")]
Mac: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}\Z")]
PathStr: TypeAlias = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z")]
Uuid: TypeAlias = Annotated[
    str, Meta(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
]
# A place on the machine's PCI root bus, "03.0"; given by the hypervisor when it starts the domain.
PciAddress: TypeAlias = Annotated[str, Meta(pattern=r"^[01][0-9a-f]\.[0-7]\Z")]
# One of a host's own devices. PCI: "0000:3b:00.0". USB: "1-1.4" (the port, as the kernel names it),
# "1.6" (bus and address, as lsusb has them), or "1050:0407" (vendor and product).
HostPci: TypeAlias = Annotated[
    str, Meta(pattern=r"^([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
]
HostUsb: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^([1-9][0-9]{0,2}-[1-9][0-9]?(\.[1-9][0-9]?){0,5}"
        r"|[1-9][0-9]{0,2}\.[1-9][0-9]{0,2}|[0-9a-f]{4}:[0-9a-f]{4})\Z"
    ),
]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """One thing attached to a domain; ``id`` is unique in the domain."""

    device_class: ClassVar[str]
    """``block``, ``net``, ``tpm``, ``usb``, ``pci``, ``external``, or one of ``ADDED``."""
    id: DeviceId
    tool: str | None = None
    """An external migration tool for this one device; None: what the settings say."""

    @property
    def label(self) -> str:
        """``block/disk0``: how the device is called in every message."""
        return f"{self.device_class}/{self.id}"


class Block(Device, frozen=True):
    """A disk or other medium: a file or a block device."""

    device_class: ClassVar[str] = "block"
    path: PathStr
    format: Literal["raw", "qcow2"] = "raw"
    readonly: bool = False
    shared: Literal["auto", "yes", "no"] = "auto"
    """Whether both hosts see the same storage. ``auto`` looks; the others insist, are checked."""
    copy: Literal["auto", "flat", "keep-chain"] = "auto"
    """How a qcow2 with a backing chain is copied: flattened, or upon a chain both hosts see."""
    cache: Literal["auto", "none", "writeback"] = "auto"
    size: Annotated[int, Meta(ge=512)] | None = None
    """Bytes that the guest sees of a raw image or device that is larger; None: all of it."""
    serial: str | None = None
    model: Literal["virtio-blk", "nvme", "ide-cd", "pflash", "other"] = "virtio-blk"
    """``pflash`` is what a UEFI firmware keeps its variables in.

    ``other`` is one that only its hypervisor knows, as all that is called so here.
    """
    address: PciAddress | None = None

    @property
    def is_only_read(self) -> bool:
        """Whether the guest can only read it."""
        return self.readonly or self.model == "ide-cd"


class Net(Device, frozen=True):
    """A NIC on a tap device that is a port of a bridge; or what else its hypervisor knows."""

    device_class: ClassVar[str] = "net"
    bridge: Annotated[str, Meta(pattern=r"^[^/\s\x00]{1,15}\Z")]
    """The bridge; of a ``direct`` NIC the host's own interface."""
    attach: Literal["bridge", "network", "direct", "other"] = "bridge"
    """How it is attached: to a bridge, to a network of the hypervisor's, to an interface."""
    network: Annotated[str, Meta(min_length=1)] | None = None
    """The name of that network."""
    mac: Mac | None = None
    model: Literal["virtio-net", "e1000e", "other"] = "virtio-net"
    mtu: Annotated[int, Meta(ge=576, le=65535)] | None = None
    tap: Annotated[str, Meta(pattern=r"^[^/\s\x00]{1,15}\Z")] | None = None
    address: PciAddress | None = None


class Tpm(Device, frozen=True):
    """A TPM: a swtpm that Entourage runs, one that somebody else runs, or the host's own."""

    device_class: ClassVar[str] = "tpm"
    version: Literal["2.0", "1.2"] = "2.0"
    model: Literal["tpm-crb", "tpm-tis", "other"] = "tpm-crb"
    type: Literal["emulator", "external", "passthrough"] = "emulator"
    socket: PathStr | None = None
    """The control socket of an ``external`` emulator."""
    path: PathStr | None = None
    """The host's TPM of a ``passthrough``, ``/dev/tpm0``."""


class Usb(Device, frozen=True):
    """A USB device: emulated by the hypervisor, or one of the host's own."""

    device_class: ClassVar[str] = "usb"
    model: str | None = None
    """An emulated one, as ``usb-tablet`` or ``usb-kbd``."""
    vendor: Annotated[int, Meta(ge=0, le=0xFFFF)] | None = None
    product: Annotated[int, Meta(ge=0, le=0xFFFF)] | None = None
    """One of the host's own, ``vendor = 0x1050, product = 0x0407``."""
    place: HostUsb | None = None
    """Which of the host's, where its hypervisor says so: its port, ``1-1.4``."""
    port: Annotated[str, Meta(pattern=r"^[0-9]{1,3}:[0-9]{1,3}\Z")] | None = None
    """Where a guest of Xen's sees it: its controller and port there, ``0:1``."""
    plug: HostUsb | None = None
    """On its way to a host that has another one for it: which (``--usb``). In no file."""

    @property
    def host_names(self) -> tuple[str, ...]:
        """What a user may call one of the host's own; none where it is emulated."""
        if self.vendor is None and self.product is None:
            return ()
        ids = f"{self.vendor or 0:04x}:{self.product or 0:04x}"
        return (self.id, *((self.place,) if self.place else ()), ids)


class Pci(Device, frozen=True):
    """A PCI device: emulated by the hypervisor, or one of the host's own (VFIO)."""

    device_class: ClassVar[str] = "pci"
    model: str | None = None
    """An emulated one, as ``virtio-rng-pci``."""
    host: HostPci | None = None
    """One of the host's own, ``0000:3b:00.0``."""
    address: PciAddress | None = None
    options: Annotated[str, Meta(pattern=r"^[a-z_]+=[a-z0-9]+(,[a-z_]+=[a-z0-9]+)*\Z")] | None = (
        None
    )
    """What else Xen was told of one of the host's own, ``permissive=1``."""
    plug: HostPci | None = None
    """On its way to a host that has another one for it: which (``--pci``). In no file."""

    @property
    def host_names(self) -> tuple[str, ...]:
        """What a user may call one of the host's own; none where it is emulated."""
        return () if self.host is None else (self.id, whole_bdf(self.host))


def whole_bdf(bdf: str) -> str:
    """A PCI device's place on its host, with the domain that may be left out where it is 0."""
    return bdf if len(bdf) > len("3b:00.0") else f"0000:{bdf}"


class External(Device, frozen=True):
    """A thing that the hypervisor has never heard of, and only an external tool moves."""

    device_class: ClassVar[str] = "external"
    type: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,30}\Z")]
    """What the tool is told after ``-type``."""
    subtype: str | None = None


DEVICE_CLASSES = tuple(spec.device_class for spec in (Block, Net, Tpm, Usb, Pci, External))
"""Those that a domain has a field for, in the order in which its devices are told."""
ADDED: dict[str, str] = {"notice": "entourage.devices.notice:NoticeController"}
"""Those that no hypervisor knows: where the controller of each is, as ``module:name``.

They have no field: a domain has them all in ``added``. The controller's ``spec`` is what a device
of the class is. Both are imported when a domain has one; so one module can hold both, though much
lies between this module and the controllers.
"""
# What the external tool of 2006 is told after -type, by device class.
TOOL_TYPES = {"block": "vbd", "net": "vif", "tpm": "vtpm", "usb": "vusb", "pci": "pci"}


def added_controller(device_class: str) -> Any:
    """The controller of a device class in ``ADDED``; raises KeyError where it is none."""
    module, _, name = ADDED[device_class].partition(":")
    return getattr(importlib.import_module(module), name)


VARIABLES = "nvram"
"""The disk that ``boot.nvram`` is."""


class Boot(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename="kebab",
    kw_only=True,
    # An older Entourage does not know the newest keys.
    omit_defaults=True,
):
    """How the guest starts: from its disks, from a firmware of its own, or from a kernel file."""

    firmware: PathStr | None = None
    nvram: PathStr | None = None
    """Where a UEFI firmware keeps its variables. A domain has a disk instead (``pflash``)."""
    nvram_template: PathStr | None = None
    """What that file is made from where there is none; None: found by the firmware's name."""
    kernel: PathStr | None = None
    initrd: PathStr | None = None
    cmdline: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the machine needs to be built, on whichever host it is.

        A template is among them: what another host's domain names is never copied unasked.
        """
        named = (self.firmware, self.nvram_template, self.kernel, self.initrd)
        return tuple(path for path in named if path)


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """A virtual machine and everything attached to it.

    The same value describes a file that a user wrote (much of it None) and a machine that runs:
    there the hypervisor has filled in what it chose (uuid, versioned machine type, CPU model,
    accelerator, addresses, MACs), so that a second machine built from it is the same to the guest.
    """

    name: Name
    uuid: Uuid | None = None
    memory: Annotated[int, Meta(ge=1 << 20)]
    vcpus: Annotated[int, Meta(ge=1, le=1024)] = 1
    machine: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+\Z")] = "q35"
    cpu: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._,=+-]+\Z")] | None = None
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    boot: Boot = Boot()
    block: tuple[Block, ...] = ()
    net: tuple[Net, ...] = ()
    tpm: Annotated[tuple[Tpm, ...], Meta(max_length=1)] = ()
    usb: tuple[Usb, ...] = ()
    pci: tuple[Pci, ...] = ()
    external: tuple[External, ...] = ()
    added: dict[str, tuple[dict[str, Any], ...]] | UnsetType = UNSET
    """Devices of the classes in ``ADDED``, by class; each as the table that it is in a file.

    Not encoded where there are none: an older Entourage knows of no such field.
    """

    def __post_init__(self) -> None:
        """See that what is added is what its class says, and have one form of the rest.

        The UUID has small letters: it names locks, files and rows, of which there must be one. The
        file of a firmware's variables is a disk, and moves as disks do.

        Raises:
            ValueError: What is added is something else, or there is no such class here.
        """
        if self.uuid is not None and self.uuid != self.uuid.lower():
            msgspec.structs.force_setattr(self, "uuid", self.uuid.lower())
        if self.boot.nvram is not None:
            variables = Block(id=VARIABLES, path=self.boot.nvram, model="pflash")
            msgspec.structs.force_setattr(self, "block", (*self.block, variables))
            boot = msgspec.structs.replace(self.boot, nvram=None)
            msgspec.structs.force_setattr(self, "boot", boot)
        self._added()

    def _added(self) -> list[Device]:
        found: list[Device] = []
        for name, tables in (self.added or {}).items():
            if name not in ADDED:
                raise ValueError(f"there is no device class {name!r} here")
            found += msgspec.convert(tables, list[added_controller(name).spec])
        return found

    @property
    def devices(self) -> tuple[Device, ...]:
        """All of them, in the order of their classes."""
        found: list[Device] = []
        for name in DEVICE_CLASSES:
            found += getattr(self, name)
        return (*found, *self._added())

    @property
    def variables(self) -> Block | None:
        """The disk that a UEFI firmware keeps its variables in; None where it has none."""
        return next((disk for disk in self.block if disk.model == "pflash"), None)

    def device(self, label: str) -> Device:
        """The device with this label, ``block/disk0``; raises KeyError where there is none."""
        for device in self.devices:
            if device.label == label:
                return device
        raise KeyError(label)

    def without_device(self, label: str) -> Domain:
        """The same domain without the device of that label, which is of no class in ``ADDED``."""
        key = label.partition("/")[0]
        kept = tuple(device for device in getattr(self, key) if device.label != label)
        return msgspec.structs.replace(self, **{key: kept})

    def with_paths(self, paths: Mapping[str, str]) -> Domain:
        """The same with some of its disks at other paths, by their ids."""
        domain = self
        for disk in self.block:
            if disk.id in paths:
                domain = domain.with_device(msgspec.structs.replace(disk, path=paths[disk.id]))
        return domain

    def with_device(self, new: Device) -> Domain:
        """The same domain with ``new`` in the place of the device that has its label."""
        key = new.device_class
        if key not in DEVICE_CLASSES:
            others = {name: list(tables) for name, tables in (self.added or {}).items()}
            others[key] = [
                msgspec.to_builtins(new) if table["id"] == new.id else table
                for table in others[key]
            ]
            added = {name: tuple(tables) for name, tables in others.items()}
            return msgspec.structs.replace(self, added=added)
        mine: tuple[Device, ...] = getattr(self, key)
        changed = tuple(new if device.id == new.id else device for device in mine)
        return msgspec.structs.replace(self, **{key: changed})
