"""A domain as ``xl list -l`` has it (JSON of ``libxl_domain_config``), as one of ours.

Only what needs a step of its own, or may be refused, becomes a device; all else xl carries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from entourage.domain import Block, Boot, Domain, Net, Pci, Tpm, Usb
from entourage.errors import HypervisorError
from entourage.hosts.usb import called
from entourage.hypervisors.understood import checked, understood
from entourage.hypervisors.xen.header import BRIDGE

Config = Mapping[str, Any]
_USUAL_MTU = 1500
_FORMATS = frozenset({"raw", "qcow2"})


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One domain of xl's list."""

    domid: int
    config: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Its name, which changes in a migration."""
        return str(self.config.get("c_info", {}).get("name", ""))

    @property
    def uuid(self) -> str:
        """Its UUID, which does not."""
        return str(self.config.get("c_info", {}).get("uuid", ""))

    @property
    def memory(self) -> int:
        """Bytes."""
        built: Config = self.config.get("b_info", {})
        return int(built.get("target_memkb") or built.get("max_memkb") or 0) << 10

    @property
    def vcpus(self) -> int:
        """How many it may have."""
        return int(self.config.get("b_info", {}).get("max_vcpus") or 1)


def entries(text: str) -> list[Entry]:
    """The domains of ``xl list -l``, without dom0.

    Raises:
        HypervisorError: It is not understood.
    """
    try:
        found: list[dict[str, Any]] = json.loads(text or "[]")
        listed = msgspec.convert(found, list[Entry])
    except (ValueError, RecursionError) as error:
        raise HypervisorError(f"`xl list -l` is not understood: {error}") from error
    with understood("`xl list -l`"):
        for entry in listed:
            _ = (entry.name, entry.uuid, entry.memory, entry.vcpus)
    return [entry for entry in listed if entry.domid != 0]


def domain_type(config: Config) -> str:
    """``pv``, ``pvh`` or ``hvm``."""
    of_info = config.get("c_info", {}).get("type", "")
    return str(config.get("b_info", {}).get("type") or of_info or "pv")


def read_domain(entry: Entry) -> Domain:
    """The domain that an entry describes.

    Raises:
        HypervisorError: It has something in it that cannot be expressed (its name, say).
    """
    with understood(f"what `xl list -l` says of {entry.name!r}"):
        domain = _domain(entry)
    return checked(domain, "xl")


def _domain(entry: Entry) -> Domain:
    config = entry.config
    built: Config = config.get("b_info", {})
    return Domain(
        name=entry.name,
        uuid=entry.uuid,
        memory=max(entry.memory, 1 << 20),
        vcpus=entry.vcpus,
        machine=f"xen-{domain_type(config)}",
        boot=Boot(
            kernel=_file(built.get("kernel")),
            initrd=_file(built.get("ramdisk")),
            cmdline=built.get("cmdline") or None,
        ),
        block=tuple(_disks(config)),
        net=tuple(_nics(config)),
        tpm=tuple(
            Tpm(id=f"vtpm{number}", type="external", model="other")
            for number, _ in enumerate(config.get("vtpms", ()))
        ),
        usb=tuple(_usbs(config)),
        pci=tuple(_pcis(config)),
    )


def on_bridges(config: dict[str, Any], domain: Domain) -> None:
    """Have a configuration's NICs on the bridges that a domain's are to be on.

    Args:
        config: That of a machine that was saved; changed here.
        domain: As it is to be on this host.
    """
    bridges = {nic.id: nic.bridge for nic in domain.net if nic.attach == "bridge"}
    with understood("xl's configuration"):
        for nic, entry in zip(_nics(config), config.get("nics", ()), strict=True):
            if nic.id in bridges and nic.bridge != bridges[nic.id]:
                entry["bridge"] = bridges[nic.id]


def check_same(config: Config, domain: Domain) -> None:
    """See that a configuration is that of a domain, with the very disks that were asked for.

    Args:
        config: What xl is to be given.
        domain: As it is to be on this host.

    Raises:
        HypervisorError: It is another's, or has another disk.
    """
    with understood("xl's configuration"):
        about: Config = config["c_info"]
        same = (about["name"], str(about["uuid"]).lower()) == (
            domain.name,
            str(domain.uuid).lower(),
        )
        found, asked = (sorted(map(_which, disks)) for disks in (_disks(config), domain.block))
    if not same:
        raise HypervisorError(f"xl's configuration is not that of {domain.name}")
    for disk, *_ in sorted(set(found) ^ set(asked)):
        raise HypervisorError("xl's configuration has it otherwise", device=f"block/{disk}")
    if len(found) != len(asked):
        raise HypervisorError("xl's configuration has a disk twice")


def _which(disk: Block) -> tuple[str, str, str, bool]:
    return disk.id, disk.path, disk.format, disk.readonly


def unreadable_disks(config: Config) -> list[str]:
    """Disks that no controller can speak for: their virtual device, and why."""
    return [
        f"{disk.get('vdev')} is a {disk.get('format')} image"
        for disk in config.get("disks", ())
        if disk.get("pdev_path")
        and disk.get("format", "raw") not in _FORMATS
        and not _elsewhere(disk)
    ]


def _elsewhere(disk: Config) -> bool:
    """A disk that a script of the user's brings (iSCSI, DRBD, …), on either host."""
    script = str(disk.get("script") or "")
    return bool(script) and Path(script).name != "block"


def _disks(config: Config) -> Iterator[Block]:
    for disk in config.get("disks", ()):
        path = str(disk.get("pdev_path") or "")
        kind = disk.get("format", "raw")
        if not path or kind not in _FORMATS or _elsewhere(disk):
            continue
        if not path.startswith("/"):  # as the block script has it
            path = f"/dev/{path}"
        yield Block(
            id=str(disk["vdev"]),
            path=path,
            format=kind,
            readonly=not disk.get("readwrite", 0),
            model="other",
        )


def _nics(config: Config) -> Iterator[Net]:
    for number, nic in enumerate(config.get("nics", ())):
        bridged = "vif-bridge" in str(nic.get("script") or "vif-bridge")
        yield Net(
            id=f"vif{nic.get('devid', number)}",
            bridge=str(nic.get("bridge") or BRIDGE) if bridged else "none",
            attach="bridge" if bridged else "other",
            mac=nic.get("mac"),
            mtu=nic.get("mtu") if int(nic.get("mtu") or 0) != _USUAL_MTU else None,
            model="other",
        )


def usb_of(usb: Config) -> str:
    """Which of this host's an entry of ``usbdevs`` is: bus and address."""
    at: Config = usb.get("type.hostdev", usb)
    return f"{int(at.get('hostbus', 0))}.{int(at.get('hostaddr', 0))}"


def _usbs(config: Config) -> Iterator[Usb]:
    for number, usb in enumerate(config.get("usbdevs", ())):
        found = next(iter(called(usb_of(usb))), None)  # none where it was pulled out
        controller, port = int(usb.get("ctrl", -1)), int(usb.get("port", 0))
        yield Usb(
            id=f"usb{number}",
            vendor=found.vendor if found else 0,
            product=found.product if found else 0,
            place=found.place if found else None,
            port=f"{controller}:{port}" if controller >= 0 and port else None,
        )


def pci_of(pci: Config) -> str:
    """Which of this host's an entry of ``pcidevs`` is."""
    numbers = (int(pci.get(key, 0)) for key in ("domain", "bus", "dev", "func"))
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def _pcis(config: Config) -> Iterator[Pci]:
    for number, pci in enumerate(config.get("pcidevs", ())):
        slot, function = divmod(int(pci.get("vdevfn", 0)), 8)
        # Only an HVM guest sees it where xl says, and xl can be told a slot alone.
        placed = domain_type(config) == "hvm" and slot and not function
        yield Pci(
            id=f"pci{number}",
            host=pci_of(pci),
            address=f"{slot:02x}.0" if placed else None,
            options=",".join(_pci_options(pci)) or None,
        )


def _pci_options(pci: Config) -> Iterator[str]:
    """What an xl of any host must be told again; ``seize`` is only about this one."""
    for key in ("msitranslate", "power_mgmt", "permissive"):
        if pci.get(key):
            yield f"{key}=1"
    if pci.get("rdm_policy") == "relaxed":
        yield "rdm_policy=relaxed"


def _file(value: object) -> str | None:
    """A boot file on this host; what comes out of a guest's disk is none."""
    path = str(value or "")
    return path if path.startswith("/") and os.access(path, os.R_OK) else None
