"""What is needed of whoever migrates domains on this host: libvirt, or another toolstack.

A toolstack is one module: what it asks, what it is told, and where QEMU's object is added.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from entourage.domain import Domain
from entourage.hypervisors.seams import GuestAgent
from entourage.hypervisors.values import MemoryProgress

OBJECT: Final = "entourage-attend"
"""The id of the ``dbus-vmstate`` object in QEMU."""


class Shown(enum.Enum):
    """A domain as the toolstack of this host shows it."""

    RUNNING = "running"
    PAUSED = "paused"
    """By its user."""
    HELD = "held"
    """By a migration: on its way in, or stopped for the switchover."""
    OFF = "off"
    """This host has its definition; it ran here, and does not any more."""
    IDLE = "idle"
    """This host has its definition, and its toolstack has not seen it run: since the host was
    booted, for example."""
    FAILED = "failed"
    """Its last start here, or arrival, has failed: the guest has not run since."""
    ABSENT = "absent"


ENDED: Final = frozenset({Shown.OFF, Shown.IDLE, Shown.FAILED, Shown.ABSENT})
"""There is no machine of it here."""
RELEASED: Final = frozenset({Shown.RUNNING, Shown.PAUSED})
"""Its guest runs here, or would if its user let it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What the source's daemon has written where a migration takes it along.

    Attributes:
        host: The source, as the target's ssh knows it.
        nonce: What tells this migration from others.
    """

    host: str
    nonce: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arriving:
    """A domain that a toolstack is about to take.

    Attributes:
        name, uuid: The domain's.
        note: The source's; None where the domain is not attended.
    """

    name: str
    uuid: str
    note: Note | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What a user types about one domain, on the host that is meant.

    Attributes:
        see: Shows what becomes of it.
        resume: Lets its guest run.
        end: Ends its machine.
        abort: Has its guest run on at the source of a migration that does not end.
    """

    see: str
    abort: str
    resume: str
    end: str


class Watch(Protocol):
    """What is heard of one domain, from when it is opened; it need not be there yet."""

    async def switches(self) -> int:
        """Wait until the guest has been stopped for its switchover.

        Returns:
            That moment, in ns of the monotonic clock; 0 where it was not told, and where the guest
            had been stopped long before, by whoever migrates it or by its user.

        Raises:
            HypervisorError: There is nothing more to hear.
        """
        ...

    async def resumed(self) -> int:
        """Wait until the guest runs again after its last stop; when, in ns of the monotonic clock.

        Raises:
            HypervisorError: There is nothing more to hear.
        """
        ...

    async def ended(self) -> str:
        """Wait until the machine is gone; why.

        Raises:
            HypervisorError: There is nothing more to hear.
        """
        ...

    async def given_up(self) -> str:
        """Wait until QEMU says that its migration has failed or was cancelled; its word.

        Raises:
            HypervisorError: There is nothing more to hear.
        """
        ...

    async def news(self) -> None:
        """Wait until anything more is heard of it.

        Raises:
            HypervisorError: There is nothing more to hear.
        """
        ...

    async def close(self) -> None:
        """Hear no more."""
        ...


class Toolstack(Protocol):
    """Whoever migrates domains here. Every method raises HypervisorError where it says no."""

    @property
    def way_back(self) -> bool:
        """Whether a guest comes back to the source where its target's QEMU fails to load."""
        ...

    async def running(self) -> Sequence[str]:
        """The UUIDs of all domains that run here."""
        ...

    async def read(self, uuid: str) -> Domain:
        """A domain with all its devices, and with what its user has written for Entourage.

        Raises:
            ConfigError: What was written cannot be read, or not be meant.
        """
        ...

    def changes(self) -> AsyncIterator[str]:
        """The UUIDs of domains that have started, ended or arrived; empty: look at all of them."""
        ...

    async def shown(self, uuid: str) -> Shown:
        """A domain's state here."""
        ...

    async def watch(self, uuid: str) -> Watch:
        """Listen to a domain."""
        ...

    async def migrates(self, uuid: str) -> bool:
        """Whether a migration of it from here is under way."""
        ...

    async def progress(self, uuid: str) -> MemoryProgress:
        """How far that is; zeros where it cannot be asked."""
        ...

    async def give_up(self, uuid: str) -> None:
        """End a migration that is under way; none is no error."""
        ...

    async def add_object(self, uuid: str, socket: str) -> None:
        """Add QEMU's ``dbus-vmstate`` object to a running domain; one that is there is replaced."""
        ...

    async def remove_object(self, uuid: str) -> None:
        """Take it away; none is no error, nor is a domain that is gone."""
        ...

    async def write_note(self, uuid: str, note: Note | None) -> None:
        """Write a note where a migration takes it along; None removes it."""
        ...

    async def note(self, uuid: str) -> Note | None:
        """The note that is there; None where there is none."""
        ...

    async def arriving(self, description: str) -> Arriving:
        """What a hook was given, about a domain that is about to come.

        Raises:
            HypervisorError: It cannot be read.
        """
        ...

    def with_object(self, description: str, socket: str) -> str:
        """The same description, with QEMU's object in it."""
        ...

    async def clear_notes(self) -> None:
        """Take away what this host has written of domains that do not run here any more."""
        ...

    async def commands(self, domain: Domain) -> Commands:
        """What a user types about a domain; never raises: somebody has to be told."""
        ...

    def guest_agent(self, domain: Domain) -> GuestAgent:
        """The guest agent of a domain that runs here."""
        ...

    async def owner(self) -> int:
        """The user whom QEMU runs as, by number."""
        ...
