"""A terminal handed to a guest's console: raw while it lasts, and as it was afterwards."""

from __future__ import annotations

import contextlib
import enum
import os
import select
import signal
import socket
import termios
import tty
from collections.abc import Generator
from types import FrameType

LEAVE = b"\x1d"
"""``^]``, as telnet and virsh have it."""
_CHUNK = 4096
_AT_ONCE = 512  # of a terminal that select(2) says can be written to
_TYPED_AHEAD = 64 << 10
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Ended(enum.Enum):
    """Why it is over."""

    LEFT = "the user has left"
    CLOSED = "the other end has closed the connection"


def attach(connection: socket.socket, typed: int, shown: int) -> Ended:
    """Connect a terminal to a socket until the user leaves it, or the socket is closed.

    Args:
        connection: The socket.
        typed: Where the user types: a terminal, which is raw meanwhile.
        shown: Where what the guest says goes.

    Returns:
        Why it is over. What ends this process otherwise leaves the terminal as it was as well.
    """
    connection.settimeout(0)
    with _signals_end(), _raw(typed):  # no signal may end this process while it is raw
        return _pass_on(connection, typed, shown)


def _pass_on(connection: socket.socket, typed: int, shown: int) -> Ended:
    to_guest, to_user = b"", b""
    closed = False
    while True:
        if closed and not to_user:
            return Ended.CLOSED
        # What the user types is read also where the guest takes nothing: it may be ``LEAVE``.
        reading = [typed] if closed or to_user else [typed, connection]
        writing = [shown] if to_user else []
        readable, writable, _ = select.select(
            reading, [*writing, *([connection] if to_guest else [])], []
        )
        if typed in readable:
            keys = _typed(typed)
            if not keys or LEAVE in keys:
                return Ended.LEFT
            to_guest = (to_guest + keys)[:_TYPED_AHEAD]
        if connection in readable:
            to_user = _received(connection)
            closed = not to_user
        if connection in writable:
            try:
                to_guest = to_guest[connection.send(to_guest) :]
            except OSError:  # reading tells that it is closed, after the guest's last words
                to_guest = b""
        if shown in writable:
            try:
                to_user = to_user[os.write(shown, to_user[:_AT_ONCE]) :]
            except OSError:  # it is gone
                return Ended.LEFT


def _typed(terminal: int) -> bytes:
    """What was typed; nothing where the terminal is gone."""
    try:
        return os.read(terminal, _CHUNK)
    except OSError:
        return b""


def _received(connection: socket.socket) -> bytes:
    """What has come; nothing where the other end has closed it, in whatever way."""
    try:
        return connection.recv(_CHUNK)
    except ConnectionError:
        return b""


@contextlib.contextmanager
def _raw(terminal: int) -> Generator[None]:
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        with contextlib.suppress(termios.error):  # it is gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals_end() -> Generator[None]:
    """Have signals that would kill this process end it by an exception instead."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    taken = {one: signal.getsignal(one) for one in _ENDING}
    taken = {one: how for one, how in taken.items() if how is not signal.SIG_IGN}
    for one in taken:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one, how in taken.items():
            signal.signal(one, how)
