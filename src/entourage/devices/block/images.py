"""Disk images: what they are (``qemu-img``), and what one that is like another would be.

What a guest has written into a raw image is never probed for a format: it could name any file of
the host as its backing file. The format is what the domain says.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import Any, Final, Literal

import msgspec

from entourage.devices.block import storage
from entourage.errors import DeviceError, what_to_do
from entourage.hosts.programs import local_path, qemu_img, qemu_img_info
from entourage.hosts.threads import in_thread

MARGIN: Final = 16 << 20
"""Bytes that an image may need beside what is in it."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a chain, as it is on the source.

    Attributes:
        path: Absolute.
        kind: A regular file or a block device.
        format: ``raw`` or ``qcow2``, or what else a backing file is.
        virtual_size: What the guest sees, bytes.
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


async def inspect(path: str, image_format: str) -> list[Image]:
    """An image and all that it is built on, the top one first.

    Raises:
        DeviceError: It cannot be read, or is not what the domain says.
    """
    if image_format == "raw":
        return [await in_thread(_image, path, "raw", {})]
    text = await qemu_img_info(path, image_format, "--backing-chain")
    try:
        return await in_thread(_chain, path, text)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DeviceError(f"qemu-img info says what cannot be understood: {error}") from error


def _chain(path: str, text: str) -> list[Image]:
    """The images of what ``qemu-img info --backing-chain`` has printed."""
    return [
        _image(path if at == 0 else local_path(info["filename"], path), info["format"], info)
        for at, info in enumerate(msgspec.json.decode(text, type=list[dict[str, Any]]))
    ]


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
        raise DeviceError(
            f"{path} cannot be read: {error.strerror}", remedy=what_to_do(error)
        ) from error
    device = stat.S_ISBLK(status.st_mode)
    details: dict[str, Any] = info.get("format-specific", {}).get("data", {})
    data_file = details.get("data-file")
    return Image(
        path=path,
        kind="device" if device else "file",
        format=image_format,
        virtual_size=info.get("virtual-size", storage.whole_sectors(size)),
        allocated=size if device else status.st_blocks * 512,
        options=_options(info, details) if image_format == "qcow2" else {},
        problems=tuple(_problems(info, details)),
        bitmaps=tuple(bitmap["name"] for bitmap in details.get("bitmaps", ())),
        data_file=local_path(str(data_file), path) if data_file else None,
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
        required, most = image.allocated, image.virtual_size + image.virtual_size // 64 + MARGIN
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
        most if image.preallocated and flat else min(most, required + max(required // 16, MARGIN))
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
