"""Do two hosts see the same storage? Looked at from both ends, never believed.

The source writes a nonce beside an image and the target looks for it: that proves that the two
directories are one. Then inode and size prove that the name means the same file. Block devices are
compared by what their hardware says of itself, and by some of what is on them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from entourage.devices.block.hardware import WEAK, boot_id, identities
from entourage.hosts.threads import in_thread

_MARK = "entourage nonce"
_PREFIX, _SUFFIX = ".entourage-", ".nonce"
_NONCE = re.compile(r"\.entourage-[A-Za-z0-9-]{1,80}\.nonce")
_SMALL = 256
# A nonce that a killed process left behind is swept up by the next one after this many seconds.
_LIFE = 3600
_SECTOR = 512
_SAMPLE = 4096
_SAMPLES = 16
_ZERO = hashlib.sha256(bytes(_SAMPLE)).hexdigest()


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """A path to look at.

    Attributes:
        path: The path, on the host that looks.
        nonce: The name of the nonce that the other host wrote beside its file; empty for none.
        content: What the nonce holds.
        samples: Where to take samples of the content, bytes from the beginning.
    """

    path: str
    nonce: str = ""
    content: str = ""
    samples: tuple[int, ...] = ()


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a host sees at a path.

    Attributes:
        kind: ``none`` where there is nothing.
        size: Bytes; of a device, all of it.
        inode: The inode's number; not comparable alone.
        nonce: Whether the other host's nonce is there.
        ids: What the thing is certainly known by: a file by kernel, filesystem and inode.
        samples: The digest of each sample.
        error: Why it could not be looked at; empty where it could.
        opens: Of the target's: whether it would be opened there as it is; or, where nothing is
            there, as what an external tool brings there.
    """

    kind: Literal["none", "file", "device", "other"] = "none"
    size: int = 0
    inode: int = 0
    nonce: bool = False
    ids: frozenset[str] = frozenset()
    samples: tuple[str, ...] = ()
    error: str = ""
    opens: bool = True


async def look(spot: Spot) -> Seen:
    """See what is at a path, in a thread: network storage may take its time."""
    return await in_thread(look_now, spot)


def look_now(spot: Spot, opens: str = "") -> Seen:
    """See what is at a path; may block.

    Args:
        spot: What to look at.
        opens: Another path by which the same file is opened.
    """
    path = Path(opens or spot.path)
    try:
        if not os.path.lexists(path):
            return Seen(nonce=_nonce_there(spot))
        # Opening some devices does something (a watchdog), so only what is wanted is opened.
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISBLK(mode)):
            return Seen(kind="other", error="it is neither a file nor a block device")
        # Opening is what makes a network filesystem ask its server.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Seen(kind="other", error=error.strerror or str(error))
    try:
        status = os.fstat(handle)
        if stat.S_ISBLK(status.st_mode):
            kind, size = "device", os.lseek(handle, 0, os.SEEK_END)
            ids = identities(status.st_rdev)
        else:
            kind, size = "file", status.st_size
            ids = frozenset({f"file:{boot_id()}:{status.st_dev}:{status.st_ino}"})
        return Seen(
            kind=kind,
            size=size,
            inode=status.st_ino,
            nonce=_nonce_there(spot),
            ids=ids,
            samples=_samples(path, spot.samples),
        )
    except OSError as error:
        return Seen(kind="other", error=error.strerror or str(error))
    finally:
        os.close(handle)


def _nonce_there(spot: Spot) -> bool:
    """Whether the other host's nonce lies beside this host's file."""
    if not spot.nonce:
        return False
    if not (_NONCE.fullmatch(spot.nonce) and spot.content.startswith(_MARK)):
        return False
    try:
        return _small_file(Path(os.path.realpath(spot.path)).parent / spot.nonce) == spot.content
    except (OSError, UnicodeError):
        return False


def is_nonces_name(name: str) -> bool:
    """Whether a file of that name could be taken for a nonce, and so may not be made."""
    return name.startswith(_PREFIX)


def _small_file(path: Path) -> str:
    """A text of some bytes in a directory that others may write to: no link, no FIFO is followed.

    Raises:
        OSError: It cannot be read, or is no plain file.
        UnicodeError: It is no such text.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return os.read(handle, _SMALL).decode("ascii")
    finally:
        os.close(handle)


def _samples(path: Path, offsets: Sequence[int]) -> tuple[str, ...]:
    """Digests of blocks; past the page cache where possible, for another host may have written."""
    if not offsets:
        return ()
    handle = _open_direct(path)
    try:
        with mmap.mmap(-1, _SAMPLE) as buffer:  # aligned, as direct reads want it
            digests: list[str] = []
            for offset in offsets:
                buffer[:] = bytes(_SAMPLE)
                os.preadv(handle, [buffer], offset)
                digests.append(hashlib.sha256(buffer).hexdigest())
            return tuple(digests)
    finally:
        os.close(handle)


def _open_direct(path: Path) -> int:
    """Open for reading without the page cache, or with it where there is no other way."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def sample_offsets(size: int) -> tuple[int, ...]:
    """Where to take samples: the beginning, and places that nobody can foresee."""
    blocks = size // _SAMPLE
    if blocks == 0:
        return ()
    return (0, *(secrets.randbelow(blocks) * _SAMPLE for _ in range(_SAMPLES - 1)))


def takes_samples(spot: Spot) -> bool:
    """Whether its samples are at places that ``sample_offsets`` could have given."""
    return len(spot.samples) <= _SAMPLES and not any(offset % _SAMPLE for offset in spot.samples)


def has_samples(spot: Spot, size: int) -> bool:
    """Whether there is something at each of its samples, in so many bytes."""
    return all(offset + _SAMPLE <= size for offset in spot.samples)


def same_samples(one: Seen, other: Seen) -> bool:
    """Whether the samples agree, and some of them are more than zeros."""
    return one.samples == other.samples and any(digest != _ZERO for digest in one.samples)


def same_device(one: Seen, other: Seen) -> bool:
    """Whether two block devices are one: by their hardware, their size and what is on them."""
    common = one.ids & other.ids
    if not common or one.size != other.size or one.samples != other.samples:
        return False
    if any(not identity.startswith(WEAK) for identity in common):
        return True
    return same_samples(one, other)


@contextlib.contextmanager
def nonce_beside(path: str, migration: str) -> Generator[Spot]:
    """Write a nonce beside the file for as long as the context lasts.

    Yields:
        Where to look for it on the other host; the path is this host's.

    Raises:
        OSError: Nothing can be written there.
    """
    directory = Path(os.path.realpath(path)).parent
    _sweep(directory)
    word = secrets.token_hex(16)
    name = f"{_PREFIX}{migration[:40]}-{word[:12]}{_SUFFIX}"
    content = f"{_MARK} {word} until {int(time.time()) + _LIFE}\n"
    spot = Spot(path=path, nonce=name, content=content)
    nonce = directory / name
    try:
        with nonce.open("x", encoding="ascii") as file:
            file.write(content)
        yield spot
    finally:
        nonce.unlink(missing_ok=True)


def _sweep(directory: Path) -> None:
    """Remove nonces whose life is over: whoever wrote them was killed."""
    with contextlib.suppress(OSError, ValueError):
        for old in directory.glob(f"{_PREFIX}*{_SUFFIX}"):
            mark, _, until = _small_file(old).rpartition(" until ")
            if mark.startswith(_MARK) and int(until) < time.time():
                old.unlink(missing_ok=True)


def whole_sectors(size: int) -> int:
    """What the guest sees of a raw image of that size: a last sector begun is a whole one."""
    return -(-size // _SECTOR) * _SECTOR


async def digest(path: str) -> str:
    """SHA-256 of what a guest sees, in a thread that ends soon when this is cancelled."""
    stop = threading.Event()
    try:
        return await in_thread(_digest, path, stop)
    finally:
        stop.set()


def _digest(path: str, stop: threading.Event) -> str:
    total, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not (stat.S_ISREG(mode := os.fstat(handle).st_mode) or stat.S_ISBLK(mode)):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is neither a file nor a block device", path)
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered, into one buffer
        buffer = bytearray(1 << 20)
        while (count := file.readinto(buffer)) and not stop.is_set():
            total.update(memoryview(buffer)[:count])
            size += count
    total.update(bytes(whole_sectors(size) - size))
    return total.hexdigest()


def free_space(directory: str) -> tuple[int, int]:
    """The filesystem's number (st_dev) and the bytes free on it for everyone."""
    space = os.statvfs(directory)
    return os.stat(directory).st_dev, space.f_bavail * space.f_frsize  # noqa: PTH116 - as statvfs
