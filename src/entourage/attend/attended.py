"""One attended domain of this host: its bus, its note, and the migration that is under way."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

from entourage.attend.bus import Bus
from entourage.attend.shown import LastTry
from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.attended.switchover import SourceSwitchover, TargetSwitchover
from entourage.hypervisors.attended.toolstack import Note, Toolstack


class Attended:
    """An attended domain; its bus's helper.

    Args:
        uuid: The domain's.
        toolstack: This host's.
        path: Of its bus's socket.
        owner: The user whom QEMU runs as, by number.

    Attributes:
        domain: With only what is ours; None while it has not arrived.
        nonces: What the next migration from here will be known by; and the one before that, which
            a migration may still bring that was begun just then.
        source: The switchover that is under way from here.
        target: The switchover that is under way to here.
        on_bus: Whether its QEMU is connected.
        last: The last migration from here.
        problem: Why it cannot be attended now.
    """

    def __init__(self, uuid: str, toolstack: Toolstack, path: Path, owner: int) -> None:
        self.uuid = uuid
        self.path = path
        self.domain: Domain | None = None
        self.nonces = ("", "")
        self.source: SourceSwitchover | None = None
        self.target: TargetSwitchover | None = None
        self.on_bus = False
        self.last: LastTry | None = None
        self.problem = ""
        self._toolstack = toolstack
        self._bus = Bus(path, self, owner)

    @property
    def nonce(self) -> str:
        """What the next migration from here will be known by; empty where it is not attended."""
        return self.nonces[0]

    @property
    def busy(self) -> bool:
        """Whether a migration of it is under way."""
        return self.source is not None or self.target is not None

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
            self.nonces = (secrets.token_hex(16), self.nonce)
            await self._toolstack.write_note(self.uuid, Note(host=host, nonce=self.nonce))
        if guard and not self.on_bus:
            await self._toolstack.add_object(self.uuid, str(self.path))
        elif not guard:
            await self._toolstack.remove_object(self.uuid)

    async def withdraw(self) -> None:
        """Take note and object away from a domain that runs on, as if nobody had attended it."""
        self.nonces = ("", "")
        with contextlib.suppress(HypervisorError):
            await self._toolstack.write_note(self.uuid, None)
        with contextlib.suppress(HypervisorError):
            await self._toolstack.remove_object(self.uuid)

    async def close(self) -> None:
        """Close its bus."""
        await self._bus.close()

    # What its QEMU calls

    def check_expected(self) -> None:
        """Its QEMU is about to call, or would if it were told of anybody to be called."""
        if self.target is not None:
            return
        if self.source is None:
            raise HypervisorError(
                "nobody attends this migration or save of the domain: is entourage-attend running"
                " on the target, and its hook in place? `entourage attend --off` lets it go"
            )
        self.source.check()

    async def save(self) -> bytes:
        """Its guest has stopped."""
        self.check_expected()
        if self.source is None:
            raise HypervisorError("the domain is on its way to this host")
        return await self.source.save()

    async def load(self, state: bytes) -> None:
        """All of it is here."""
        if self.target is None:
            raise HypervisorError("nobody has announced this migration here")
        await self.target.load(state)

    def connected(self) -> None:
        """Its QEMU has its object."""
        self.on_bus = True

    def gone(self) -> None:
        """Its QEMU has ended, or its object was removed."""
        self.on_bus = False
        if self.target is not None:
            self.target.end("its QEMU has ended, or left its bus")
