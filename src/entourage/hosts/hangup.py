"""Hangs up on a host that is gone, for a process of ours that waits for it.

TCP gives up after a quarter of an hour. A QEMU that waits for it in its main loop, guest and all,
hears no command meanwhile; so the kernel ends its connections (``SOCK_DESTROY``, by ``ss --kill``).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TABLES = ("tcp", "tcp6")
_WORD = 8  # hex digits of 32 bits
_LOCAL, _REMOTE, _STATE, _INODE = 1, 2, 3, 9  # columns; see proc_pid_net(5)
_LISTENS = "0A"


@dataclass(frozen=True)
class Connection:
    """A TCP connection of a process.

    Attributes:
        inode: Of its socket; no other has it meanwhile.
        here: Address and port of this end.
        there: Of the other end.
    """

    inode: int
    here: tuple[str, int]
    there: tuple[str, int]


class Calls:
    """The connections that a process opens from now on to one host.

    Args:
        pid: The process; 0 for none.
        host: Name or address of the other host; one that nobody knows is called by nobody.
    """

    def __init__(self, pid: int, host: str) -> None:
        self._pid = pid
        self._before = connections(pid)
        self._addresses: set[str] = set()
        with contextlib.suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            self._addresses = {str(address[0]).partition("%")[0] for *_, address in found}

    def hang_up(self) -> int:
        """End them; how many there were. Blocks for some milliseconds."""
        ours = [
            call
            for call in connections(self._pid) - self._before
            if call.there[0].removeprefix("::ffff:") in self._addresses
        ]
        for call in ours:
            ends = ("src", _written(call.here), "dst", _written(call.there))
            with contextlib.suppress(OSError):  # no iproute2 here
                subprocess.run(
                    ["ss", "--kill", "--tcp", "--numeric", *ends], check=False, capture_output=True
                )
        return len(ours)


def connections(pid: int) -> frozenset[Connection]:
    """The TCP connections that a process has opened; none where it is gone, or sees another net."""
    inodes: set[int] = set()
    with contextlib.suppress(OSError):
        if not Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net"):
            return frozenset()
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile, or no socket
                inodes.add(int(str(handle.readlink()).removeprefix("socket:[")[:-1]))
    lines = [line for table in _TABLES for line in _table(Path(f"/proc/{pid}/net", table))]
    ours = [line for line in lines if int(line[_INODE]) in inodes]
    taken = {_end(line[_LOCAL])[1] for line in ours if line[_STATE] == _LISTENS}
    found = (Connection(int(one[_INODE]), _end(one[_LOCAL]), _end(one[_REMOTE])) for one in ours)
    # What has come in at a port that it listens at, others have opened.
    return frozenset(call for call in found if call.here[1] not in taken)


def _table(path: Path) -> Iterator[list[str]]:
    with contextlib.suppress(OSError):
        yield from (line.split() for line in path.read_text().splitlines()[1:])


def _end(text: str) -> tuple[str, int]:
    """``0100007F:0016``: 32-bit words as this processor has them, and the port."""
    address, _, port = text.partition(":")
    words = (address[at : at + _WORD] for at in range(0, len(address), _WORD))
    raw = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    family = socket.AF_INET if len(address) == _WORD else socket.AF_INET6
    return socket.inet_ntop(family, raw), int(port, 16)


def _written(end: tuple[str, int]) -> str:
    address, port = end
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
