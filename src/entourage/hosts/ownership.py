"""Files that are given to a user for as long as a machine runs, and given back after.

Who owned them is written down, durably, before any of them is given: a crash or a power cut loses
nothing of it. A file is given back only while it is the very file that was given, and is still
owned by whom it was given to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator, Sequence
from pathlib import Path

import msgspec

from entourage import durable
from entourage.hosts.fileid import id_of

RECORD = "owners.json"
"""The name of a record, in a directory that is not removed while it is there."""
_VERSION = 1


class GivenFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose owner was changed.

    Attributes:
        path: Its path, without links.
        id: Which file it is; see ``file_id``. Of a device: its number.
        before: Who owned it, by number.
        given: Whom it was given to.
    """

    path: str
    id: str
    before: int
    given: int


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    files: tuple[GivenFile, ...]


def give(record: Path, paths: Sequence[str], uid: int) -> None:
    """Make a user the owner of files. Blocks.

    Args:
        record: Where it is written down who owned them; its directory exists.
        paths: Plain files and devices; what a link leads to is given.
        uid: The user.

    Raises:
        OSError: One is not there, is something else, or its filesystem takes no other owner. What
            was given before that one is in the record.
    """
    files = {one.path: one for one in _read(record)}
    with contextlib.ExitStack() as stack:
        opened: list[int] = []
        for path in paths:
            real = os.path.realpath(path)
            descriptor, identity = stack.enter_context(_opened(real))
            owner = os.fstat(descriptor).st_uid
            if owner == uid:
                continue
            opened.append(descriptor)
            known = files.get(real)
            if known is None or known.id != identity:
                files[real] = GivenFile(path=real, id=identity, before=owner, given=uid)
        if opened:
            _write(record, tuple(files.values()))
        for descriptor in opened:
            os.fchown(descriptor, uid, -1)


def give_back(record: Path, *, except_for: Sequence[str] = ()) -> None:
    """Give files back to whom they belonged, and delete the record. Blocks.

    Args:
        record: What ``give`` wrote; nothing happens where there is none.
        except_for: Paths of files that stay whose they are.

    Raises:
        OSError: One cannot be given back; it stays in the record.
    """
    left: list[GivenFile] = []
    problems: list[OSError] = []
    kept = {os.path.realpath(path) for path in except_for}
    files = _read(record)
    for one in files:
        if one.path in kept:
            continue
        try:
            with _opened(one.path) as (descriptor, identity):
                if identity == one.id and os.fstat(descriptor).st_uid == one.given:
                    os.fchown(descriptor, one.before, -1)
                    os.fsync(descriptor)  # before the record, on another disk perhaps, is gone
        except (FileNotFoundError, NotADirectoryError):
            pass  # nothing is left to give back
        except OSError as error:
            left.append(one)
            problems.append(error)
    if problems:
        _write(record, tuple(left))
        raise problems[0]
    with contextlib.suppress(FileNotFoundError):
        record.unlink()


def given(record: Path) -> tuple[str, ...]:
    """The paths of what is given."""
    return tuple(one.path for one in _read(record))


@contextlib.contextmanager
def _opened(real: str) -> Generator[tuple[int, str]]:
    """A file or a device, and which one it is; a link in its place is not followed."""
    # Looked at before it is opened: to open a FIFO or a tape is to do something with it.
    if not _is_given(os.lstat(real).st_mode):
        raise OSError(f"{real} is neither a file nor a device")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(real, flags)
    try:
        status = os.fstat(descriptor)
        if not _is_given(status.st_mode):
            raise OSError(f"{real} has become something else meanwhile")
        if stat.S_ISREG(status.st_mode):
            yield descriptor, id_of(descriptor)
        else:
            yield descriptor, f"device {status.st_rdev}"
    finally:
        os.close(descriptor)


def _is_given(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


def _read(record: Path) -> tuple[GivenFile, ...]:
    try:
        content = record.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    try:
        said = msgspec.json.decode(content, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OSError(f"{record} cannot be read: {error}") from error
    if said.version != _VERSION:
        raise OSError(f"{record} was written by a newer Entourage")
    return said.files


def _write(record: Path, files: tuple[GivenFile, ...]) -> None:
    """Write the record; the disk knows it when this returns."""
    durable.write(record, msgspec.json.encode(_Record(version=_VERSION, files=files)))
