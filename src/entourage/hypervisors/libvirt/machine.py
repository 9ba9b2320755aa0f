"""A libvirt domain that runs here, and its carrier: the source's half of a migration.

The six operations go by libvirt's own phases.

    plan     Begin: libvirt says what travels, and from here on keeps others from changing it
    start    Perform, in a thread: it copies disks, then memory, stops the guest, sends the rest
    stopped  QEMU's STOP, while Perform still runs
    landed   Perform has returned
    release  Confirm: the copy here ends
    abort    end the job, or Confirm(cancelled): the guest runs here again (see ``rollback.py``)

The guest is held from the end of Perform to Confirm by libvirt's own job, which no `virsh resume`
gets past; see docs/libvirt.md for what that job outlives, and what it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError
from entourage.handover.values import Guest
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, DiskCarrying, MemoryProgress, Plan, Ticket
from entourage.hypervisors.deadman import Deadman
from entourage.hypervisors.libvirt import attending, looks, tls, volumes
from entourage.hypervisors.libvirt.activation import not_while_paused, take_images
from entourage.hypervisors.libvirt.announcing import SourceAnnouncing
from entourage.hypervisors.libvirt.checkpoints import checkpoints_of
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask, call, phases
from entourage.hypervisors.libvirt.constants import (
    XML_INACTIVE,
    XML_MIGRATABLE,
    XML_SECURE,
    Flag,
    Parameter,
    State,
)
from entourage.hypervisors.libvirt.copying import unthreaded
from entourage.hypervisors.libvirt.events import Feed, Known
from entourage.hypervisors.libvirt.guestagent import LibvirtGuestAgent
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.job import Job, Parameters
from entourage.hypervisors.libvirt.lookups import lookups_of
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.process import is_tcp, way_of
from entourage.hypervisors.libvirt.retarget import differs, retarget
from entourage.hypervisors.libvirt.rollback import Rollback
from entourage.hypervisors.libvirt.silence import watched
from entourage.hypervisors.libvirt.survey import survey
from entourage.hypervisors.libvirt.tpm import SourceTpm
from entourage.hypervisors.reach import check_host
from entourage.hypervisors.seams import MachineSeams
from entourage.steps import Planned, Refusal

_DEADMAN = Path(__file__).with_name("deadman.py")
_NOTHING: Mapping[str, str] = MappingProxyType({})
_SHOW_EVERY = 0.25
_PAGE = 4096
# Auto-converge cannot be switched on later: where it may be wanted, it begins gently.
_GENTLY = {Parameter.CONVERGE_INITIAL: 5, Parameter.CONVERGE_INCREMENT: 10}
_BASE = Flag.LIVE | Flag.PERSIST_DEST | Flag.UNDEFINE_SOURCE | Flag.UNSAFE
# UNSAFE: whether a disk is shared, libvirt guesses from its filesystem's type; we have looked.


class LibvirtMachine(MachineSeams):
    """A domain of this host's libvirtd.

    Args:
        handle: The domain, as libvirtd has it.
        log: Takes what the deadman says.
    """

    non_live = True

    def __init__(self, handle: Handle, log: Path) -> None:
        self._handle = handle
        self._log = log
        self._job = Job()
        self._rollback = Rollback(handle, self._job)
        self._deadman: Deadman | None = None
        self._plane: DataPlane | None = None
        self._clear = ""
        self._extra = Flag(0)
        self._tidying: asyncio.Task[None] | None = None
        self._released = False
        self._qemu_there = 0

    @property
    def domain(self) -> Domain:
        """The running configuration."""
        return self._handle.domain

    @property
    def was_running(self) -> bool:
        """False where the user had paused the guest before: it stays paused on the target."""
        return self._handle.was_running

    @property
    def carrying(self) -> DiskCarrying:
        """Perform copies disks, and they travel before the memory."""
        return self._job.disks

    @property
    def tpm(self) -> SourceTpm:
        """Its state travels with the memory, and libvirt erases it here."""
        return SourceTpm(self.domain)

    @property
    def guest_agent(self) -> LibvirtGuestAgent:
        """By its channel, which libvirt has."""

        async def raw() -> Any:
            return self._handle.raw

        return LibvirtGuestAgent(raw, self.domain.name)

    @property
    def announcing(self) -> SourceAnnouncing:
        """QEMU has announced it at the target, and so must here again."""
        return SourceAnnouncing(self._handle)

    @property
    def saving(self) -> LibvirtMachine | None:
        """It is saved by a snapshot of its memory."""
        from entourage.hypervisors.libvirt.saving import LibvirtSaving  # noqa: PLC0415 - it is one

        return LibvirtSaving(self._handle, self._log, socket.gethostname())

    def stay_paused(self) -> None:
        """``abort`` leaves its guest stopped, as one that its user had paused."""
        self._handle.was_running = False

    async def reattach(self, *, was_running: bool) -> Guest:
        """Take up a migration that another process began; what became of the guest here."""
        self._handle.was_running = was_running
        state = await self._handle.state()
        if state in {State.RUNNING, State.BLOCKED}:
            return Guest.RUNNING
        return Guest.DEAD if await self._handle.is_off(state) else Guest.STOPPED

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await self._tidied()
        await self._job.close()
        if self._deadman is not None:
            self._deadman.close()
        if self._released:  # its disks were deleted since
            with contextlib.suppress(HypervisorError):
                paths = [disk.path for disk in self.domain.block]
                await volumes.refresh(self._handle.connection, paths)
        await self._handle.connection.close()

    async def facts(self) -> Mapping[str, str]:
        """Versions, what the machine is made of, the CPU, digests of the boot files."""
        return await looks.facts(self._handle)

    async def blockers(self) -> Sequence[Refusal]:
        """What libvirt itself has against it: it is asked by a Begin that begins nothing."""
        found = await survey(self._handle)
        self._job.disks.know(self.domain.name, found.traits)
        return await looks.blockers(self._handle, found)

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before.

        That libvirtd has gone is no such thing: its machines live on without it. One that ended
        meanwhile is seen where it was to run again.
        """
        if self._job.feed is None:
            await asyncio.get_running_loop().create_future()
        try:
            return await self._job.heard().until(lambda known: known.ended or None)
        except HypervisorError:
            return self._handle.gone or await asyncio.get_running_loop().create_future()

    @property
    def definition(self) -> Planned | None:
        """What libvirt has written down of it, unless it is transient."""
        if self._handle.transient:
            return None
        kept = f"libvirt's definition of {self.domain.name}"
        return Planned(action="handed-on", here=kept, erased=kept)

    def encrypts(self, offers: Mapping[str, str] | None, *, wanted: bool) -> bool | None:
        """Where both hosts have certificates for it."""
        if not wanted or not tls.can_send():
            return False
        return None if offers is None else bool(offers.get("tls"))

    # The carrier's six operations

    @property
    def in_the_clear(self) -> str:
        """Once armed: why memory will travel unencrypted though it was not asked for."""
        return self._clear

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,  # noqa: ARG002 - libvirt can be told only later
        throttle: bool = False,
        lock: int | None = None,
        budget: float | None = None,
        offers: Mapping[str, str] = _NOTHING,
    ) -> None:
        """Listen, choose how memory travels, and arm the deadman.

        Raises:
            HypervisorError: Its guest is paused, and its QEMU would end itself, and the guest.
        """
        await self._tidied()
        if not self.was_running:  # whoever brought it here may not have done so
            await self._take_images()
        self._plane, self._qemu_there = plane, looks.version_in(offers.get("qemu", ""))
        self._choose(plane, offers, throttle=throttle)
        uri, uuid = self._handle.connection.uri, str(self.domain.uuid)
        if self._job.feed is None:
            self._job.feed = await Feed.open(uri, uuid)
        self._deadman = await Deadman.arm(
            _DEADMAN,
            [uri, uuid, *self.to_be_ended(plane)],
            run_again=self.was_running,
            budget=budget,
            name=f"{uuid}.{secrets.token_hex(4)}",
            log=self._log,
            lock=lock,
        )

    def to_be_ended(self, plane: DataPlane) -> Sequence[str]:  # noqa: ARG002 - of those that are saved
        """Jobs of QEMU's that the deadman ends before it lets the guest run, by their names."""
        return ()

    async def _take_images(self) -> None:
        """Have QEMU take the images of a guest that its user had paused, if it has not."""
        name = self.domain.name
        try:
            await take_images(self._handle.raw)
        except LostError:
            raise
        except HypervisorError as error:
            raise HypervisorError(
                f"{name} is paused, and may be lost: {error.message}",
                remedy=not_while_paused(name),
            ) from error

    def _choose(self, plane: DataPlane, offers: Mapping[str, str], *, throttle: bool) -> None:
        """Flags and parameters that follow from what both hosts have."""
        parameters: Parameters = {}
        self._extra, self._job.parameters, self._clear = Flag(0), parameters, ""
        if plane.secret is not None:
            name = offers.get("tls", "")
            if name and tls.can_send():
                self._extra |= Flag.TLS
                parameters[Parameter.TLS_DESTINATION] = name
            else:
                lacks = "this host" if name else "the target"
                self._clear = (
                    f"libvirt on {lacks} has no certificates for it (in {tls.directory()})"
                )
        if plane.bandwidth:
            parameters[Parameter.BANDWIDTH] = max(1, plane.bandwidth >> 20)
        if throttle:
            self._extra |= Flag.AUTO_CONVERGE
            parameters |= _GENTLY
        if not self.was_running:
            self._extra |= Flag.PAUSED

    async def plan(self, target: Domain) -> Plan:
        """Begin: what the target's half needs for Prepare; it starts with this host no more."""
        flags = _BASE | Flag.CHANGE_PROTECTION | self._extra
        parameters = dict(self._job.parameters)
        handle, disks = self._handle, self._job.disks
        if disks.names:
            flags |= Flag.NON_SHARED_INC if disks.top_only else Flag.NON_SHARED_DISK
            parameters[Parameter.DISKS] = disks.names
        if differs(self.domain, target):
            moved, lookups = (self.domain, target), lookups_of(handle.connection)
            running = await ask(handle.raw.XMLDesc, XML_SECURE | XML_MIGRATABLE)
            running = attending.without_object(running)
            parameters[Parameter.DEST_XML] = await ask(retarget, running, *moved, lookups)
            if not handle.transient:
                kept = await ask(handle.raw.XMLDesc, XML_SECURE | XML_INACTIVE | XML_MIGRATABLE)
                parameters[Parameter.PERSIST_XML] = await ask(retarget, kept, *moved, lookups)
        checkpoints = await ask(checkpoints_of, handle.raw)
        # Before Begin: libvirt changes nothing of a domain that has a job.
        autostart = not handle.transient and await handle.autostart.hold(handle.raw)
        await attending.withdraw(handle.raw)
        xml, cookie = await self._job.begin(handle, parameters, flags)
        xml = attending.without_object(xml)
        parameters[Parameter.DEST_XML] = unthreaded(xml, disks.names, self._qemu_there)
        plan = LibvirtPlan(
            xml=xml,
            cookie=cookie,
            flags=flags,
            parameters=parameters,
            transient=handle.transient,
            autostart=autostart,
            checkpoints=checkpoints,
        )
        return Plan(msgspec.msgpack.encode(plan))

    async def start(self, ticket: Ticket, *, live: bool) -> None:
        """Perform; returns when disks are copied and memory follows."""
        self._check_reach(ticket.uri)
        await in_thread(self._job.list_calls, self.domain.name, ticket.uri)
        self._perform(ticket, live=live)
        await self._is_under_way()

    def _perform(self, ticket: Ticket, *, live: bool) -> asyncio.Future[bytes]:
        """Begin Perform, in a thread."""
        job, known = self._job, self._job.heard().known
        known.migration = ""
        known.forget_moments()
        parameters = job.parameters | {Parameter.URI: ticket.uri}
        flags = job.flags if live else job.flags & ~Flag.LIVE
        job.performing = call(phases().perform, self._handle.raw, parameters, ticket.cookie, flags)
        return job.performing

    async def _is_under_way(self) -> None:
        """Wait until disks are copied and memory follows; raises what Perform has failed of."""
        job, performing = self._job, self._job.performed()

        def under_way(known: Known) -> bool | None:
            return known.migration in {"active", "pre-switchover", "device", "completed"} or None

        waiting = asyncio.ensure_future(job.heard().until(under_way))
        silent = watched(job)
        ends = {waiting, performing, silent}
        try:
            while not any(end.done() for end in ends):
                await job.disks.look(self._handle)
                await asyncio.wait(ends, timeout=_SHOW_EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            silent.cancel()
        if silent.done():  # and therefore Perform, soon
            silent.result()
        if performing.done():
            performing.result()

    def _check_reach(self, uri: str) -> None:
        """See that a target names its own address; disks go there as well."""
        if self._plane is None or not is_tcp(uri):
            raise HypervisorError(f"the target has memory go to {uri!r}, which is no TCP port")
        check_host(self._plane, *way_of(uri), "memory")

    async def progress(self) -> MemoryProgress:
        """How far pre-copy has come; zeros where libvirt does not say."""
        info: Mapping[str, int] = {}
        with contextlib.suppress(RefusedError):
            info = await ask(self._handle.raw.jobStats)
        return MemoryProgress(
            remaining=info.get("memory_remaining", 0),
            total=info.get("memory_total", 0),
            dirty_rate=float(
                info.get("memory_dirty_rate", 0) * info.get("memory_page_size", _PAGE)
            ),
            rate=float(info.get("memory_bps", 0)),
            iteration=info.get("memory_iteration", 0),
            sent=info.get("memory_processed", 0),
        )

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:  # noqa: ARG002 - see _GENTLY
        """Change how much blackout is accepted (seconds)."""
        milliseconds = max(1, round(downtime_limit * 1000))
        with contextlib.suppress(RefusedError):  # it is past that already
            await ask(self._handle.raw.migrateSetMaxDowntime, milliseconds, 0)

    async def stopped(self) -> int:
        """Wait until the guest has stopped; ns of the monotonic clock.

        A guest that its user had paused has no such moment: there it is when all has been sent.
        """
        feed, performing = self._job.heard(), self._job.performed()

        def still(known: Known) -> int | None:
            return known.stopped_at or None

        waiting = asyncio.ensure_future(feed.until(still))
        try:
            await asyncio.wait({waiting, performing}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await self.landed()
                if not self.was_running:
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
        return await asyncio.shield(self._job.performed())

    async def disarm_deadman(self) -> None:
        """GO may be sent next: from when this returns, nothing resumes the guest by itself.

        Perform has returned, so QEMU is past resuming by itself, and libvirt's job keeps others
        from it. That it stands still all the same is asked, in the time the deadman takes.
        """
        if self._deadman is None:
            raise HypervisorError("nothing would resume the guest if this process died")
        state, _ = await asyncio.gather(self._state_or_lost(), self._deadman.disarm())
        known = self._job.heard().known
        if state == State.RUNNING or known.resumed_at > known.stopped_at:
            raise let_run()

    async def _state_or_lost(self) -> int | None:
        """What libvirtd says of the guest; None where it has just gone, and nobody can ask it."""
        try:
            return await self._handle.state()
        except LostError:
            return None

    # The end

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again, or stays paused."""
        if self._deadman is not None:
            await self._deadman.not_acting()
        try:
            await self._rollback.abort()
        except GoneError:
            self._begin_to_tidy()
            raise
        self._begin_to_tidy()

    def _begin_to_tidy(self) -> None:
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._dismiss())

    async def go_on(self) -> None:
        """See ``base.Machine``; libvirt says that it is paused for an I/O error."""
        if self.was_running:
            await self._handle.go_on()

    async def keep_definition(self) -> None:
        """It stays here: it starts with its host again, if that was held off."""
        handle, name = self._handle, self.domain.name
        try:
            try:
                await handle.autostart.give_back(handle.raw)
            except LostError:
                await handle.find_again()
                await handle.autostart.give_back(handle.raw)
        except HypervisorError as error:
            raise HypervisorError(
                f"{name} does not start with this host: {error.message}",
                remedy=f"`virsh autostart {name}`, then `entourage recover {name}`",
            ) from error

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        await self._handle.suspend()

    async def release(self) -> None:
        """Confirm: the copy here ends; where libvirtd has forgotten the migration, by hand."""
        begun, self._job.beginning = self._job.beginning, None
        try:
            if begun is not None:
                try:
                    await self._job.confirm(self._handle, cancelled=False)
                except RefusedError:
                    await self._handle.destroy()
            else:
                await self._handle.destroy()
        except LostError:
            await self._handle.find_again()
            await self._handle.destroy()
        await self._handle.autostart.forget()
        self._released = True
        await self._dismiss()

    async def _dismiss(self) -> None:
        if self._deadman is not None:
            deadman, self._deadman = self._deadman, None
            await deadman.dismiss()

    async def _tidied(self) -> None:
        if self._tidying is not None:
            await self._tidying
            self._tidying = None


def let_run() -> HypervisorError:
    """What is said where its guest has gone on though it was to stand still."""
    return HypervisorError(
        "somebody has let the guest run on here", remedy="see who did, and try again"
    )
