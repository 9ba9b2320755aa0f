"""Does a disk fit on the target? Asked at TEST, where nothing is touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from entourage.devices.base import There
from entourage.devices.block import storage
from entourage.devices.block.images import NewImage
from entourage.devices.refusals import no_way, refuse
from entourage.domain import Block
from entourage.hosts import programs
from entourage.hosts.beneath import NotAllowed
from entourage.hypervisors.base import DiskCopy
from entourage.settings.units import format_size
from entourage.steps import Refusal


class Fit(msgspec.Struct, frozen=True, kw_only=True, tag="fit"):
    """Can this be made there, or this device be written over?

    Attributes:
        new: The image.
        onto_device: Whether its path is a device that the user named.
        need: The way of copying that the target's hypervisor must know.
    """

    new: NewImage
    onto_device: bool
    need: DiskCopy


class Fitting(msgspec.Struct, frozen=True, kw_only=True):
    """What the target says to that."""

    refusals: list[Refusal] = []
    warnings: list[str] = []


def cannot_copy(disk: Block, host: str, need: DiskCopy) -> Refusal:
    """The hypervisor of ``host`` lacks what a copy needs."""
    if need is DiskCopy.MIRROR_READONLY:
        reason = "the hypervisor cannot copy a read-only medium"
        return refuse(disk, host, reason, f"copy {disk.path} there at the same path")
    return no_way(disk, host, "the hypervisor cannot copy a disk", "put it on shared storage")


def fit(disk: Block, there: There, request: Fit) -> Fitting:
    """Everything that speaks against it; runs on the target."""
    lacks = (
        []
        if request.need in there.incoming.takes
        else [cannot_copy(disk, there.host, request.need)]
    )
    if request.onto_device:
        exact = request.need in {DiskCopy.CARRY, DiskCopy.CARRY_RAW}
        fitting = _fit_device(disk, there, request.new, exact=exact)
        return msgspec.structs.replace(fitting, refusals=[*lacks, *fitting.refusals])
    return Fitting(refusals=[*lacks, *_fit_file(disk, there, request.new)])


def _fit_file(disk: Block, there: There, new: NewImage) -> list[Refusal]:
    path = Path(new.path)
    directory = path.parent
    elsewhere = f"--disk {disk.id}=/another/path"
    if path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm"):  # noqa: S108 - a disk's
        return [refuse(disk, there.host, f"there is no device {path}", elsewhere)]
    if not directory.is_dir():
        remedy = f"make it there, or {elsewhere}"
        return [refuse(disk, there.host, f"there is no directory {directory}", remedy)]
    found: list[Refusal] = []
    try:
        there.allowed.images.real(new.path)
    except NotAllowed as error:
        return [refuse(disk, there.host, error.message, f"{error.remedy}, or {elsewhere}")]
    if os.path.lexists(path):
        found.append(refuse(disk, there.host, f"{path} is there already", elsewhere))
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        reason = f"the filesystem of {directory} is read-only"
        found.append(refuse(disk, there.host, reason, elsewhere))
    elif not os.access(directory, os.W_OK | os.X_OK):
        remedy = f"allow it, run the agent as root (--remote-command), or {elsewhere}"
        reason = f"nothing may be written in {directory}"
        found.append(refuse(disk, there.host, reason, remedy))
    if new.format != "raw" and not programs.has_qemu_img():
        reason = "qemu-img is not installed"
        found.append(refuse(disk, there.host, reason, "install qemu-utils there"))
    if refusal := too_full(disk, there, new, str(directory)):
        found.append(refusal)
    return found


def too_full(disk: Block, there: There, new: NewImage, directory: str) -> Refusal | None:
    """Count this disk, and see whether all that go to its filesystem fit together."""
    number, free = storage.free_space(directory)
    claims = there.space.setdefault(number, {})
    claims[disk.label] = new.room
    wanted = sum(claims.values())
    if wanted <= free:
        return None
    others = ", ".join(sorted(set(claims) - {disk.label}))
    together = f"; {format_size(wanted)} together with {others}" if others else ""
    return refuse(
        disk,
        there.host,
        f"no space left in {directory}: {format_size(new.room)} needed{together}, "
        f"{format_size(free)} free",
        f"make room, or --disk {disk.id}=/another/path",
    )


def _fit_device(disk: Block, there: There, new: NewImage, *, exact: bool) -> Fitting:
    """See whether the device is large enough, and nobody's (mounted, LVM, RAID, swap)."""
    another = f"--disk {disk.id}=/dev/…, another device"
    try:
        there.allowed.device(new.path)
    except NotAllowed as error:
        return Fitting(refusals=[refuse(disk, there.host, error.message, error.remedy)])
    if new.format != "raw":
        reason = f"a {new.format} image cannot be copied onto a device"
        return Fitting(refusals=[refuse(disk, there.host, reason, f"--disk {disk.id}=/a/file")])
    try:
        handle = os.open(new.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        in_use = error.errno == errno.EBUSY
        reason = "is in use there" if in_use else f"cannot be written: {error.strerror}"
        return Fitting(refusals=[refuse(disk, there.host, f"{new.path} {reason}", another)])
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)
    if size < new.size:
        reason = (
            f"{new.path} has {format_size(size)} ({size} bytes), "
            f"the disk {format_size(new.size)} ({new.size} bytes)"
        )
        return Fitting(refusals=[refuse(disk, there.host, reason, another)])
    if size > new.size and exact:
        reason = f"{new.path} is larger than the disk, and the hypervisor copies only onto equals"
        return Fitting(refusals=[refuse(disk, there.host, reason, another)])
    if size > new.size:
        larger = f"{new.path} is larger than the disk by {format_size(size - new.size)}"
        return Fitting(warnings=[f"{larger}; the guest goes on seeing the size it has"])
    return Fitting()
