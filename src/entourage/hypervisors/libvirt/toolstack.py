"""libvirt as the toolstack of attended migrations: ``virsh migrate`` and all that does the same.

A note is an element in the running domain's ``<metadata>``; QEMU's object is added by a monitor
command on the source, and by ``<qemu:commandline>`` on the target. libvirt notes both with the
domain ("tainted": custom-monitor, custom-argv).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.attended.switchover import ID
from entourage.hypervisors.attended.toolstack import (
    OBJECT,
    Arriving,
    Commands,
    Note,
    Shown,
)
from entourage.hypervisors.libvirt import attending
from entourage.hypervisors.libvirt.connection import (
    Connection,
    LostError,
    RefusedError,
    ask,
    bindings,
    call,
    tell_qemu,
)
from entourage.hypervisors.libvirt.constants import LIFECYCLE, NO_DOMAIN, State
from entourage.hypervisors.libvirt.domainxml import parse, read_domain, side_text
from entourage.hypervisors.libvirt.events import Feed
from entourage.hypervisors.libvirt.guestagent import LibvirtGuestAgent
from entourage.hypervisors.libvirt.lookups import lookups_of
from entourage.hypervisors.side import NAMESPACE, read_side, with_side
from entourage.hypervisors.values import MemoryProgress

Result = TypeVar("Result")
_METADATA = 23  # VIR_DOMAIN_EVENT_ID_METADATA_CHANGE
_ACTIVE_ONLY = 1  # VIR_CONNECT_LIST_DOMAINS_ACTIVE
_JOBS = frozenset({1, 2})  # VIR_DOMAIN_JOB_BOUNDED, …_UNBOUNDED
_PAUSED_BY_MIGRATION = frozenset({2, 11, 12, 13})  # virDomainPausedReason: also post-copy, starting
_OFF = {0: Shown.IDLE, 6: Shown.FAILED}  # VIR_DOMAIN_SHUTOFF_UNKNOWN, …_FAILED
_GIVEN_UP = frozenset({"failed", "cancelled", "cancelling"})  # QEMU's MigrationStatus
_SWITCHES = frozenset({"pre-switchover", "device", "completed"})  # same
_FOR_IT = 1_000_000_000  # ns from the guest's stop to QEMU's word that it switches over
_AGAIN = 0.5  # seconds
_MISSING = MemoryProgress(remaining=0, total=0, dirty_rate=0.0, rate=0.0, iteration=0)


class LibvirtWatch:
    """What is heard of one domain.

    Args:
        feed: Of that domain.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def switches(self) -> int:
        """Wait until the guest has been stopped for its switchover; the moment of its stop.

        ``virsh migrate --timeout`` suspends the guest, and goes on copying its memory; so may its
        user. Such a stop is none of the switchover's.
        """
        await self._feed.until(lambda known: known.migration in _SWITCHES or None)
        known = self._feed.known
        recent = time.monotonic_ns() - known.stopped_at < _FOR_IT
        return known.stopped_at if recent and known.stopped_at > known.resumed_at else 0

    async def resumed(self) -> int:
        """Wait until the guest runs again after its last stop; that moment."""
        return await self._feed.until(
            lambda known: known.resumed_at if known.resumed_at > known.stopped_at else None
        )

    async def ended(self) -> str:
        """Wait until the machine is gone; why."""
        return await self._feed.until(lambda known: known.ended or None)

    async def given_up(self) -> str:
        """Wait until QEMU says that its migration has failed or was cancelled; its word."""
        return await self._feed.until(
            lambda known: known.migration if known.migration in _GIVEN_UP else None
        )

    async def news(self) -> None:
        """Wait until anything more is heard of it."""
        before = self._feed.known.heard
        await self._feed.until(lambda known: known.heard > before or None)

    async def close(self) -> None:
        """Hear no more."""
        await self._feed.close()


class LibvirtToolstack:
    """One libvirtd.

    Args:
        uri: As virsh's ``--connect``.
    """

    def __init__(self, uri: str) -> None:
        self.way_back = True  # libvirt has QEMU use its return path
        self._uri = uri
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def running(self) -> Sequence[str]:
        """The UUIDs of all domains that run here."""

        def look(connection: Connection) -> list[str]:
            return [raw.UUIDString() for raw in connection.raw.listAllDomains(_ACTIVE_ONLY)]

        return await self._asked(look)

    async def read(self, uuid: str) -> Domain:
        """A domain with what its user has written for it."""

        def read(connection: Connection) -> tuple[Domain, str]:
            text: str = connection.raw.lookupByUUIDString(uuid).XMLDesc(0)
            return read_domain(text, lookups_of(connection)), side_text(text)

        domain, written = await self._asked(read)
        return with_side(domain, read_side(domain.name, written))

    async def changes(self) -> AsyncIterator[str]:
        """The UUIDs of domains that have started, ended or arrived; empty: look at all of them."""
        loop = asyncio.get_running_loop()
        while True:
            queue: asyncio.Queue[str | None] = asyncio.Queue()
            try:
                connection = await Connection.open(self._uri)
            except HypervisorError:
                await asyncio.sleep(_AGAIN)
                continue

            def tell(what: str | None, queue: asyncio.Queue[str | None] = queue) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(queue.put_nowait, what)

            try:
                await ask(_listen, connection, tell)
                yield ""
                while (uuid := await queue.get()) is not None:
                    yield uuid
            except HypervisorError:
                await asyncio.sleep(_AGAIN)
            finally:
                await connection.close()

    async def shown(self, uuid: str) -> Shown:
        """A domain's state here."""

        def look(connection: Connection) -> tuple[int, int]:
            state, reason = connection.raw.lookupByUUIDString(uuid).state(0)
            return state, reason

        try:
            state, reason = await self._asked(look)
        except RefusedError as error:
            if error.code != NO_DOMAIN:
                raise
            return Shown.ABSENT
        if state in {State.RUNNING, State.BLOCKED, State.SHUTDOWN}:
            return Shown.RUNNING
        if state in {State.PAUSED, State.SUSPENDED}:
            held = state == State.PAUSED and reason in _PAUSED_BY_MIGRATION
            return Shown.HELD if held else Shown.PAUSED
        return _OFF.get(reason, Shown.OFF) if state == State.SHUT_OFF else Shown.OFF

    async def watch(self, uuid: str) -> LibvirtWatch:
        """Listen to a domain."""
        return LibvirtWatch(await Feed.open(self._uri, uuid))

    async def migrates(self, uuid: str) -> bool:
        """Whether a migration of it from here is under way."""
        return (await self._job(uuid))[0] in _JOBS

    async def progress(self, uuid: str) -> MemoryProgress:
        """How far that is."""
        try:
            job = await self._job(uuid)
        except HypervisorError:
            return _MISSING
        if job[0] not in _JOBS:
            return _MISSING
        return MemoryProgress(
            remaining=job[8], total=job[6], dirty_rate=0.0, rate=0.0, iteration=0, sent=job[7]
        )

    async def _job(self, uuid: str) -> Sequence[int]:
        """As ``virDomainGetJobInfo``.

        It asks QEMU, which answers nobody while it waits for us in Save: so whoever is cancelled
        meanwhile does not wait for the answer.
        """
        connection = await self._connected()
        try:
            return await call(lambda: connection.raw.lookupByUUIDString(uuid).jobInfo())
        except LostError:
            await self._forget(connection)
            raise

    async def give_up(self, uuid: str) -> None:
        """End a migration that is under way."""
        if await self.migrates(uuid):
            await self._asked(lambda c: c.raw.lookupByUUIDString(uuid).abortJob())

    async def add_object(self, uuid: str, socket: str) -> None:
        """Add QEMU's object to a running domain."""
        await self.remove_object(uuid)
        raw = await self._raw(uuid)
        properties = {"qom-type": "dbus-vmstate", "id": OBJECT, "id-list": ID}
        properties["addr"] = f"unix:path={socket}"
        if await tell_qemu(raw, "object-add", **properties) is None:
            raise HypervisorError(
                "QEMU does not take a dbus-vmstate object",
                remedy=f"its log in /var/log/libvirt/qemu says why: may it connect to {socket}"
                " (AppArmor, SELinux)? Has it another dbus-vmstate object already?",
            )

    async def remove_object(self, uuid: str) -> None:
        """Take it away."""
        with contextlib.suppress(RefusedError):  # it is not there any more
            await attending.remove_object(await self._raw(uuid))

    async def write_note(self, uuid: str, note: Note | None) -> None:
        """Write a note into the running domain's metadata."""
        await attending.write_note(await self._raw(uuid), note)

    async def note(self, uuid: str) -> Note | None:
        """The note that is there."""
        text = await self._asked(lambda c: c.raw.lookupByUUIDString(uuid).XMLDesc(0))
        return attending.arriving(text).note

    async def arriving(self, description: str) -> Arriving:
        """What the hook was given: the domain's XML."""
        return attending.arriving(description)

    def with_object(self, description: str, socket: str) -> str:
        """The same XML, with QEMU's object in it; the hook has taken an older one out."""
        return attending.with_object(description, socket)

    async def _raw(self, uuid: str) -> Any:
        """The domain; raises RefusedError where there is none."""
        return await self._asked(lambda connection: connection.raw.lookupByUUIDString(uuid))

    async def clear_notes(self) -> None:
        """Nothing: they go with the running domain."""

    async def commands(self, domain: Domain) -> Commands:
        """Virsh's."""
        return Commands(
            see=f"virsh domstate {domain.name}",
            resume=f"virsh resume {domain.name}",
            end=f"virsh destroy {domain.name}",
            abort=f"virsh domjobabort {domain.name}",
        )

    def guest_agent(self, domain: Domain) -> LibvirtGuestAgent:
        """By its channel, which libvirt has."""
        return LibvirtGuestAgent(lambda: self._raw(domain.uuid or ""), domain.name)

    async def owner(self) -> int:
        """The user whom QEMU runs as, by number."""
        text: str = await self._asked(lambda connection: connection.raw.getCapabilities())
        return owner_in(text)

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is None:
                self._connection = await Connection.open(self._uri)
            return self._connection

    async def _asked(self, look: Callable[[Connection], Result]) -> Result:
        """Ask libvirtd; once more over a new connection where the one that there was is gone.

        Whatever is asked so may be asked twice.
        """
        connection = await self._connected()
        try:
            return await ask(look, connection)
        except LostError:
            await self._forget(connection)
        connection = await self._connected()
        try:
            return await ask(look, connection)
        except LostError:
            await self._forget(connection)
            raise

    async def _forget(self, connection: Connection) -> None:
        """Open another one the next time: that of a libvirtd which has gone stays dead."""
        if self._connection is connection:
            self._connection = None
            await connection.close()


def owner_in(capabilities: str) -> int:
    """The user whom QEMU runs as, as libvirt's capabilities have it; root where they do not say."""
    for model in parse(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            label = model.find("baselabel")
            text = (label.text or "") if label is not None else ""
            if found := re.fullmatch(r"\+(\d{1,9}):\+\d{1,9}", text.strip()):
                return int(found[1])
    return 0


def _listen(connection: Connection, tell: Callable[[str | None], None]) -> None:
    """Have libvirt tell of what becomes of all domains; None once nothing more comes."""

    def on_event(_connection: Any, domain: Any, _event: int, _detail: int, _context: Any) -> None:
        tell(domain.UUIDString())

    def on_close(_connection: Any, _reason: int, _context: Any) -> None:
        tell(None)

    def on_note(_connection: Any, domain: Any, _kind: int, namespace: str, _context: Any) -> None:
        if namespace in {attending.NAMESPACE, NAMESPACE}:
            tell(domain.UUIDString())

    connection.raw.domainEventRegisterAny(None, LIFECYCLE, on_event, None)
    connection.raw.domainEventRegisterAny(None, _METADATA, on_note, None)
    with contextlib.suppress(bindings().libvirtError):
        connection.raw.registerCloseCallback(on_close, None)
