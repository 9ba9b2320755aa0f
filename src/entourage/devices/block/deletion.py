"""A file that was copied, which the source deletes once the guest runs on the target."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from entourage.devices.block.making import sync
from entourage.hosts.fileid import file_id


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the source that has been copied, and goes once the guest runs on the target."""

    path: str
    id: str
    """See ``file_id``."""


def as_it_is(path: str) -> Copied:
    """The file that is at a path now."""
    return Copied(path=path, id=file_id(Path(os.path.realpath(path))))


def delete(copied: Copied) -> bool:
    """Delete a file that has moved, and the link by which it was named.

    Returns:
        False where another file is there now, which is left.

    Raises:
        OSError: It cannot be deleted.
    """
    path, real = Path(copied.path), Path(os.path.realpath(copied.path))
    with contextlib.suppress(FileNotFoundError):
        if file_id(real) != copied.id:
            return False
        real.unlink()
        sync(real.parent)
        if path.is_symlink():
            path.unlink()
            sync(path.parent)
    return True
