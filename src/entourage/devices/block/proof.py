"""What a disk is that another host names: the rules by which the target believes it.

A source is a stranger to the target. A file of the target's is opened, or built upon, only where it
was made by this migration or is proven to be the source's own: the source's nonce lies beside it;
or the source knows its content, and then it is only read. ``Allowed`` remembers what is proven;
here is what proves it, and what must be proven.

    look         the source's nonce is beside a file: both hosts see it
    digest       the source knows what is in a file
    check_new    an image that the source wants made names nothing that is not proven
    check_chain  nor does an image that the target has not made
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Any

import msgspec

from entourage.devices.block import storage
from entourage.devices.block.images import NewImage
from entourage.devices.block.storage import Seen, Spot, is_nonces_name
from entourage.errors import DeviceError
from entourage.hosts.allowed import Allowed
from entourage.hosts.beneath import NotAllowed, through
from entourage.hosts.programs import local_path, qemu_img_info
from entourage.hosts.threads import in_thread

_LONGEST_CHAIN = 64
_SHA256 = re.compile("[0-9a-f]{64}")
# What ``images`` reads of a qcow2, and no more: others name files, or keys.
_OPTIONS = {
    "cluster_size": "[0-9]{3,8}",
    "compat": "0.10|1.1",
    "refcount_bits": "[0-9]{1,2}",
    "lazy_refcounts": "on",
    "extended_l2": "on",
    "compression_type": "zlib|zstd",
}


async def look(spot: Spot, allowed: Allowed) -> Seen:
    """See what is at a path that another host names; remember it where that proves a file.

    Raises:
        NotAllowed: It is none that the other host may name.
    """
    return await in_thread(_look, spot, allowed)


def _look(spot: Spot, allowed: Allowed) -> Seen:
    if not storage.takes_samples(spot):
        raise NotAllowed("samples are asked for that no source takes")
    try:
        if not spot.path.startswith("/dev/"):
            real = allowed.images.real(spot.path)
        elif stat.S_ISBLK(os.stat(spot.path).st_mode):  # noqa: PTH116 - one call
            allowed.device(spot.path)
            return storage.look_now(spot)
        else:
            real = allowed.images.real(spot.path)
    except FileNotFoundError:  # nor is its directory: nothing is there
        return Seen(opens=allowed.may_appear(spot.path))
    except OSError as error:
        return Seen(kind="other", error=error.strerror or str(error))
    if _is_device(real):
        allowed.device(real)
        return storage.look_now(msgspec.structs.replace(spot, path=real))
    spot = msgspec.structs.replace(spot, path=real)
    try:
        if stat.S_ISREG(os.lstat(real).st_mode):  # opening anything else may do something
            with allowed.images.opened(real) as handle:
                return _look_at_file(spot, handle, allowed)
    except FileNotFoundError:
        pass
    except OSError as error:
        return Seen(kind="other", error=error.strerror or str(error))
    seen = storage.look_now(msgspec.structs.replace(spot, samples=()))
    if seen.kind == "none":
        return msgspec.structs.replace(seen, opens=allowed.may_appear(real))
    return seen


def _look_at_file(spot: Spot, handle: int, allowed: Allowed) -> Seen:
    """The same of a file that is open: what somebody puts in its place meanwhile gains nothing."""
    real, opens = spot.path, through(handle)
    seen = storage.look_now(msgspec.structs.replace(spot, samples=()), opens)
    # What is in a file is told only where that could have it opened.
    if spot.samples and allowed.may_appear(real) and storage.has_samples(spot, seen.size):
        seen = storage.look_now(spot, opens)
    if seen.nonce and seen.kind == "file":
        allowed.prove(real, handle)
    return msgspec.structs.replace(seen, opens=seen.kind != "file" or allowed.may_open(real))


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.lstat(path).st_mode)
    except OSError:
        return False


async def digest(path: str, known: str, allowed: Allowed) -> str:
    """Whether an image, or a device that the source may name, holds what the source knows.

    Nothing is said of what it holds otherwise: who is told of it could then say that he knows it.

    Args:
        path: The image or device.
        known: The SHA-256 of what the source has.
        allowed: What the source may name.

    Returns:
        ``known`` where that is so; else nothing.

    Raises:
        NotAllowed: The source may not name it.
        OSError: It cannot be read.
    """
    named = allowed.has_device(path)
    real = path if named else await in_thread(allowed.images.real, path)
    if not _SHA256.fullmatch(known):
        return ""
    if named:
        return known if await storage.digest(real) == known else ""
    with contextlib.ExitStack() as stack:
        # A filesystem that hangs keeps nobody else from being answered.
        handle = await in_thread(stack.enter_context, allowed.images.opened(real))
        if await storage.digest(through(handle)) != known:
            return ""
        allowed.prove_content(real, handle)
    return known


def check_new(new: NewImage, allowed: Allowed) -> None:
    """See that an image may be made: of what ``images.like`` says, and of nothing else.

    Raises:
        DeviceError: It may not.
    """
    if is_nonces_name(Path(new.path).name):
        raise DeviceError(f"{new.path} has a name that is Entourage's own")
    for key, value in new.options.items():
        if not re.fullmatch(_OPTIONS.get(key, "(?!)"), value):
            raise DeviceError(f"an image with {key}={value} is not made for another host")
    if new.backing is not None:
        if new.backing_format not in {"raw", "qcow2"}:
            raise DeviceError(f"no overlay is made on an image of format {new.backing_format}")
        check_below(new.backing, new.backing_format, allowed)


def check_below(path: str, image_format: str, allowed: Allowed, *, written: bool = False) -> None:
    """See that an image that another one names may be opened as that.

    Args:
        path: What is named.
        image_format: How it would be opened.
        allowed: What may be.
        written: Whether the guest would write to it: a data file.

    Raises:
        DeviceError: It may not.
    """
    if allowed.has_device(path):
        return
    real = allowed.images.real_by_path(path)  # QEMU opens it by the name that the other has for it
    made_as = allowed.made_as(real)
    if not allowed.may_open(real, written=written) or (made_as and made_as != image_format):
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
        text = await qemu_img_info(path, "qcow2")
        info = msgspec.json.decode(text, type=dict[str, Any])
        data_file = info.get("format-specific", {}).get("data", {}).get("data-file")
        if data_file:
            # QEMU takes one that is relative from its own directory, not from the image's.
            check_below(local_path(str(data_file), path), "raw", allowed, written=True)
        backing = info.get("full-backing-filename")
        if not backing:
            return
        below, kind = local_path(str(backing), path), str(info.get("backing-filename-format", ""))
        if kind not in {"raw", "qcow2"}:
            raise DeviceError(f"{path} does not say of which format {below} is")
        check_below(below, kind, allowed)
        if kind == "raw":
            return
        path = below
    raise DeviceError(f"the images below it are more than {_LONGEST_CHAIN}")
