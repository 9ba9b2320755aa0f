"""``entourage console``: the serial console of a guest, on the user's terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Generator
from pathlib import Path

from entourage.admission import known
from entourage.cli.tell import say
from entourage.cli.terminal import Ended, attach
from entourage.errors import DomainBusy, HypervisorError, UsageError, plain_words
from entourage.hypervisors.registry import console_command
from entourage.report.text import clean
from entourage.settings.model import Settings

_SOCKETS = Path("/proc/net/unix")
_CONNECTED = "03"
_STATE, _PATH = 5, 7


def console(settings: Settings, name: str, connect: str | None = None) -> None:
    """Connect the terminal to a domain's console until the user leaves it, or it is closed.

    Raises:
        UsageError: There is no terminal, no such domain, it does not run, or it has no console that
            Entourage can reach.
        DomainBusy: Another process has it.
        HypervisorError: It cannot be connected to.
    """
    path = asyncio.run(_path(settings, name, connect))
    if not os.isatty(0):
        raise UsageError(
            "standard input is no terminal",
            remedy=f"a program can connect to the console's socket: {path}",
        )
    with _held(path, name) as connection:
        say(clean(f"entourage: the console of {name}; ^] leaves it"))
        ended = attach(connection, sys.stdin.fileno(), sys.stdout.fileno())
    if ended is Ended.LEFT:
        say("", clean(f"entourage: left the console of {name}"))
        return
    say("", clean(f"entourage: the console of {name} has closed: the guest has ended, or moved"))


async def _path(settings: Settings, name: str, connect: str | None) -> str:
    """Where the domain's console listens."""
    hypervisor, _ = await known(settings, name, connect)
    states = await hypervisor.domains()
    state = next((state for state in states if state.name == name), None)
    if state is not None and state.console:
        return state.console
    if command := console_command(hypervisor.name, name):
        raise UsageError(
            f"the console of {name} is its hypervisor's, {hypervisor.name}", remedy=command
        )
    raise UsageError(f"{name} does not run", remedy="entourage start starts it")


@contextlib.contextmanager
def _held(path: str, name: str) -> Generator[socket.socket]:
    """Connect to a console that nobody else has: it takes one at a time, and lets others wait."""
    with contextlib.ExitStack() as stack:
        try:
            connection = _connected(path, stack)
        except OSError as error:
            raise HypervisorError(
                f"the console of {name} cannot be reached: {plain_words(error)} ({path})",
                remedy="see whether the domain runs, and do it as root",
            ) from error
        if connection is None:
            raise DomainBusy(
                f"another process has the console of {name}",
                remedy=f"leave it there (^] in `entourage console`); `ss -xp src {path}` shows it",
            )
        yield connection


def _connected(path: str, stack: contextlib.ExitStack) -> socket.socket | None:
    """A connection to the socket, for as long as ``stack`` has it; None where another has one."""
    directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, directory)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two that look at the same moment
    except BlockingIOError:
        return None
    # Anybody's socket is among them, by any name.
    if taken(path, _SOCKETS.read_text(errors="surrogateescape")):
        return None
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.settimeout(0)
    try:
        connection.connect(path)
    except BlockingIOError:  # more wait for it than QEMU's queue holds
        return None
    return connection


def taken(path: str, sockets: str) -> bool:
    """Whether somebody is connected to the socket at a path, as /proc/net/unix tells."""
    rows = (line.split(maxsplit=_PATH) for line in sockets.splitlines())
    return any(row[_STATE] == _CONNECTED and row[_PATH] == path for row in rows if len(row) > _PATH)
