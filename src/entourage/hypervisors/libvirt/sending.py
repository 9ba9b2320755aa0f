"""A libvirt domain that runs here and is to be saved by what libvirt sends of one that moves.

libvirt writes memory into a file of this host, and into nothing else. What is compressed, encrypted
or to lie on another host is therefore sent, by the source's phases of a migration that nobody has
prepared: Perform connects to a socket of this process, which passes on what comes. What Begin has
said is kept with it, for Prepare where it is restored.

    plan     libvirtd does not start it with its host any more (a checkpoint's it does); Begin
    start    Perform, in a thread: libvirtd connects, and what QEMU sends goes into the save
    stopped, disarm_deadman    as for a domain that moves
    landed   Perform has returned, and all of memory is on its way
    release  Confirm: the domain ends here; its definition stays
    abort    cut memory off, which QEMU takes for a target that is gone; Confirm(cancelled)

libvirt begins no migration while it copies a disk. Where disks are copied, ``plan`` therefore does
nothing, ``start`` suspends the guest, and ``continue_switchover`` does what both do otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hosts.local import listening_here
from entourage.hosts.threads import in_thread
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.into_save import PassedOn, pass_into_save
from entourage.hypervisors.libvirt import attending
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask
from entourage.hypervisors.libvirt.constants import (
    XML_INACTIVE,
    XML_MIGRATABLE,
    XML_SECURE,
    Flag,
    Parameter,
)
from entourage.hypervisors.libvirt.errors import SEE_LOGS
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.save_source import SaveSource
from entourage.hypervisors.libvirt.stream import QemuStream
from entourage.hypervisors.libvirt.survey import Survey
from entourage.hypervisors.values import KEEPS, KEEPS_LATE, LocalData, SavePlan
from entourage.steps import Refusal

_LOOK_EVERY = 1.0  # seconds
_ENDLESS_AFTER = 60.0  # seconds, of a QEMU whose guest stands still
_ENDS_WITHIN = 1.0  # seconds for what passes memory on to say why it has ended
_FLAGS = Flag.LIVE | Flag.UNSAFE | Flag.CHANGE_PROTECTION
_OLDEST = 6_008_000
"""The first libvirt whose Perform connects to a unix socket."""


class LibvirtSending(SaveSource):
    """A domain of this host's libvirtd whose memory is sent into a save.

    Args:
        handle: The domain, as libvirtd has it.
        log: Takes what the deadman says.
        host: This host's name, for refusals.
    """

    def __init__(self, handle: Handle, log: Path, host: str) -> None:
        super().__init__(handle, log, host)
        self._stream: QemuStream | None = None
        self._passed_on: PassedOn | None = None
        self._passing: asyncio.Task[None] | None = None
        self._uri = ""
        self._late = b""

    @property
    def _copies(self) -> bool:
        """Whether disks are copied, so that memory is sent only once that has ended."""
        return bool(self.local().copies)

    @property
    def before_memory(self) -> bytes:
        """What Begin has said, where it was not asked as this was planned."""
        return self._late

    async def arm(
        self, plane: DataPlane, *, offers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        """As for a move; and see that what Begin says is kept there.

        Raises:
            HypervisorError: It is not.
        """
        offers = offers or {}
        if KEEPS not in offers:
            raise HypervisorError(
                "the Entourage there is too old to keep what is needed to restore a libvirt domain",
                remedy=f"upgrade it on {plane.host}",
            )
        if plane.local is not None and plane.local.copies and offers[KEEPS] != KEEPS_LATE:
            raise HypervisorError(
                "the Entourage there is too old to take a libvirt domain with its disks",
                remedy=f"upgrade it on {plane.host}, or --disks=reference",
            )
        await super().arm(plane, offers=offers, **more)

    async def asked(self, found: Survey) -> Sequence[Refusal]:
        """What libvirt has against it; and that it connects to no socket, where it does not."""
        refusals = [*await super().asked(found)]
        if await ask(self._handle.connection.raw.getLibVersion) < _OLDEST:
            reason = "its libvirt is too old to send memory into a save"
            remedy = (
                "6.8.0 or newer is needed; it can be saved onto this host, without --compress and"
                " --encrypt"
            )
            refusals.append(Refusal("domain", self._host, reason, remedy))
        return refusals

    async def plan(self, target: Domain) -> Plan:  # noqa: ARG002 - nothing of it is changed
        """Who restores it, and what that needs for Prepare, where Begin can be asked already."""
        uri, later = self._handle.connection.uri, self._copies
        kept = b"" if later else await self._begin()
        return Plan(
            msgspec.msgpack.encode(SavePlan(hypervisor=uri, sends=True, kept=kept, later=later))
        )

    async def _begin(self) -> bytes:
        """Begin: from here on libvirt keeps others from it; what is needed to restore it.

        Nobody attends what is begun here.
        """
        handle, starts = self._handle, False
        if self.local().checkpoint:  # nobody else ever runs it
            starts = not handle.transient and bool(await ask(handle.raw.autostart))
        elif not handle.transient:  # before Begin: libvirt changes nothing of a domain with a job
            starts = await handle.autostart.hold(handle.raw)
        await attending.withdraw(handle.raw)
        xml, cookie = await self._job.begin(
            handle, dict(self._job.parameters), _FLAGS | self._extra
        )
        await self.check_devices(xml)
        parameters: dict[str, str | int | list[str]] = {
            Parameter.DEST_XML: attending.without_object(xml)
        }
        if not handle.transient:
            parameters[Parameter.PERSIST_XML] = await ask(
                handle.raw.XMLDesc, XML_SECURE | XML_INACTIVE | XML_MIGRATABLE
            )
        kept = LibvirtPlan(
            cookie=cookie,
            transient=handle.transient,
            autostart=starts,
            parameters=parameters,
        )
        return msgspec.msgpack.encode(kept)

    async def start(self, ticket: Ticket, *, live: bool) -> None:
        """Perform; returns when memory flows into the save. Where disks are copied, suspend."""
        self._uri = ticket.uri
        if self._copies:
            await self.stop_guest()
        else:
            await self._send(live=live)

    async def continue_switchover(self) -> None:
        """Nothing more is copied of its disks: have memory follow, if it does not yet."""
        if self._copies:
            self._late = await self._begin()
            await self.check_still()  # after Begin: nobody can resume it any more
            await self._send(live=False)

    async def _send(self, *, live: bool) -> None:
        """Perform; returns when memory flows into the save."""
        local = self.local()
        path = Path(local.source_socket)
        with listening_here(path) as server:
            try:
                there = Ticket(uri=f"unix://{path}", cookie=answer(self.domain))
                performing = self._perform(there, live=live)
                self._job.cut = self._cut
                await self._pass_on(server, performing, local, self._uri)
            finally:
                await in_thread(path.unlink, missing_ok=True)
        try:
            await self._is_under_way()
        except RefusedError:
            await self._failed(performing)
            raise

    async def _pass_on(
        self,
        server: socket.socket,
        performing: asyncio.Future[bytes],
        local: LocalData,
        uri: str,
    ) -> None:
        """Take the connection of libvirtd's, and have what comes by it go into the save."""
        accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(server))
        try:
            await asyncio.wait({accepting, performing}, return_when=asyncio.FIRST_COMPLETED)
            if not accepting.done():
                await self._failed(performing)
            came, _ = await accepting
        finally:
            accepting.cancel()
        mine, its = socket.socketpair()
        stream = self._stream = QemuStream(came, mine)
        passed_on = self._passed_on = await pass_into_save(local, uri, its)
        self._passing = asyncio.create_task(_all_of(stream, passed_on))

    async def _failed(self, performing: asyncio.Future[bytes]) -> None:
        """Raise why Perform has failed: perhaps because what passes memory on has."""
        if self._passing is not None:
            await asyncio.wait({self._passing}, timeout=_ENDS_WITHIN)
            if self._passing.done():
                _raise_ended(self._passing)
        try:
            performing.result()
        except RefusedError as error:
            raise self.told(error, SEE_LOGS) from error

    def _cut(self) -> None:
        """Hang up on QEMU: it fails by itself, and takes its disks back."""
        if self._stream is not None:
            self._stream.cut()

    async def landed(self) -> bytes:
        """Wait until Perform has returned, and all has gone through.

        Nothing of what Perform says is needed: it is for a target that has none yet.
        """
        performing, passing = self._job.performed(), self._passing
        if passing is None:
            raise HypervisorError("nothing is being saved")
        while not performing.done() and not (passing.done() and passing.exception()):
            await asyncio.wait(
                {performing, passing} if not passing.done() else {performing},
                timeout=_LOOK_EVERY,
                return_when=asyncio.FIRST_COMPLETED,
            )
            self._check_end()
        if passing.done():
            _raise_ended(passing)
        if performing.exception() is not None:
            await self._failed(performing)
        await asyncio.wait({passing})
        _raise_ended(passing)
        return b""

    async def stopped(self) -> int:
        """See ``LibvirtMachine.stopped``; a guest that was paused stands still all the while."""
        if self._copies:
            return self._stopped_at
        stopping = asyncio.ensure_future(super().stopped())
        try:
            while not stopping.done():
                await asyncio.wait({stopping}, timeout=_LOOK_EVERY)
                if not self.was_running and not stopping.done():
                    self._check_end()
            return stopping.result()
        finally:
            if not stopping.done():
                stopping.cancel()
                await asyncio.wait({stopping})

    def _check_end(self) -> None:
        """Raise HypervisorError where nothing more comes from QEMU, and no end either."""
        stream = self._stream
        if stream is None or stream.has_ended or stream.silent_for <= _ENDLESS_AFTER:
            return
        raise HypervisorError(
            f"its QEMU has sent nothing for {_ENDLESS_AFTER:g} s, and does not say that this is the"
            " end",
            remedy="it may be of a machine type that is too old to say so: save it onto this host,"
            " without --compress and --encrypt",
        )

    async def release(self) -> None:
        """The save has its name: Confirm; the domain ends here, and its definition stays."""
        begun, self._job.beginning = self._job.beginning, None
        if begun is not None:
            # Where libvirtd has forgotten the migration, or has gone, it is ended by hand.
            with contextlib.suppress(RefusedError, LostError):
                await self._job.confirm(self._handle, cancelled=False)
        await super().release()
        await self._end_way()

    async def abort(self) -> None:
        """Give the save up at whatever point: the guest runs here again, or stays paused."""
        try:
            await super().abort()
        finally:
            await self._end_way()

    async def close(self) -> None:
        """Let go of the machine without changing it."""
        await super().close()
        await self._end_way()

    async def _end_way(self) -> None:
        self._cut()
        stream, self._stream = self._stream, None
        passed_on, self._passed_on = self._passed_on, None
        # What it is passed on to first: the stream may wait for that.
        if passed_on is not None:
            await passed_on.end()
        if stream is not None:
            await stream.end()
        if self._passing is not None:
            await asyncio.gather(self._passing, return_exceptions=True)


async def _all_of(stream: QemuStream, passed_on: PassedOn) -> None:
    """Wait until all has gone through; QEMU hears where what it is passed on to has ended before.

    Raises:
        HypervisorError, OSError: It has not.
    """
    try:
        await passed_on.finished()
    except BaseException:
        stream.cut()
        raise
    await stream.finished()


def _raise_ended(passing: asyncio.Future[None]) -> None:
    """Raise why what passes memory on has failed, if it has."""
    try:
        passing.result()
    except OSError as error:
        raise HypervisorError(
            f"memory has not gone through: {plain_words(error)}", remedy=what_to_do(error)
        ) from error


def answer(domain: Domain) -> bytes:
    """What Prepare would say to Perform on a host that can do nothing beside taking memory.

    libvirt must have one: without, its daemon (9.0) dies of looking for what the target can do.
    ``events`` is what an older libvirt asks both hosts for before it has QEMU tell how far it is.
    """
    root = ET.Element("qemu-migration")
    for tag, text in (
        ("name", domain.name),
        ("uuid", str(domain.uuid)),
        ("hostname", "save"),
        ("hostuuid", str(uuid.uuid4())),
    ):
        ET.SubElement(root, tag).text = text
    ET.SubElement(ET.SubElement(root, "capabilities"), "cap", name="events", auto="yes")
    return ET.tostring(root) + b"\0"
