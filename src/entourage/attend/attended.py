"""One attended domain of this host: its bus, its note, and the migration that is under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Generator
from pathlib import Path

from entourage.attend.bus import Bus
from entourage.attend.shown import AttendedDomain, LastTry
from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.attended.switchover import SourceSwitchover, TargetSwitchover
from entourage.hypervisors.attended.toolstack import Note, Toolstack
from entourage.report.text import clean

_log = logging.getLogger(__name__)


class Attended:
    """An attended domain; its bus's helper.

    Args:
        uuid: The domain's.
        toolstack: This host's.
        path: Of its bus's socket.
        owner: The user whom QEMU runs as, by number.

    Attributes:
        domain: With only what is ours; None while it has not arrived.
        nonces: What the next migration from here will be known by; and others that one may still
            bring: the one before, and one that could perhaps not be written.
        source: The switchover that is under way from here.
        target: The switchover that is under way to here.
        joined: Set while its QEMU is connected.
        last: The last migration from here.
        problem: Why it cannot be attended now.
    """

    def __init__(self, uuid: str, toolstack: Toolstack, path: Path, owner: int) -> None:
        self.uuid = uuid
        self.path = path
        self.domain: Domain | None = None
        self.nonces: tuple[str, ...] = ("",)
        self.source: SourceSwitchover | None = None
        self.target: TargetSwitchover | None = None
        self.joined = asyncio.Event()
        self.last: LastTry | None = None
        self.problem = ""
        self._toolstack = toolstack
        self._bus = Bus(path, self, owner)
        self._bare = False  # it is known that its QEMU has no object of ours

    @property
    def nonce(self) -> str:
        """What the next migration from here will be known by; empty where it is not attended."""
        return self.nonces[0]

    @property
    def busy(self) -> bool:
        """Whether a migration of it is under way."""
        return self.source is not None or self.target is not None

    @property
    def stands_still(self) -> bool:
        """Whether its guest does so, for its switchover."""
        return any(half is not None and half.stands_still for half in (self.source, self.target))

    @property
    def on_bus(self) -> bool:
        """Whether its QEMU is connected."""
        return self.joined.is_set()

    @property
    def _brought(self) -> tuple[str, ...]:
        """The last nonces, which migrations may still bring that were begun just before."""
        return tuple(nonce for nonce in self.nonces if nonce)[:2]

    def shown(self, name: str, *, is_off: bool = False) -> AttendedDomain:
        """What ``entourage status`` shows of it.

        Args:
            name: The domain's.
            is_off: Whether it is not to be attended, until its user says so.
        """
        return AttendedDomain(
            domain=name,
            uuid=self.uuid,
            devices=tuple(one.label for one in self.domain.devices) if self.domain else (),
            problem=self.problem,
            off=is_off,
            last=self.last,
        )

    def expects(self, nonce: str) -> bool:
        """Whether a migration from here may bring this."""
        return bool(nonce) and nonce in self.nonces

    def renew(self) -> None:
        """The next migration from here has another nonce; one may have been begun with this one."""
        self.nonces = ("", *self._brought)

    async def open(self) -> None:
        """Open its bus; raises HypervisorError."""
        await self._bus.open()

    async def announce(self, *, guard: bool) -> None:
        """The domain runs here: write a note, with a new nonce where that is not there already.

        Args:
            guard: Give its QEMU the object now: then no migration succeeds that is not attended.

        Raises:
            HypervisorError: The toolstack, or QEMU, says no.
        """
        there = await self._toolstack.note(self.uuid)
        host = socket.gethostname()
        if there is None or there != Note(host=host, nonce=self.nonce):
            new, old = secrets.token_hex(16), self._brought
            self.nonces = ("", new, *old)  # nobody knows whether it is written where that fails
            await self._toolstack.write_note(self.uuid, Note(host=host, nonce=new))
            self.nonces = (new, *old)
        if guard and not self.on_bus:
            await self._toolstack.add_object(self.uuid, str(self.path))
        elif not guard and (self.on_bus or not self._bare):
            await self._toolstack.remove_object(self.uuid)
        self._bare = not guard

    async def withdraw(self) -> None:
        """Take note and object away from a domain that runs on, as if nobody had attended it.

        Raises:
            HypervisorError: The toolstack says no.
        """
        self.nonces = ("",)
        await self._toolstack.write_note(self.uuid, None)
        await self._toolstack.remove_object(self.uuid)

    @property
    def connection(self) -> int:
        """The descriptor of its QEMU's connection, while it is connected; else -1."""
        return self._bus.connection if self.on_bus else -1

    async def close(self) -> None:
        """Close its bus."""
        await self._bus.close()

    # What its QEMU calls

    async def check_expected(self) -> None:
        """Its QEMU is about to call, or would if it were told of anybody to be called."""
        if self.target is not None:
            return
        if self.source is None:
            raise HypervisorError(
                "nobody attends this migration or save of the domain: is entourage-attend running"
                " on the target, and its hook in place? `entourage attend --off` lets it go"
            )
        await self.source.expect()

    async def save(self) -> bytes:
        """Its guest has stopped."""
        await self.check_expected()
        if self.source is None:
            raise HypervisorError("the domain is on its way to this host")
        with self._waits("its devices"):
            return await self.source.save()

    async def load(self, state: bytes) -> None:
        """All of it is here."""
        if self.target is None:
            raise HypervisorError("nobody has announced this migration here")
        with self._waits("its devices, and the hand-over"):
            await self.target.load(state)

    @contextlib.contextmanager
    def _waits(self, what: str) -> Generator[None]:
        """Have the log say how long its QEMU waits, with its guest stopped, for an answer of ours.

        The sum of both hosts' is what being attended adds to the blackout.
        """
        began = time.monotonic()
        try:
            yield
        finally:
            name = clean(self.domain.name) if self.domain is not None else self.uuid
            waited = (time.monotonic() - began) * 1000
            said = "%s: QEMU waited %.1f ms for %s"
            # Once QEMU has its answer: whoever takes the log may be slow.
            asyncio.get_running_loop().call_soon(_log.info, said, name, waited, what)

    def connected(self) -> None:
        """Its QEMU has its object."""
        self.joined.set()
        if self.target is not None:
            self.target.joined.set()

    def gone(self) -> None:
        """Its QEMU has ended, or its object was removed."""
        self.joined.clear()
        if self.target is not None:
            self.target.end("its QEMU has ended, or left its bus")
