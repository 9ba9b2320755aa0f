"""QEMU's connections that outlive the daemon: systemd keeps them, in its file descriptor store.

Where a guest is lost whose target fails to load (``Toolstack.way_back``), its QEMU must still be
answered once GO is recorded, whatever becomes of the daemon. The connection's other name is the
domain's UUID and the migration's nonce: the next daemon answers QEMU's Load by them, where the
journal has that domain's GO. See sd_notify(3), and sd_listen_fds_with_names(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from entourage.attend.bus import converse
from entourage.attend.notify import notify
from entourage.errors import HypervisorError
from entourage.handover.values import Record, Role
from entourage.hypervisors.attended.switchover import state_of
from entourage.journal.journal import Journal
from entourage.settings.model import Settings

_NAME: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([0-9a-f]{32})")
_FIRST: Final = 3  # SD_LISTEN_FDS_START
_DECIDED: Final = frozenset({Record.GO, Record.RAN, Record.OWNS})
_log = logging.getLogger(__name__)


def keep(uuid: str, nonce: str, connection: int) -> None:
    """Have systemd keep a connection; it lets go of one that QEMU has closed by itself.

    Args:
        uuid: The domain's.
        nonce: The migration's.
        connection: Its descriptor.
    """
    if not notify(f"FDSTORE=1\nFDNAME={uuid}-{nonce}", (connection,), at_once=True):
        _log.error("%s is lost if this daemon ends before it runs: systemd does not keep it", uuid)


def forget(uuid: str, nonce: str) -> None:
    """Have systemd keep it no longer."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={uuid}-{nonce}", at_once=True)


def given() -> list[tuple[str, str, socket.socket]]:
    """What an earlier daemon has had kept: the domain's UUID, the nonce, the connection."""
    count, names = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_FDNAMES", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    found: list[tuple[str, str, socket.socket]] = []
    for number, name in zip(range(_FIRST, _FIRST + int(count)), names.split(":"), strict=False):
        known = _NAME.fullmatch(name)
        with contextlib.suppress(OSError):
            os.set_inheritable(number, False)  # noqa: FBT003 - the standard library's signature
            connection = socket.socket(fileno=number)
            if known is None:
                connection.close()
            else:
                found.append((known[1], known[2], connection))
    return found


class Answering:
    """What is left to be said to the QEMU of a guest that was handed over to this host.

    Args:
        nonce: The migration's.
        on_load: Called as the guest is let run.
    """

    def __init__(self, nonce: str, on_load: Callable[[], None]) -> None:
        self._state = state_of(nonce)
        self._on_load = on_load

    async def check_expected(self) -> None:
        """It asks who has state."""

    async def save(self) -> bytes:
        """It does not leave: that is attended by a bus of its own."""
        raise HypervisorError("the domain is on its way to this host")

    async def load(self, state: bytes) -> None:
        """All of it is here."""
        if state != self._state:
            raise HypervisorError("it is the state of another migration")
        self._on_load()

    def connected(self) -> None:
        """It was, long before."""

    def gone(self) -> None:
        """It has loaded, or its object was removed."""


async def answer(
    settings: Settings, uuid: str, nonce: str, connection: socket.socket, settled: asyncio.Event
) -> None:
    """Answer what QEMU still asks on a connection, until it goes away.

    Where this ends before, as with the daemon, systemd keeps the connection for the next one.

    Args:
        settings: This host's.
        uuid: The domain's.
        nonce: The migration's.
        connection: It is closed afterwards: for all that have it, once QEMU needs it no more.
        settled: Set once QEMU needs no answer any more, or gets none from here.
    """
    over = False
    try:
        if _is_decided(settings, uuid):
            _log.info("%s: its QEMU is answered, though the daemon was started anew", uuid)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            await converse(Answering(nonce, settled.set), reader, writer, resumed=True)
        over = True
    finally:
        if over or settled.is_set():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            forget(uuid, nonce)
        connection.close()
        settled.set()


def _is_decided(settings: Settings, uuid: str) -> bool:
    """Whether the newest arrival of a domain was handed over to this host."""
    with Journal.open(Path(settings.paths.state, "journal.db"), read_only=True) as journal:
        arrivals = [one for one in journal.decisions(uuid) if one.role is Role.TARGET]
    return bool(arrivals) and arrivals[0].record in _DECIDED
