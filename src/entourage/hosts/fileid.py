"""A file's identity that stays the same when its host restarts."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_GET_VERSION: Final = 0x80087601  # FS_IOC_GETVERSION of linux/fs.h, as x86 and ARM have it
_LONG: Final = struct.Struct("l")


def file_id(path: Path) -> str:
    """The inode of a regular file and its generation, which rises when an inode is used again.

    The device's number is no part of it: that may be another one after each start. Where the
    filesystem tells no generation (tmpfs, NFS), the inode must do.

    Args:
        path: The file; a symbolic link is not followed.

    Raises:
        OSError: It is not there, or is a symbolic link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return id_of(descriptor)
    finally:
        os.close(descriptor)


def id_of(descriptor: int) -> str:
    """The same of an open file."""
    inode = os.fstat(descriptor).st_ino
    try:
        answer = fcntl.ioctl(descriptor, _GET_VERSION, bytes(_LONG.size))
    except OSError:
        return f"{inode}"
    # The kernel writes an int, whatever the request's number says.
    return f"{inode}.{_LONG.unpack(answer)[0] & 0xFFFFFFFF}"
