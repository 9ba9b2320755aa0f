"""Disks that stay where they are while their guest is saved: what they were, and are now."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from entourage.domain import Block
from entourage.errors import DeviceError, HypervisorError, plain_words, what_to_do
from entourage.hosts import programs
from entourage.hypervisors.saved.storage import Storage, Unanswered


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """What an image was as its guest was saved: it stays where it is, and must not change.

    Attributes:
        device: The label of its disk, which may have several images, one on the other.
        path: Where it lies.
        size: Of the file, bytes.
        modified: When its content was last changed, ns since the epoch.
    """

    device: str
    path: Annotated[str, Meta(pattern=r"^/[^\x00]*\Z")]
    size: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    modified: int


async def sealed(disk: Block) -> list[Seal]:
    """What the images of a disk are now; QEMU has written all of it.

    Raises:
        HypervisorError, DeviceError: One cannot be looked at, or is no file.
    """
    try:
        files = await programs.files_of_image(disk.path, disk.format)
    except DeviceError as error:
        error.device = disk.label
        raise
    # A machine stands still meanwhile, or a host that shuts down waits.
    storage = Storage(Path(disk.path).parent, "")
    try:
        return [await storage.do(_sealed, disk, path) for path in files]
    except Unanswered as error:
        error.device = error.device or disk.label
        raise


def _sealed(disk: Block, path: str) -> Seal:
    try:
        status = _seen(path)
    except OSError as error:
        raise HypervisorError(
            plain_words(error), device=disk.label, remedy=what_to_do(error)
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise HypervisorError(
            f"{path} is no file, and whether it changes cannot be seen", device=disk.label
        )
    return Seal(device=disk.label, path=path, size=status.st_size, modified=status.st_mtime_ns)


def _seen(path: str) -> os.stat_result:
    """What a file is: opened for it, since a network's file system tells from memory otherwise.

    What is no file is not opened: a device may do something about that.
    """
    status = os.stat(path)  # noqa: PTH116 - as the line below
    if not stat.S_ISREG(status.st_mode):
        return status
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.fstat(handle)
    finally:
        os.close(handle)


def changed(seal: Seal) -> str:
    """What has become of a disk since; empty where it is what it was. Blocks."""
    try:
        now = _seen(seal.path)
    except OSError as error:
        return plain_words(error)
    if (now.st_size, now.st_mtime_ns) != (seal.size, seal.modified):
        return f"{seal.path} was written to since the guest was saved"
    return ""
