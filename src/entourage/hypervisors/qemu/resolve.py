"""Fills in what a user left open, so that a machine built from it elsewhere is the same one.

Nothing that the guest can see may be left to QEMU's choice: the next host's QEMU may choose
otherwise. What only this host is concerned with (a tap's name) is filled in as well, for ``show``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from entourage.domain import Block, Domain, Net, Pci
from entourage.errors import UsageError

D = TypeVar("D", Block, Net, Pci)

# 00 to 02 are the chipset's and a display's on one machine type or the other, 1e is the USB
# controller's (``USB_ADDRESS``), 1f the q35's ISA bridge.
_FIRST_SLOT, _LAST_SLOT = 0x03, 0x1D
USB_ADDRESS = "1e.0"
_QCOW2_MAGIC = b"QFI\xfb"
_PAGE = 4096
_BLKSSZGET = 0x1268  # linux/fs.h


def is_q35(machine: str) -> bool:
    """Whether devices sit on PCI Express."""
    return "q35" in machine


def resolve(
    domain: Domain,
    *,
    uuid: str | None,
    machine_types: dict[str, str],
    kvm: bool,
) -> Domain:
    """Fill in everything that is None or ``auto``.

    Args:
        domain: What a user wrote.
        uuid: What the domain of this name had when it last ran here; None where it never did.
        machine_types: What this QEMU has, with what its aliases stand for.
        kvm: Whether KVM works here.

    Raises:
        UsageError: It cannot be built here at all.
    """
    versioned = machine_types.get(domain.machine)
    if versioned is None:
        raise UsageError(
            f"this QEMU has no machine type {domain.machine!r}",
            remedy="qemu-system-x86_64 -machine help lists what it has",
        )
    if domain.accel == "kvm" and not kvm:
        raise UsageError(
            "KVM runs no guest on this host",
            remedy='set accel to "tcg" (slow), or enable KVM',
        )
    accel: Literal["kvm", "tcg"] = "kvm" if kvm and domain.accel != "tcg" else "tcg"
    mine = (domain.uuid or uuid or str(uuids.uuid4())).lower()
    filled = msgspec.structs.replace(
        domain,
        uuid=mine,
        # The file is made before the machine; another host must not make it of anything.
        boot=msgspec.structs.replace(domain.boot, nvram_template=None),
        machine=versioned,
        accel=accel,
        cpu=domain.cpu or ("host,migratable=on" if accel == "kvm" else "max"),
        block=tuple(map(_with_cache, domain.block)),
        net=tuple(_with_names(net, mine, index) for index, net in enumerate(domain.net)),
    )
    return _with_addresses(filled)


def tap_name(uuid: str, index: int, attempt: int = 0) -> str:
    """A name for a tap, at most 15 characters, that no other domain's tap has."""
    seed = f"{uuid}/{attempt}" if attempt else uuid
    return f"en{hashlib.sha256(seed.encode()).hexdigest()[:8]}.{index}"


def begins_like_qcow2(path: Path) -> bool:
    """Whether a file or device begins with what qcow2 images begin with; it can be read."""
    with path.open("rb") as file:
        return file.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC


def direct_works(disk: Block) -> bool:
    """Whether QEMU can read and write a disk past the page cache.

    It does not, where a raw image ends within what the filesystem takes as one request: QEMU would
    have to write beyond its end. How much that is, QEMU cannot tell of a file that begins with a
    hole, as all copies do, and takes a page.
    """
    try:
        handle = os.open(disk.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if disk.format != "raw":  # a file that grows
            return True
        sizes = (disk.size or 0, os.lseek(handle, 0, os.SEEK_END))
        return not any(size % _request(handle) for size in sizes)
    finally:
        os.close(handle)


def _request(handle: int) -> int:
    """Of how many bytes requests past the page cache are multiples, at most."""
    if not stat.S_ISBLK(os.fstat(handle).st_mode):
        return _PAGE
    sector = struct.pack("i", 0)
    return int(struct.unpack("i", fcntl.ioctl(handle, _BLKSSZGET, sector))[0])


def _with_cache(disk: Block) -> Block:
    if disk.cache != "auto":
        return disk
    if disk.model == "pflash":
        # QEMU writes all of it before the guest runs on the target: in the blackout.
        return msgspec.structs.replace(disk, cache="writeback")
    return msgspec.structs.replace(disk, cache="none" if direct_works(disk) else "writeback")


def _with_names(net: Net, uuid: str, index: int) -> Net:
    digest = hashlib.sha256(f"{uuid}/{net.id}".encode()).digest()
    mac = net.mac or f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"
    return msgspec.structs.replace(net, mac=mac.lower(), tap=net.tap or tap_name(uuid, index))


def _with_addresses(domain: Domain) -> Domain:
    """Give every PCI device that has none the first place that is free."""
    taken: dict[str, str] = {}
    for device in (*domain.block, *domain.net, *domain.pci):
        if device.address is None:
            continue
        slot = device.address.split(".")[0]
        if slot in {"00", "1e", "1f"}:
            raise UsageError(
                f"PCI address {device.address} is the machine's own",
                device=device.label,
                remedy=f"choose one from {_FIRST_SLOT:02x}.0 to {_LAST_SLOT:02x}.0",
            )
        if slot in taken:
            raise UsageError(
                f"PCI address {device.address} is in the slot of {taken[slot]}",
                device=device.label,
                remedy="give each device a slot of its own, or leave the address out",
            )
        taken[slot] = device.label
    free = (
        f"{slot:02x}.0" for slot in range(_FIRST_SLOT, _LAST_SLOT + 1) if f"{slot:02x}" not in taken
    )
    return msgspec.structs.replace(
        domain,
        block=tuple(
            disk if disk.model in {"ide-cd", "pflash"} else _placed(disk, free)
            for disk in domain.block
        ),
        net=tuple(_placed(device, free) for device in domain.net),
        pci=tuple(_placed(device, free) for device in domain.pci),
    )


def _placed(device: D, free: Iterator[str]) -> D:
    if device.address is not None:
        return device
    address = next(free, None)
    if address is None:
        raise UsageError("the machine has no PCI slot left", device=device.label)
    return msgspec.structs.replace(device, address=address)
