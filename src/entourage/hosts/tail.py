"""The last bytes of what goes through a pipe, kept by the kernel: nothing is copied for that.

``tee(2)`` has a second pipe refer to the same pages; Python has no call of its own for it (3.11).
Of these pages what is older is spliced into ``/dev/null``. What this process looks at is copied
only then, and only as much as it asks for.

A pipe has room for so many pages, be there a byte in each. Where these are all taken by little,
that is put into fewer pages: memory of this process is used for that, and no object of Python's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os

PIPE = 1 << 20  # bytes, the most that a pipe may hold without privileges
_LEAST = PIPE
_TOO_SMALL = (
    "this host gives no pipe of 1 MiB: raise fs.pipe-max-size, or fs.pipe-user-pages-soft, with"
    " sysctl"
)
_AT_LEAST = 4  # the part of the pipe's size that is kept at least: a quarter
_SHARE = 8  # of what is kept: so much of it goes at a time


class Pipe:
    """A pipe of the kernel's; ``close`` it.

    Args:
        size: Bytes that it is to hold, in pages that may hold less each.

    Attributes:
        out: The descriptor to read from.
        inward: The one to write to.
    """

    def __init__(self, size: int) -> None:
        self.out, self.inward = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # smaller, and slower
            fcntl.fcntl(self.inward, fcntl.F_SETPIPE_SZ, size)

    @property
    def size(self) -> int:
        """Bytes that it can hold."""
        return fcntl.fcntl(self.inward, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.out)
        os.close(self.inward)


class Tail:
    """The last of what has gone through a pipe, some 256 KiB at least; ``close`` it.

    Raises:
        OSError: This host gives no pipe of that size.
    """

    def __init__(self) -> None:
        self._size = 0
        with contextlib.ExitStack() as stack:
            # What is looked at, and what is kept.
            self._view = stack.enter_context(contextlib.closing(Pipe(PIPE)))
            self._kept = stack.enter_context(contextlib.closing(Pipe(PIPE)))
            self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._nowhere)
            if self._view.size < _LEAST:
                raise OSError(_TOO_SMALL)
            self._close = stack.pop_all()

    def close(self) -> None:
        """Nobody looks any more."""
        self._close.close()

    def take(self, pipe: Pipe, count: int) -> int:
        """Refer to the first bytes in a pipe, which stay there.

        Args:
            pipe: It has so many at least.
            count: How many, more than none.

        Returns:
            How many were taken: some, and perhaps not all.
        """
        while True:
            try:
                taken = _tee(pipe.out, self._kept.inward, count)
            except BlockingIOError:
                self._make_room()
            else:
                self._size += taken
                return taken

    def _make_room(self) -> None:
        more = self._size // _SHARE
        if self._size - more < self._kept.size // _AT_LEAST:
            self._use_fewer_pages()
            return
        self._drop(self._kept.out, more)
        self._size -= more

    def _use_fewer_pages(self) -> None:
        with mmap.mmap(-1, self._size) as memory, memoryview(memory) as data:
            got = 0
            while got < self._size:
                with data[got:] as rest:
                    got += os.readv(self._kept.out, [rest])
            put = 0
            while put < self._size:
                with data[put:] as rest:
                    put += os.write(self._kept.inward, rest)

    def last(self, count: int) -> bytes:
        """The last bytes, as many as are asked for, or all that are kept."""
        if not self._size:
            return b""
        count = min(count, self._size)
        copied = _tee(self._kept.out, self._view.inward, self._size)
        if copied < self._size:  # a pipe of the same size has room for all of it
            self._drop(self._view.out, copied)
            raise OSError(errno.EIO, "a pipe's end cannot be looked at")
        self._drop(self._view.out, self._size - count)
        found = bytearray()
        while len(found) < count:
            found += os.read(self._view.out, count - len(found))
        return bytes(found)

    def _drop(self, pipe: int, count: int) -> None:
        while count:
            count -= os.splice(pipe, self._nowhere, count)


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.tee.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint]
_LIBC.tee.restype = ctypes.c_ssize_t
_NONBLOCK = 2  # SPLICE_F_NONBLOCK


def _tee(source: int, target: int, count: int) -> int:
    """``tee(2)``, which does not wait; raises OSError, BlockingIOError where there is no room."""
    done: int = _LIBC.tee(source, target, count, _NONBLOCK)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done
