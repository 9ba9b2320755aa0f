"""The migration of a machine that leaves this host, as QEMU has it."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from entourage.errors import HypervisorError
from entourage.hosts.tcp import answered_within, connected
from entourage.hypervisors.base import DataPlane, Ticket
from entourage.hypervisors.into_save import PassedOn, way_into_save
from entourage.hypervisors.qemu.errors import device_of
from entourage.hypervisors.qemu.handle import Handle
from entourage.hypervisors.qemu.qmp import Known
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.reach import check_reach

_GREETED_WITHIN = 10.0  # seconds; the guest runs meanwhile
ENDED = frozenset({"none", "completed", "failed", "cancelled"})
"""What QEMU says of a migration that is over."""


def migration_capabilities(**states: bool) -> dict[str, Any]:
    """The arguments of ``migrate-set-capabilities``."""
    return {
        "capabilities": [
            {"capability": name.replace("_", "-"), "state": state} for name, state in states.items()
        ]
    }


def place_of(ticket: Ticket) -> tuple[str, int]:
    """Host and port of a ticket, which may say nothing else: QEMU would run ``exec:…``.

    Raises:
        HypervisorError: It says something else.
    """
    if found := re.fullmatch(r"tcp:(?:\[([^]\s]+)]|([^][:\s]+)):([0-9]{1,5})", ticket.uri):
        scoped, plain, port = found.groups()
        if 0 < int(port) < 1 << 16:
            return scoped or plain, int(port)
    raise HypervisorError(
        f"the target says that memory is to go to {ticket.uri!r}, which is no TCP port"
    )


@contextlib.asynccontextmanager
async def memory_way(
    ticket: Ticket, plane: DataPlane | None, passed_on: Callable[[PassedOn], None]
) -> AsyncGenerator[socket.socket]:
    """A connection to where memory is taken; closed here at the end.

    Args:
        ticket: What the target has said.
        plane: How the data travels: a target names nothing else.
        passed_on: Takes what passes memory on that goes by ssh, or through a filter.

    Raises:
        HypervisorError: It does; or there is no way.
    """
    local = plane.local if plane is not None else None
    if local is not None:
        async with way_into_save(local, ticket.uri, passed_on) as connection:
            yield connection
        return
    place = place_of(ticket)
    if plane is not None:
        check_reach(plane, *place, "memory")
    async with connected(*place) as connection:
        yield connection


@contextlib.contextmanager
def greeted(connection: socket.socket) -> Generator[None]:
    """Shut the connection down if this is not left in time; see ``answered_within``."""
    if connection.family == socket.AF_UNIX:
        yield
        return
    with answered_within(connection, _GREETED_WITHIN):
        yield


class Outgoing:
    """One migration.

    Args:
        handle: The machine.

    Attributes:
        sending: Whether it has been told to send the last memory pages.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.sending = False

    async def reach(self, *wanted: str) -> None:
        """Wait until the migration is in one of the states.

        Raises:
            HypervisorError: It is over, and in none of them.
        """
        states = frozenset(wanted)

        def reached(known: Known) -> str | None:
            return known.migration if known.migration in states | ENDED else None

        status = await self._handle.monitor.until(reached)
        if status not in states:
            info = await self._handle.monitor.execute("query-migrate")
            reason = info.get("error-desc", f"it is {status}")
            raise HypervisorError(
                f"QEMU's migration ended: {reason}",
                device=device_of(self._handle.domain, reason),
            )

    async def status(self) -> str:
        """What QEMU says of it; ``none`` where there is none."""
        info = await self._handle.monitor.execute("query-migrate")
        return str(info.get("status", "none"))

    async def yank(self) -> None:
        """Cut the migration's connection off; QEMU does so whatever its main loop waits for."""
        with contextlib.suppress(CommandError):
            instance = {"type": "migration"}
            await self._handle.monitor.execute("yank", {"instances": [instance]}, urgent=True)
