"""Duplicates of another process's sockets (pidfd_getfd), to set or close what it cannot itself.

See pidfd_getfd(2): it takes the right to trace the process, which root has unless the kernel's
``yama.ptrace_scope`` is 3.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
from collections.abc import Collection, Iterator

from entourage.hosts.process import ProcessHandle

_PIDFD_GETFD = 438  # by the same number on every architecture
_C = ctypes.CDLL(None, use_errno=True)
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})


def tcp_sockets(
    process: ProcessHandle, *, but: Collection[int] = frozenset()
) -> Iterator[socket.socket]:
    """The TCP sockets of a process, each closed here afterwards.

    There are none where it has ended, or where this process may not look into it.

    Args:
        process: The process.
        but: The inodes of those that are left out, without even being borrowed.
    """
    with contextlib.suppress(OSError):
        directory = f"/proc/{process.pid}/fd"
        for number in os.listdir(directory):  # noqa: PTH208 - twenty times a second
            try:
                # Closing another's file, even a copy of it, can write it back, and wait for that.
                link = os.readlink(f"{directory}/{number}")  # noqa: PTH115 - same
                found = _SOCKET.fullmatch(link)
                if found is None or int(found[1]) in but:
                    continue
                one = _borrowed(process.descriptor, int(number))
            except OSError:  # closed meanwhile
                continue
            with one:
                if one.family in _INTERNET and one.type == socket.SOCK_STREAM:
                    yield one


def listens(one: socket.socket) -> bool:
    """Whether it waits for others to connect."""
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _borrowed(pidfd: int, number: int) -> socket.socket:
    """The same socket by a descriptor of this process; raises OSError where it is none."""
    descriptor = _C.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    try:
        return socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise
