"""A file that grows while another one writes it, from its beginning to its end.

``Following`` says how far it has come, where who writes it tells nobody. ``Writeback`` has the
kernel begin to write to the disk what is there: else a host with much memory begins with that as
the file is synced, once it is whole, and whoever waits for that waits for all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

_LOOK_EVERY = 0.02  # seconds
AT_ONCE = 16 << 20
"""Bytes that are worth a call."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_LIBC.sync_file_range.restype = ctypes.c_int
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin, and wait for nothing


class Following:
    """Looks how long a file is, in a thread of its own, until it is ended.

    Args:
        path: The file, which need not be there yet.
        written: Told of so many bytes more, in that thread.
    """

    def __init__(self, path: Path, written: Callable[[int], None]) -> None:
        self._path = path
        self._written = written
        self._over = threading.Event()
        # Not one of the loop's: storage that does not answer would keep the process from ending.
        threading.Thread(target=self._follow, name="following", daemon=True).start()

    def _follow(self) -> None:
        seen = 0
        while not self._over.wait(_LOOK_EVERY):
            with contextlib.suppress(OSError):
                size = self._path.lstat().st_size
                if size > seen:
                    self._written(size - seen)
                    seen = size

    def end(self) -> None:
        """Nothing more is told soon after."""
        self._over.set()


class Writeback:
    """Has what is written of a file go to the disk meanwhile; who syncs it is told of failures.

    Args:
        path: The file, made by who writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._news = threading.Condition()
        self._size = 0
        self._over = False
        threading.Thread(target=self._write, name="writeback", daemon=True).start()

    def written(self, count: int) -> None:
        """So many bytes more are written, one after the other; from any thread."""
        with self._news:
            self._size += count
            self._news.notify()

    def end(self) -> None:
        """It is whole, or nobody wants it any more."""
        with self._news:
            self._over = True
            self._news.notify()

    def _write(self) -> None:
        begun = 0
        with contextlib.ExitStack() as stack:
            handle = -1
            while size := self._more_than(begun):
                if handle < 0:
                    try:
                        handle = os.open(self._path, _FLAGS)
                    except OSError:  # removed
                        return
                    stack.callback(os.close, handle)
                if not begin_writeback(handle, begun, size - begun):
                    return  # its file system cannot do that, or fails: so does the sync
                begun = size

    def _more_than(self, begun: int) -> int:
        """How long the file is, once that is worth a call; 0 where it is over."""
        with self._news:
            while not self._over and self._size - begun < AT_ONCE:
                self._news.wait()
            return 0 if self._over else self._size


def begin_writeback(handle: int, at: int, count: int) -> bool:
    """Have the kernel begin to write a part of a file to the disk; whether it does.

    Args:
        handle: The file's descriptor.
        at: Where the part begins.
        count: How many bytes it has.
    """
    done: int = _LIBC.sync_file_range(handle, at, count, _WRITE)
    return done == 0
