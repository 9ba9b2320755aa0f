"""Saves whose memory a hypervisor writes and reads itself, as libvirt does.

Nothing of it goes through the socket that memory else takes: as the file is whole, what the
hypervisor has to say about it does.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.flow import Flow
from entourage.hypervisors.base import MemoryProgress, Plan, Ticket
from entourage.hypervisors.reach import NOT_OURS
from entourage.hypervisors.saved.machine import SavedMachine
from entourage.hypervisors.saved.manifest import MEMORY
from entourage.hypervisors.values import GOES_BACK, RESTORES, RestorePlan, SavePlan

_LARGEST = 16 << 20  # bytes that may be said about a machine
_AT_ONCE = 1 << 16


class WrittenFile:
    """A file that the hypervisor writes, until it says that it is whole.

    Args:
        plan: What the source's hypervisor has said as the machine was to be saved.
        path: The file.

    Attributes:
        hypervisor: Whose machine it is; empty for Entourage's own.
        comes: Memory comes by the socket; nobody else writes the file.
        is_sent: The same, and something is kept to have it taken again, now or later.
        turns: See ``SavePlan``.
        kept: What was said about it; of a file that it writes, empty before that is whole.
    """

    def __init__(self, plan: Plan, path: Path) -> None:
        try:
            said = msgspec.msgpack.decode(plan, type=SavePlan)
        except (msgspec.DecodeError, RecursionError) as error:
            raise HypervisorError(f"the source's plan cannot be read: {error}") from error
        self.hypervisor = said.hypervisor
        self.comes = said.sends or not said.hypervisor
        self.is_sent = said.sends and (bool(said.kept) or said.later)
        self.turns = said.turns
        self.kept = said.kept if self.is_sent else b""
        self._path = path
        self._said = asyncio.Event()
        if not (self.is_sent and said.later):
            self._said.set()

    @property
    def cookie(self) -> bytes:
        """That of the ticket: where memory is to be written to."""
        return b"" if self.comes else str(self._path).encode()

    def say(self, kept: bytes) -> None:
        """Take what could not be said about it as it was planned; what else comes is ignored."""
        if not self._said.is_set():
            self.kept = kept
            self._said.set()

    async def said(self) -> None:
        """Wait until all is known that is kept."""
        await self._said.wait()

    def flow(self, connection: socket.socket) -> Flow:
        """Take what is said, and have the file be root's alone; it is not synced."""
        return Flow(connection, self._take)

    def _take(self, source: socket.socket, moved: Callable[[int], None]) -> None:
        said = bytearray()
        while more := source.recv(_AT_ONCE):
            said += more
            if len(said) > _LARGEST:
                raise OSError(f"more than {_LARGEST} bytes are said about it")
        if not said:
            raise OSError("the source has ended before its file was whole")
        handle = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(handle, os.geteuid(), -1)
            os.fchmod(handle, 0o600)
            moved(os.fstat(handle).st_size)
        finally:
            os.close(handle)
        self.kept = bytes(said)


class SentMachine(SavedMachine):
    """A saved machine whose memory goes to its hypervisor again, as if it moved there."""

    async def facts(self) -> Mapping[str, str]:
        """What the hypervisor that it was saved in said of itself, and that it is restored."""
        kind = GOES_BACK if self._manifest.checkpoint else "yes"
        return {**await super().facts(), RESTORES: kind}

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - the target changes what it must
        """What was said about it, and where memory is."""
        labels = self._manifest.copied
        copied = tuple(disk.id for disk in self._manifest.domain.block if disk.label in labels)
        plan = RestorePlan(file=self._file, kept=self._manifest.kept, copied=copied)
        return Plan(msgspec.msgpack.encode(plan))

    @property
    def _file(self) -> str:
        """What its hypervisor is to read by itself: nothing."""
        return ""


class WrittenMachine(SentMachine):
    """A saved machine whose memory its hypervisor reads itself."""

    async def start(self, ticket: Ticket, *, live: bool) -> None:  # noqa: ARG002 - it stands still
        """Nothing is sent: the target's hypervisor reads it."""
        self._sends = True
        if ticket.uri != f"file:{self._file}":
            raise HypervisorError(
                f"memory is to go to {ticket.uri!r}, and stays where it is", remedy=NOT_OURS
            )

    async def progress(self) -> MemoryProgress:
        """How far its hypervisor is, it does not say."""
        size = self._manifest.memory.size
        return MemoryProgress(remaining=size, total=size, dirty_rate=0.0, rate=0.0, iteration=1)

    async def landed(self) -> bytes:
        """The target says when it has it; this, that it was what was saved."""
        await self._damage.check()
        return b""

    @property
    def _file(self) -> str:
        """Memory's."""
        return str(self._directory / MEMORY)
