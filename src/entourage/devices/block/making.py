"""Making an image on the target: under a name that can only be ours, then under its own.

It is made by its descriptor, and known by that: somebody may put another file at its name.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Generator
from pathlib import Path
from typing import Any

from entourage.devices.block.images import NewImage
from entourage.devices.block.proof import check_new
from entourage.errors import DeviceError, what_to_do
from entourage.hosts.allowed import Allowed
from entourage.hosts.beneath import through
from entourage.hosts.programs import qemu_img, run
from entourage.hosts.resources import Ledger, place
from entourage.hosts.threads import in_thread


async def create(new: NewImage, migration: str, ledger: Ledger, allowed: Allowed) -> bool:
    """Make an image under a name that can only be ours, then give it its own.

    All of it happens in the directory as it was opened, whatever its name means meanwhile.

    Returns:
        False where it should be preallocated and the filesystem has no way to do that.

    Raises:
        DeviceError: It cannot be made; what was made of it is in the ledger.
    """
    check_new(new, allowed)
    try:
        final = Path(allowed.images.real(new.path))
        name = f".entourage-{migration}-{os.urandom(6).hex()}.part"
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(allowed.images.parent(str(final)))
            ledger.record("scratch", path=str(final.parent / name))
            scratch = directory / name
            emptied = _emptied(scratch, new, allowed)
            handle = await in_thread(stack.enter_context, emptied)
            done = await fill_in(new, handle)
            place(scratch, directory / final.name, ledger, known_as=final)
            # The name, too, must survive a power cut once the guest runs on it.
            await in_thread(sync, directory)
            allowed.make(str(final), new.format, handle)
    except FileExistsError as error:
        raise DeviceError(
            f"{new.path} has come into being meanwhile", remedy=what_to_do(error)
        ) from error
    except OSError as error:
        raise DeviceError(
            f"{new.path} cannot be made: {error.strerror}", remedy=what_to_do(error)
        ) from error
    return done


@contextlib.contextmanager
def _emptied(scratch: Path, new: NewImage, allowed: Allowed) -> Generator[int]:
    """Make the file, and keep it open; never readable for others, not even for a moment."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(scratch, flags, 0o600)
    try:
        with contextlib.suppress(PermissionError):  # not root: it is ours then, as QEMU will be
            os.fchown(
                handle,
                owner_number(pwd.getpwnam, allowed.owner(new.owner)),
                owner_number(grp.getgrnam, allowed.owner(new.group)),
            )
        os.fchmod(handle, new.mode & 0o664 | 0o600)  # others may read what they may read there
        if new.format == "raw":
            os.ftruncate(handle, new.size)
        yield handle
    finally:
        os.close(handle)


async def fill_in(new: NewImage, handle: int) -> bool:
    """Make an image of an empty file, by its descriptor alone; synced when this returns.

    Returns:
        False where it should be preallocated and the filesystem has no way to do that.
    """
    path = through(handle)
    try:
        if new.format == "qcow2":
            await _create_qcow2(new, path)
        done = not new.preallocated or await set_aside(path)
    except DeviceError as error:
        error.message = error.message.replace(path, new.path)
        raise
    await in_thread(os.fsync, handle)
    return done


def sync(path: Path) -> None:
    """Wait until a new file, or what a directory names, is on the disk: kilobytes of metadata."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def _create_qcow2(new: NewImage, path: str) -> None:
    options = new.options | ({"preallocation": "falloc"} if new.preallocated else {})
    arguments = ["create", "-q", "-f", "qcow2"]
    if options:
        arguments += ["-o", ",".join(f"{key}={value}" for key, value in options.items())]
    if new.backing:
        arguments += ["-b", new.backing, "-F", new.backing_format or "raw"]
    await qemu_img(*arguments, "--", path, str(new.size))


def owner_number(lookup: Any, name: str) -> int:
    """The number of a user or group on this host; -1 (leave it) where there is none.

    Args:
        lookup: ``pwd.getpwnam`` or ``grp.getgrnam``.
        name: The name, or a number as text.
    """
    if name.isdigit():
        return int(name)
    try:
        return int(lookup(name)[2]) if name else -1
    except KeyError:
        return -1


async def set_aside(path: str) -> bool:
    """Have the filesystem hold room for all of a file, whose content stays as it is.

    Also while QEMU writes to it: so only the kernel's own fallocate will do, not the C library's
    imitation, which reads and writes back.

    Returns:
        False where the filesystem has no way to do that.

    Raises:
        DeviceError: There is no room.
    """
    size = os.stat(path).st_size  # noqa: PTH116 - as the rest of this file
    if size == 0:
        return True
    status, _, said = await run("fallocate", "--keep-size", "--length", str(size), "--", path)
    if status and "not supported" not in said:
        raise DeviceError(f"{path} cannot be preallocated: {said}")
    return status == 0
