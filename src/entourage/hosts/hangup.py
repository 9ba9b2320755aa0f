"""Shuts a process's TCP connections to a host, for a process that cannot be asked to do so.

A QEMU that waits in its main loop for a host that is gone, guest and all, hears no command until
TCP gives up, a quarter of an hour later. What shuts its connections must not need it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from entourage.hosts import tcpinfo
from entourage.hosts.borrow import listens, tcp_sockets
from entourage.hosts.process import ProcessHandle


@dataclass(frozen=True, slots=True)
class _Call:
    """One connection of the process.

    Attributes:
        one: Its socket, borrowed.
        inode: Of the socket; no other has it while it is open.
        port: Of the other host.
        state: How far TCP has come.
    """

    one: socket.socket
    inode: int
    port: int
    state: tcpinfo.TcpInfo

    def shut(self) -> bool:
        """End it, whoever waits for it; False where it has ended meanwhile."""
        try:
            self.one.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
        return True


class Calls:
    """The TCP connections that a process opens from now on to one host.

    Args:
        process: The process, which is closed with this; None where it has ended.
        host: Name or address of the other host; one that nobody knows is called by nobody.
    """

    def __init__(self, process: ProcessHandle | None, host: str) -> None:
        self._process = process
        self._before = frozenset[int]()
        there = [(_inode(one), _listening_at(one)) for one in self._sockets()]
        self._before = frozenset(inode for inode, _ in there)
        self._listening = frozenset(port for _, port in there if port)
        self._connecting: dict[int, float] = {}
        self._addresses: set[str] = set()
        with contextlib.suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            self._addresses = {tcpinfo.plain(str(address[0])) for *_, address in found}

    def hang_up(self, port: int | None = None) -> int:
        """Shut them, those to a port or all of them; how many there were. Never waits."""
        return sum(call.shut() for call in self._calls() if port in {None, call.port})

    def hang_up_unanswered(self, port: int) -> int:
        """Shut those to a port that the other host has not taken yet. Never waits."""
        calls = (call for call in self._calls() if call.state.connecting)
        return sum(call.shut() for call in calls if call.port == port)

    def hang_up_on_silence(
        self,
        patience: float,
        *,
        held_up: bool,
        answers: bool = True,
        one_way: int | None = None,
    ) -> int:
        """Shut those at which the other host has been silent for too long. Never waits.

        To be called again and again: how long one has not been taken is known from call to call.

        Args:
            patience: Seconds; eight round trips come on top, where they are known.
            held_up: Whether the process waits for something: then also those that were taken, and
                at which nothing has come in though the other host has to confirm what was sent.
            answers: Whether it has to answer it as well. A host that is slow still confirms.
            one_way: Its port at which it never answers.

        Returns:
            How many there were.
        """
        now, count, connecting = time.monotonic(), 0, dict[int, float]()
        for call in self._calls():
            if call.state.connecting:
                since = connecting[call.inode] = self._connecting.get(call.inode, now)
                silent = now - since > patience
            else:
                state = call.state
                two_way = answers and call.port != one_way
                owes = state.unconfirmed or (two_way and state.unanswered)
                silent = held_up and owes and state.quiet > patience + state.answers_within
            count += silent and call.shut()
        self._connecting = connecting
        return count

    def close(self) -> None:
        """Let go of the process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _calls(self) -> Iterator[_Call]:
        """Those to the host that were opened since. What came in at a port, others have opened."""
        taken = self._listening | {_listening_at(one) for one in self._sockets()}
        for one in self._sockets():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                inode = _inode(one)
                if one.getsockname()[1] in taken:
                    continue
                state = tcpinfo.of(one)
                found = self._peer(one, inode, state)
                if found is not None and found[0] in self._addresses:
                    yield _Call(one, inode, found[1], state)

    def _peer(
        self, one: socket.socket, inode: int, state: tcpinfo.TcpInfo
    ) -> tuple[str, int] | None:
        """Address and port of the other end; the system tells a process of its own, once taken."""
        if not state.connecting:
            address, port = one.getpeername()[:2]
            return tcpinfo.plain(str(address)), port
        return None if self._process is None else tcpinfo.called(self._process.pid, inode)

    def _sockets(self) -> Iterator[socket.socket]:
        """Those that were opened since."""
        if self._process is None:
            return iter(())
        return tcp_sockets(self._process, but=self._before)


def _listening_at(one: socket.socket) -> int:
    """The port at which it waits for others to connect; 0 where it does not."""
    return int(one.getsockname()[1]) if listens(one) else 0


def _inode(one: socket.socket) -> int:
    """Of its socket; no other has it while it is open."""
    return os.fstat(one.fileno()).st_ino
