"""Disk images: what they are (``qemu-img``), and making one that is like another.

What a guest has written into a raw image is never probed for a format: it could name any file of
the host as its backing file. The format is what the domain says.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import re
import shutil
import stat
from pathlib import Path
from typing import Any, Literal

import msgspec

from entourage.devices.block import storage
from entourage.errors import DeviceError
from entourage.hosts.allowed import Allowed
from entourage.hosts.resources import Ledger, place

_MARGIN = 16 << 20
_LONGEST_CHAIN = 64
# What ``_options`` reads of a qcow2, and no more: others name files, or keys.
_OPTIONS = {
    "cluster_size": "[0-9]{3,8}",
    "compat": "0.10|1.1",
    "refcount_bits": "[0-9]{1,2}",
    "lazy_refcounts": "on",
    "extended_l2": "on",
    "compression_type": "zlib|zstd",
}


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a chain, as it is on the source.

    Attributes:
        path: Absolute.
        kind: A regular file or a block device.
        format: ``raw`` or ``qcow2``, or what else a backing file is.
        virtual_size: What the guest sees, bytes.
        file_size: The file's or device's own size.
        allocated: Bytes that the file takes on its filesystem.
        options: What ``qemu-img create`` needs to make one that is like it.
        problems: What a copy would lose or could not read: reason and remedy of each.
        bitmaps: The names of dirty bitmaps in it.
        data_file: The file beside a qcow2 that holds its data; None for the usual sort.
    """

    path: str
    kind: Literal["file", "device"]
    format: str
    virtual_size: int
    file_size: int
    allocated: int
    options: dict[str, str] = {}
    problems: tuple[tuple[str, str], ...] = ()
    bitmaps: tuple[str, ...] = ()
    data_file: str | None = None

    @property
    def preallocated(self) -> bool:
        """Whether the filesystem holds room for all that the guest may write."""
        return self.kind == "file" and self.allocated >= max(self.virtual_size, 1)


class NewImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image to be made on the target.

    Attributes:
        path: Where.
        format: ``raw`` or ``qcow2``.
        size: What the guest sees, bytes.
        room: Bytes that its filesystem must have free.
        preallocated: Whether the filesystem sets all of it aside at once.
        options: For ``qemu-img create``.
        backing, backing_format: The image below it, for an overlay.
        mode, owner, group: As the source's file has them.
    """

    path: str
    format: Literal["raw", "qcow2"]
    size: int
    room: int
    preallocated: bool
    options: dict[str, str] = {}
    backing: str | None = None
    backing_format: str | None = None
    mode: int = 0o600
    owner: str = ""
    group: str = ""


async def _run(*command: str) -> tuple[int, str, str]:
    """Run a program; its status, and what it said. It is ended where this is cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"LC_ALL": "C"},
        )
    except OSError as error:
        raise DeviceError(
            f"{command[0]} cannot be run: {error.strerror}",
            remedy="install qemu-utils" if command[0] == "qemu-img" else "",
        ) from error
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    said = " ".join(err.decode(errors="replace").split())
    return process.returncode or 0, out.decode(errors="replace"), said


async def qemu_img(*arguments: str) -> str:
    """Run ``qemu-img`` and return what it printed.

    Raises:
        DeviceError: It cannot be run, or failed.
    """
    status, out, said = await _run("qemu-img", *arguments)
    if status:
        raise DeviceError(f"qemu-img {arguments[0]} failed: {said or f'status {status}'}")
    return out


def has_qemu_img() -> bool:
    """Whether this host has ``qemu-img``."""
    return shutil.which("qemu-img") is not None


async def inspect(path: str, image_format: str) -> list[Image]:
    """An image and all that it is built on, the top one first.

    Raises:
        DeviceError: It cannot be read, or is not what the domain says.
    """
    if image_format == "raw":
        return [_image(path, "raw", {})]
    text = await qemu_img(
        "info", "--output=json", "-U", "--backing-chain", "-f", image_format, "--", path
    )
    try:
        return [
            _image(path if at == 0 else _absolute(info["filename"], path), info["format"], info)
            for at, info in enumerate(msgspec.json.decode(text, type=list[dict[str, Any]]))
        ]
    except (msgspec.DecodeError, KeyError) as error:
        raise DeviceError(f"qemu-img info says what cannot be understood: {error}") from error


def _absolute(name: str, top: str) -> str:
    """The path of an image of the chain, or a DeviceError where it is no path."""
    path = name.removeprefix("file:")
    if not path.startswith("/"):
        raise DeviceError(f"the backing file of {top} is not a local path: {name}")
    return path


def _image(path: str, image_format: str, info: dict[str, Any]) -> Image:
    """One image, from what qemu-img says (nothing, for raw) and what its filesystem says."""
    try:
        status = os.stat(path)  # noqa: PTH116 - one call for what pathlib wants three for
        if stat.S_ISBLK(status.st_mode):
            size = _device_size(path)
        elif stat.S_ISREG(status.st_mode):
            size = status.st_size
        else:
            raise DeviceError(f"{path} is neither a file nor a block device")
    except OSError as error:
        raise DeviceError(f"{path} cannot be read: {error.strerror}") from error
    device = stat.S_ISBLK(status.st_mode)
    details: dict[str, Any] = info.get("format-specific", {}).get("data", {})
    data_file = details.get("data-file")
    return Image(
        path=path,
        kind="device" if device else "file",
        format=image_format,
        virtual_size=info.get("virtual-size", storage.whole_sectors(size)),
        file_size=size,
        allocated=size if device else status.st_blocks * 512,
        options=_options(info, details) if image_format == "qcow2" else {},
        problems=tuple(_problems(info, details)),
        bitmaps=tuple(bitmap["name"] for bitmap in details.get("bitmaps", ())),
        data_file=str(Path(path).parent / data_file) if data_file else None,
    )


def _device_size(path: str) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)


def _options(info: dict[str, Any], details: dict[str, Any]) -> dict[str, str]:
    """What makes a new qcow2 like this one."""
    options = {"cluster_size": str(info["cluster-size"]), "compat": str(details["compat"])}
    if options["compat"] != "0.10":  # the old one knows none of these
        options["refcount_bits"] = str(details.get("refcount-bits", 16))
        for key, name in (("lazy-refcounts", "lazy_refcounts"), ("extended-l2", "extended_l2")):
            if details.get(key):
                options[name] = "on"
        if details.get("compression-type", "zlib") != "zlib":
            options["compression_type"] = str(details["compression-type"])
    return options


def _problems(info: dict[str, Any], details: dict[str, Any]) -> list[tuple[str, str]]:
    """What a copy of the running image would lose or could not read, and what to do."""
    found: list[tuple[str, str]] = []
    shared = "put it on shared storage"
    if info.get("snapshots"):
        names = ", ".join(str(snapshot["name"]) for snapshot in info["snapshots"])
        reason = f"a copy would lose the snapshots in the image: {names}"
        found.append((reason, f"delete them (qemu-img snapshot -d), or {shared}"))
    if info.get("encrypted") or "encrypt" in details:
        found.append(("the image is encrypted, and the domain does not have its key", shared))
    if "data-file" in details:
        found.append((f"the image keeps its data in another file: {details['data-file']}", shared))
    if details.get("corrupt"):
        found.append(("the image is marked as corrupt", "qemu-img check -r all, while it is off"))
    return found


async def room(image: Image, *, flat: bool) -> int:
    """Bytes that a copy will take, with some to spare for what the guest writes meanwhile.

    Args:
        image: The top image.
        flat: Whether the copy takes in what is in the images below.

    Raises:
        DeviceError: qemu-img cannot tell.
    """
    if image.format == "qcow2":
        required, most = image.allocated, image.virtual_size + image.virtual_size // 64 + _MARGIN
        if flat:
            text = await qemu_img(
                "measure", "--output=json", "-U", "-O", "qcow2", "-f", "qcow2",
                "-o", f"cluster_size={image.options['cluster_size']}", "--", image.path,
            )  # fmt: skip
            sizes = msgspec.json.decode(text, type=dict[str, int])
            required, most = sizes["required"], sizes["fully-allocated"]
    else:
        required, most = image.allocated, image.virtual_size
    return (
        most if image.preallocated and flat else min(most, required + max(required // 16, _MARGIN))
    )


def like(image: Image, path: str, *, room: int, below: Image | None = None) -> NewImage:
    """The description of a new image that is like this one.

    Args:
        image: The source's.
        path: Where the new one is to be.
        room: Bytes that it will take.
        below: The image that it is an overlay of; None for one that stands alone.
    """
    status = os.stat(image.path)  # noqa: PTH116 - mode, owner and group
    return NewImage(
        path=path,
        format="qcow2" if image.format == "qcow2" else "raw",
        size=image.virtual_size,
        room=room,
        preallocated=image.preallocated and below is None,
        options=image.options,
        backing=below.path if below else None,
        backing_format=below.format if below else None,
        # A device's mode and owner are udev's business, not the disk's.
        mode=0o600 if image.kind == "device" else status.st_mode & 0o666 | 0o600,
        owner="" if image.kind == "device" else _name(pwd.getpwuid, status.st_uid),
        group="" if image.kind == "device" else _name(grp.getgrgid, status.st_gid),
    )


def _name(lookup: Any, number: int) -> str:
    """The name behind a number, which may be another number on another host."""
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)


async def create(new: NewImage, migration: str, ledger: Ledger, allowed: Allowed) -> bool:
    """Make an image under a name that can only be ours, then give it its own.

    All of it happens in the directory as it was opened, whatever its name means meanwhile.

    Returns:
        False where it should be preallocated and the filesystem has no way to do that.

    Raises:
        DeviceError: It cannot be made; what was made of it is in the ledger.
    """
    _check_new(new, allowed)
    try:
        final = Path(allowed.images.real(new.path))
        name = f".entourage-{migration}-{os.urandom(6).hex()}.part"
        with allowed.images.parent(str(final)) as directory:
            ledger.record("scratch", path=str(final.parent / name))
            scratch = directory / name
            _make_empty(scratch, new, allowed)
            if new.format == "qcow2":
                await _create_qcow2(new, scratch)
            done = not new.preallocated or await set_aside(str(scratch))
            sync(scratch)
            place(scratch, directory / final.name, ledger, known_as=final)
            sync(directory)  # the name, too, must survive a power cut once the guest runs on it
    except FileExistsError as error:
        raise DeviceError(f"{new.path} has come into being meanwhile") from error
    except OSError as error:
        raise DeviceError(f"{new.path} cannot be made: {error.strerror}") from error
    allowed.make(str(final), new.format)
    return done


def _check_new(new: NewImage, allowed: Allowed) -> None:
    """What another host asks to be made is made of what ``like`` says, and of nothing else."""
    if storage.is_nonces_name(Path(new.path).name):
        raise DeviceError(f"{new.path} has a name that is Entourage's own")
    for key, value in new.options.items():
        if not re.fullmatch(_OPTIONS.get(key, "(?!)"), value):
            raise DeviceError(f"an image with {key}={value} is not made for another host")
    if new.backing is not None:
        if new.backing_format not in {"raw", "qcow2"}:
            raise DeviceError(f"no overlay is made on an image of format {new.backing_format}")
        check_below(new.backing, new.backing_format, allowed)


def check_below(path: str, image_format: str, allowed: Allowed) -> None:
    """See that an image that another one names may be opened as that.

    Raises:
        DeviceError: It may not.
    """
    if allowed.has_device(path):
        return
    real = allowed.images.real(path)
    made_as = allowed.made_as(real)
    if not allowed.may_open(real) or (made_as and made_as != image_format):
        raise DeviceError(
            f"{path}, which an image is built on, is not proven to be the source's",
            remedy="agent.believe-shared in the settings there lets it be opened all the same",
        )


async def check_chain(path: str, allowed: Allowed) -> None:
    """See that a qcow2 image that was not made here names only what may be opened.

    Each image is looked at by itself: what it names is opened only once it is known to be allowed.

    Raises:
        DeviceError: It names something else, or cannot be read.
    """
    for _ in range(_LONGEST_CHAIN):
        text = await qemu_img("info", "--output=json", "-U", "-f", "qcow2", "--", path)
        info = msgspec.json.decode(text, type=dict[str, Any])
        data_file = info.get("format-specific", {}).get("data", {}).get("data-file")
        if data_file:
            check_below(str(Path(path).parent / data_file), "raw", allowed)
        backing = info.get("full-backing-filename")
        if not backing:
            return
        below, kind = _absolute(str(backing), path), str(info.get("backing-filename-format", ""))
        if kind not in {"raw", "qcow2"}:
            raise DeviceError(f"{path} does not say of which format {below} is")
        check_below(below, kind, allowed)
        if kind == "raw":
            return
        path = below
    raise DeviceError(f"the images below it are more than {_LONGEST_CHAIN}")


def _make_empty(scratch: Path, new: NewImage, allowed: Allowed) -> None:
    """Make the file; never readable for others, not even for a moment."""
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
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Wait until a new file, or what a directory names, is on the disk: kilobytes of metadata."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def _create_qcow2(new: NewImage, scratch: Path) -> None:
    options = new.options | ({"preallocation": "falloc"} if new.preallocated else {})
    arguments = ["create", "-q", "-f", "qcow2"]
    if options:
        arguments += ["-o", ",".join(f"{key}={value}" for key, value in options.items())]
    if new.backing:
        arguments += ["-b", new.backing, "-F", new.backing_format or "raw"]
    await qemu_img(*arguments, "--", str(scratch), str(new.size))


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
    status, _, said = await _run("fallocate", "--keep-size", "--length", str(size), "--", path)
    if status and "not supported" not in said:
        raise DeviceError(f"{path} cannot be preallocated: {said}")
    return status == 0
