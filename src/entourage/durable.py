"""Files that a crash leaves whole: as they were before, or as they were to be. All of it blocks."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file anew, 0600; it and its name are on the disk when this returns.

    Its directory is made, 0700, where there is none. One process at a time may write it: what one
    that was killed has left is taken away by the next.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    _fill(scratch, content)
    try:
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make(path: Path, content: bytes) -> None:
    """Make a file, 0600; it and its name are on the disk when this returns.

    Of several processes that do so at once, also on a network's file system, one succeeds.

    Raises:
        FileExistsError: There is one already; it stays as it is.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    _fill(scratch, content)
    try:
        os.link(scratch, path)
    finally:
        scratch.unlink()
    sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Make a directory, 0700; its name is on the disk when this returns.

    Raises:
        FileExistsError: There is something already.
    """
    path.mkdir(mode=0o700)
    sync_directory(path.parent)


def rename(path: Path, name: Path) -> None:
    """Give a file or directory another name beside it; it is on the disk when this returns."""
    path.rename(name)
    sync_directory(name.parent)


def remove(path: Path) -> None:
    """Remove a file; that is on the disk when this returns. One that is not there is no error.

    Who has removed that may have been killed before it was on the disk.
    """
    path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):  # nor its directory
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until what was written to a file is on the disk, whoever has written it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(scratch: Path, content: bytes) -> None:
    """Make a file of that content, and wait until it is on the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(scratch, flags, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
