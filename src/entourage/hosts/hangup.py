"""Shuts a process's TCP connections to a host, for a process that cannot be asked to do so.

A QEMU that waits in its main loop for a host that is gone, guest and all, hears no command until
TCP gives up, a quarter of an hour later. What shuts its connections must not need it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from entourage.hosts.borrow import listens, tcp_sockets
from entourage.hosts.process import ProcessHandle


class Calls:
    """The TCP connections that a process opens from now on to one host.

    Args:
        process: The process, which is closed with this; None where it has ended.
        host: Name or address of the other host; one that nobody knows is called by nobody.
    """

    def __init__(self, process: ProcessHandle | None, host: str) -> None:
        self._process = process
        self._before = frozenset(_inode(one) for one in self._sockets())
        self._addresses: set[str] = set()
        with contextlib.suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            self._addresses = {_plain(str(address[0])) for *_, address in found}

    def hang_up(self, port: int | None = None) -> int:
        """Shut them, those to a port or all of them; how many there were. Never waits."""
        # What has come in at a port that it listens at, others have opened.
        taken = {one.getsockname()[1] for one in self._sockets() if listens(one)}
        count = 0
        for one in self._sockets():
            with contextlib.suppress(OSError):  # it listens, or has ended meanwhile
                address, to = one.getpeername()[:2]
                if (
                    _inode(one) not in self._before
                    and one.getsockname()[1] not in taken
                    and _plain(address) in self._addresses
                    and port in {None, to}
                ):
                    one.shutdown(socket.SHUT_RDWR)
                    count += 1
        return count

    def close(self) -> None:
        """Let go of the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _sockets(self) -> Iterator[socket.socket]:
        return iter(()) if self._process is None else tcp_sockets(self._process)


def _inode(one: socket.socket) -> int:
    """Of its socket; no other has it while it is open."""
    return os.fstat(one.fileno()).st_ino


def _plain(address: str) -> str:
    return address.partition("%")[0].removeprefix("::ffff:")
