"""Carries a libvirt domain to another host: the source's six operations, by libvirt's own phases.

    plan     Begin: libvirt says what travels, and from here on keeps others from changing it
    start    Perform, in a thread: it copies disks, then memory, stops the guest, sends the rest
    stopped  QEMU's STOP, while Perform still runs
    landed   Perform has returned
    release  Confirm: the copy here ends
    abort    end the job, or Confirm(cancelled): the guest runs here again

The guest is held from the end of Perform to Confirm by libvirt's own job, which no `virsh resume`
gets past; see docs/libvirt.md for what that job outlives, and what it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hosts.hangup import Calls
from entourage.hypervisors.base import DataPlane, MemoryProgress, Plan, Ticket
from entourage.hypervisors.deadman import Deadman
from entourage.hypervisors.libvirt import tls
from entourage.hypervisors.libvirt.connection import (
    LostError,
    RefusedError,
    ask,
    call,
    phases,
)
from entourage.hypervisors.libvirt.constants import (
    XML_INACTIVE,
    XML_MIGRATABLE,
    XML_SECURE,
    Flag,
    Parameter,
    State,
)
from entourage.hypervisors.libvirt.events import Feed, Known
from entourage.hypervisors.libvirt.process import qemu_of, way_of
from entourage.hypervisors.libvirt.retarget import differs, retarget
from entourage.hypervisors.libvirt.rollback import Rollback

_PROGRAM = Path(__file__).with_name("deadman.py")
_NOTHING: Mapping[str, str] = MappingProxyType({})
_SHOW_EVERY = 0.25
_PAGE = 4096
# Auto-converge cannot be switched on later: where it may be wanted, it begins gently.
_GENTLY = {Parameter.CONVERGE_INITIAL: 5, Parameter.CONVERGE_INCREMENT: 10}
_BASE = Flag.LIVE | Flag.PERSIST_DEST | Flag.UNDEFINE_SOURCE | Flag.UNSAFE
# UNSAFE: whether a disk is shared, libvirt guesses from its filesystem's type; we have looked.


class Carrier(Rollback):
    """The six operations; a ``Machine`` is built on it."""

    @property
    def in_the_clear(self) -> str:
        """Once armed: why memory will travel unencrypted though it was not asked for."""
        return self._clear

    def carry(self, disk: Block, *, top_only: bool) -> None:
        """``start`` is to copy this disk.

        Raises:
            HypervisorError: libvirt copies either all disks with what they are built on, or none.
        """
        others = [
            name for name, top in self._carried.items() if top != top_only and name != disk.id
        ]
        if others:
            raise HypervisorError(
                f"libvirt cannot copy it {'without' if top_only else 'with'} its backing files, and"
                f" {', '.join(others)} the other way",
                device=disk.label,
                remedy='give both the same copy = "flat" or "keep-chain"',
            )
        self._carried[disk.id] = top_only

    def mirrored(self, disk: Block) -> tuple[int, int]:
        """Bytes done and in total, as last heard; (0, 0) where it is not copied."""
        return self._copied.get(disk.id, (0, 0))

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,  # noqa: ARG002 - libvirt can be told only later
        throttle: bool = False,
        lock: int | None = None,
        offers: Mapping[str, str] = _NOTHING,
    ) -> None:
        """Listen, choose how memory travels, and arm the deadman."""
        await self._tidied()
        self._plane = plane
        self._choose(plane, offers, throttle=throttle)
        if self._feed is None:
            self._feed = await Feed.open(self._connection.uri, str(self._domain.uuid))
        self._deadman = await Deadman.arm(
            _PROGRAM,
            ["1" if self._was_running else "0", self._connection.uri, str(self._domain.uuid)],
            name=f"{self._domain.uuid}.{secrets.token_hex(4)}",
            log=self._log,
            lock=lock,
        )

    def _choose(self, plane: DataPlane, offers: Mapping[str, str], *, throttle: bool) -> None:
        """Flags and parameters that follow from what both hosts have."""
        self._extra, self._parameters, self._clear = Flag(0), {}, ""
        if plane.secret is not None:
            name = offers.get("tls", "")
            if name and tls.can_send():
                self._extra |= Flag.TLS
                self._parameters[Parameter.TLS_DESTINATION] = name
            else:
                lacks = "this host" if name else "the target"
                self._clear = (
                    f"libvirt on {lacks} has no certificates for it (in {tls.directory()})"
                )
        if plane.bandwidth:
            self._parameters[Parameter.BANDWIDTH] = max(1, plane.bandwidth >> 20)
        if throttle:
            self._extra |= Flag.AUTO_CONVERGE
            self._parameters |= _GENTLY
        if not self._was_running:
            self._extra |= Flag.PAUSED

    async def plan(self, target: Domain) -> Plan:
        """Begin: what the target's half needs for Prepare."""
        flags = _BASE | Flag.CHANGE_PROTECTION | self._extra
        parameters = dict(self._parameters)
        if self._carried:
            flags |= Flag.NON_SHARED_INC if any(self._carried.values()) else Flag.NON_SHARED_DISK
            parameters[Parameter.DISKS] = sorted(self._carried)
        if differs(self._domain, target):
            running = await ask(self._raw.XMLDesc, XML_SECURE | XML_MIGRATABLE)
            parameters[Parameter.DEST_XML] = retarget(running, self._domain, target)
            if not self._transient:
                kept = await ask(self._raw.XMLDesc, XML_SECURE | XML_INACTIVE | XML_MIGRATABLE)
                parameters[Parameter.PERSIST_XML] = retarget(kept, self._domain, target)
        self._beginning = call(phases().begin, self._raw, parameters, flags)
        xml, cookie = await asyncio.shield(self._beginning)
        parameters[Parameter.DEST_XML] = xml
        self._flags, self._parameters = flags, parameters
        return Plan(
            xml=xml, cookie=cookie, flags=flags, parameters=parameters, transient=self._transient
        )

    async def start(self, ticket: Ticket, *, live: bool) -> None:
        """Perform; returns when disks are copied and memory follows."""
        feed = self._heard()
        feed.known.migration, feed.known.stopped_at, feed.known.resumed_at = "", 0, 0
        parameters = self._parameters | {Parameter.URI: ticket.uri}
        flags = self._flags if live else self._flags & ~Flag.LIVE
        await asyncio.to_thread(self._list_calls, ticket.uri)
        performing = call(phases().perform, self._raw, parameters, ticket.cookie, flags)
        self._performing = performing

        def under_way(known: Known) -> bool | None:
            return known.migration in {"active", "pre-switchover", "device", "completed"} or None

        waiting = asyncio.ensure_future(feed.until(under_way))
        try:
            while not (waiting.done() or performing.done()):
                await self._look()
                await asyncio.wait(
                    {waiting, performing},
                    timeout=_SHOW_EVERY,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            waiting.cancel()
        if performing.done():
            performing.result()

    def _list_calls(self, uri: str) -> None:
        """What QEMU opens from now on to the target, whose host stands in Prepare's URI."""
        host, self._port = way_of(uri)
        if self._calls is not None:
            self._calls.close()
        self._calls = Calls(qemu_of(self._domain.name), host)

    async def _look(self) -> None:
        """Ask how far the disks are."""
        for name in self._carried:
            with contextlib.suppress(HypervisorError):
                info: Mapping[str, int] = await ask(self._raw.blockJobInfo, name, 0)
                if info:
                    self._copied[name] = (info["cur"], info["end"])

    async def progress(self) -> MemoryProgress:
        """How far pre-copy has come; zeros where libvirt does not say."""
        info: Mapping[str, int] = {}
        with contextlib.suppress(RefusedError):
            info = await ask(self._raw.jobStats)
        return MemoryProgress(
            transferred=info.get("memory_processed", 0),
            remaining=info.get("memory_remaining", 0),
            total=info.get("memory_total", 0),
            dirty_rate=float(
                info.get("memory_dirty_rate", 0) * info.get("memory_page_size", _PAGE)
            ),
            rate=float(info.get("memory_bps", 0)),
            iteration=info.get("memory_iteration", 0),
            expected_downtime=info.get("downtime", 0) / 1000,
        )

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:  # noqa: ARG002 - see _GENTLY
        """Change how much blackout is accepted (seconds)."""
        milliseconds = max(1, round(downtime_limit * 1000))
        with contextlib.suppress(RefusedError):  # it is past that already
            await ask(self._raw.migrateSetMaxDowntime, milliseconds, 0)

    async def stopped(self) -> int:
        """Wait until the guest has stopped; ns of the monotonic clock.

        A guest that its user had paused has no such moment: there it is when all has been sent.
        """
        feed, performing = self._heard(), self._performed()

        def still(known: Known) -> int | None:
            return known.stopped_at or None

        waiting = asyncio.ensure_future(feed.until(still))
        try:
            await asyncio.wait({waiting, performing}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await self.landed()
                if not self._was_running:
                    return time.monotonic_ns()
            return await waiting
        finally:
            waiting.cancel()

    async def pre_switchover(self) -> str:
        """Nothing: libvirt settles the disks by itself."""
        return ""

    async def continue_switchover(self) -> None:
        """Nothing: libvirt settles the disks it carries and sends the rest by itself."""

    async def landed(self) -> bytes:
        """Wait until Perform has returned: the source says that all has been sent and taken."""
        return await asyncio.shield(self._performed())

    async def disarm_deadman(self) -> None:
        """GO may be sent next: from when this returns, nothing resumes the guest by itself.

        Perform has returned, so QEMU is past resuming by itself, and libvirt's job keeps others
        from it. That it stands still all the same is asked, in the time the deadman takes.
        """
        if self._deadman is None:
            raise HypervisorError("nothing would resume the guest if this process died")
        state, _ = await asyncio.gather(self._state_or_lost(), self._deadman.disarm())
        known = self._heard().known
        if state == State.RUNNING or known.resumed_at > known.stopped_at:
            raise HypervisorError(
                "somebody has let the guest run on here", remedy="see who did, and try again"
            )

    async def _state_or_lost(self) -> int | None:
        """What libvirtd says of the guest; None where it has just gone, and nobody can ask it."""
        try:
            state: tuple[int, int] = await ask(self._raw.state, 0)
        except LostError:
            return None
        return state[0]
