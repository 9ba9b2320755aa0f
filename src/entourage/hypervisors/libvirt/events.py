"""What libvirt and QEMU say of one domain by themselves, and when: nobody has to ask for it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt.connection import Connection, ask, bindings
from entourage.hypervisors.libvirt.constants import (
    BLOCK_JOB,
    CHANGES,
    ITERATION,
    LIFECYCLE,
    BlockJob,
    Lifecycle,
)

Result = TypeVar("Result")
_SOON = 1_000_000_000
"""An event that seems older than this (ns) was stamped by a clock that jumped."""

# libvirt-domain.h, virDomainEventStoppedDetailType.
_STOPPED = {0: "guest-shutdown", 1: "it was destroyed", 2: "it crashed", 5: "QEMU failed"}

_COPY_ENDS = {"BLOCK_JOB_COMPLETED": "", "BLOCK_JOB_CANCELLED": "it was given up"}
"""Of QEMU's events those that tell of a job's end; what has become of it, unless they say so."""
_OF_QEMU = frozenset({"STOP", "RESUME", "MIGRATION", *_COPY_ENDS})


@dataclasses.dataclass(slots=True)
class Known:
    """What was heard so far; moments are ns of the monotonic clock, 0 where there was none.

    Attributes:
        stopped_at, resumed_at: When QEMU last stopped and last resumed the guest.
        first_resumed_at: When it first resumed it, after ``forget_moments``.
        forgotten_at: When that was.
        migration: QEMU's own word for where its migration is.
        iteration: Which round of the memory is under way.
        block_jobs: What was last heard of a job with a disk, by what the guest sees that as.
        copies: Jobs of QEMU's own that copy changes (``changes.py``), by their names, once they
            have ended: why they failed, or empty.
        ended: Why the machine is gone; empty where it is not.
        lost: Why there is nothing more to hear; empty while there is.
        heard: How many things were.
    """

    stopped_at: int = 0
    resumed_at: int = 0
    first_resumed_at: int = 0
    forgotten_at: int = 0
    migration: str = ""
    iteration: int = 0
    ended: str = ""
    lost: str = ""
    heard: int = 0
    block_jobs: dict[str, BlockJob] = dataclasses.field(default_factory=dict[str, BlockJob])
    copies: dict[str, str] = dataclasses.field(default_factory=dict[str, str])

    def forget_moments(self) -> None:
        """From here on it is of interest when the guest is stopped and resumed.

        What was before may still be heard of later.
        """
        self.stopped_at = self.resumed_at = self.first_resumed_at = 0
        self.forgotten_at = time.monotonic_ns()


class Feed:
    """Listens to one domain. Use ``Feed.open``."""

    def __init__(self, connection: Connection, uuid: str, *, one_clock: bool) -> None:
        self.known = Known()
        self._one_clock = one_clock
        self._connection = connection
        self._hears_of_block_jobs = False
        self._registering = asyncio.Lock()
        self._uuid = uuid
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    @classmethod
    async def open(cls, uri: str, uuid: str, *, one_clock: bool = True) -> Feed:
        """Listen from when this returns; the domain need not be there yet.

        It has a connection of its own: on one that waits for an answer, events come late.

        Args:
            uri: Of the libvirtd.
            uuid: Of the domain.
            one_clock: Whether that is on this host, so that what QEMU says of time can be used.

        Raises:
            HypervisorError: libvirt cannot be reached.
        """
        feed = cls(await Connection.open(uri), uuid, one_clock=one_clock)
        try:
            await ask(feed._register)
        except BaseException:
            await feed.close()
            raise
        return feed

    def _register(self) -> None:
        raw = self._connection.raw
        raw.domainEventRegisterAny(None, LIFECYCLE, self._on_lifecycle, None)
        raw.domainEventRegisterAny(None, ITERATION, self._on_iteration, None)
        qemu: Any = importlib.import_module("libvirt_qemu")
        qemu.qemuMonitorEventRegister(raw, None, None, self._on_qemu, None, 0)
        with contextlib.suppress(bindings().libvirtError):
            raw.registerCloseCallback(self._on_close, None)

    async def hear_of_block_jobs(self) -> None:
        """Hear of jobs with the domain's disks from now on; again is no error.

        Only where one is begun: each migration has jobs with disks, of which nobody has to hear.
        """
        raw, uuid, event = self._connection.raw, self._uuid, self._on_block_job

        def register() -> None:
            raw.domainEventRegisterAny(raw.lookupByUUIDString(uuid), BLOCK_JOB, event, None)

        async with self._registering:  # of two disks at once; libvirt refuses the second
            if not self._hears_of_block_jobs:
                await ask(register)
                self._hears_of_block_jobs = True

    async def close(self) -> None:
        """Stop listening."""
        if not self.known.lost:
            self.known.lost = "it was closed"
        self._changed.set()
        with contextlib.suppress(Exception):
            await ask(self._connection.raw.unregisterCloseCallback)
        await self._connection.close()

    async def until(self, check: Callable[[Known], Result | None]) -> Result:
        """Wait until ``check`` of what is known returns something, and return that.

        Raises:
            HypervisorError: There is nothing more to hear; or what ``check`` raised.
        """
        while True:
            self._changed.clear()
            found = check(self.known)
            if found is not None:
                return found
            if self.known.lost:
                raise HypervisorError(
                    f"libvirtd has gone: {self.known.lost}", remedy="see whether libvirtd runs"
                )
            await self._changed.wait()

    # In libvirt's thread

    def _on_lifecycle(
        self, _connection: Any, domain: Any, event: int, detail: int, _context: Any
    ) -> None:
        if domain.UUIDString() != self._uuid:
            return
        now = time.monotonic_ns()
        match event:
            case Lifecycle.SUSPENDED:
                self._tell("stopped_at", now, keep=True)
            case Lifecycle.RESUMED:
                self._tell("resumed_at", now, keep=True)
            case Lifecycle.STOPPED | Lifecycle.CRASHED:
                known = _STOPPED.get(detail) if event == Lifecycle.STOPPED else None
                said = known or f"libvirt's reason {event}.{detail}"
                self._tell("ended", f"its machine has ended ({said})")
            case _:
                pass

    def _on_iteration(self, _connection: Any, domain: Any, iteration: int, _context: Any) -> None:
        if domain.UUIDString() == self._uuid:
            self._tell("iteration", iteration)

    def _on_block_job(
        self, _connection: Any, domain: Any, disk: str, _kind: int, status: int, _context: Any
    ) -> None:
        if domain.UUIDString() == self._uuid and status + 1 in set(BlockJob):
            self._tell("block_jobs", {disk: BlockJob(status + 1)})

    def _on_qemu(
        self,
        _connection: Any,
        domain: Any,
        event: str,
        seconds: int,
        micros: int,
        details: str | None,
        _context: Any,
    ) -> None:
        """QEMU's own events come a millisecond before what libvirt makes of them."""
        if event not in _OF_QEMU or domain.UUIDString() != self._uuid:
            return
        if event in _COPY_ENDS:
            said = json.loads(details or "{}")
            if (name := str(said.get("device", ""))).startswith(CHANGES):
                self._tell("copies", {name: str(said.get("error", _COPY_ENDS[event]))})
            return
        if event == "MIGRATION":
            self._tell("migration", str(json.loads(details or "{}").get("status", "")))
            return
        moment = at(seconds, micros) if self._one_clock else time.monotonic_ns()
        self._tell("stopped_at" if event == "STOP" else "resumed_at", moment)

    def _on_close(self, _connection: Any, reason: int, _context: Any) -> None:
        self._tell("lost", f"the connection has ended (libvirt's reason {reason})")

    def _tell(self, what: str, value: Any, *, keep: bool = False) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._take, what, value, keep)

    # In the loop's

    def _take(self, what: str, value: Any, keep: bool) -> None:  # noqa: FBT001 - see _tell
        """Know it; with ``keep``, unless QEMU's own word for it is known already."""
        known = self.known
        known.heard += 1
        if what == "stopped_at" and not (keep and known.stopped_at > known.resumed_at):
            known.stopped_at = value
        elif what == "resumed_at" and not (keep and known.resumed_at > known.stopped_at):
            known.resumed_at = value
            if value > known.forgotten_at:
                known.first_resumed_at = known.first_resumed_at or value
        elif what == "block_jobs":
            known.block_jobs |= value
        elif what == "copies":
            known.copies |= value
        elif what not in {"stopped_at", "resumed_at"}:
            setattr(known, what, value)
        self._changed.set()


def at(seconds: int, micros: int) -> int:
    """A moment of the wall clock, in ns of the monotonic clock; never in the future."""
    ago = time.time_ns() - (seconds * 1_000_000_000 + micros * 1000)
    now = time.monotonic_ns()
    return now - ago if 0 <= ago < _SOON else now
