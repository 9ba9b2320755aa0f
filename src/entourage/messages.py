"""The messages of the link: calls from source to agent, their answers, and one-way messages.

Everything on the link that is not in ``entourage.handover.values`` (the hand-over's own messages)
is here. Each end says which protocols it speaks, from ``OLDEST`` to ``NEWEST``; the newest that
both speak is the link's. ``NEWEST`` rises whenever a message changes its meaning; whoever raises it
goes on speaking the one before.

    2   the first that was written down
    3   Hello and Welcome tell a range
    4   the way of the data is proven at TEST; the target is told how far the copies are
    5   several domains are tested over one link, each after a Hello of its own
"""

from __future__ import annotations

from types import NoneType
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from entourage.domain import Domain
from entourage.hosts.frames import Notice, Question
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.steps import Refusal

OLDEST, NEWEST = 2, 5
PROVES_WAYS = TOLD_PROGRESS = 4
"""The first protocol whose agents know WAY and PROGRESS."""
TESTS_SEVERAL = 5
"""The first whose agents take a Hello about another migration, as long as none is open."""
MOST_TOLD = 160
"""Characters of what the target is told of how far the copies are."""


def spoken(oldest: int, newest: int) -> str:
    """A range of protocols, for people."""
    return f"protocol {newest}" if oldest == newest else f"protocols {oldest} to {newest}"


MigrationId: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,40}\Z")]
"""It becomes part of file names on the target."""
HostName: TypeAlias = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,255}\Z")]


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The call that opens a link, or a TEST of another domain: who calls, for which migration.

    Attributes:
        protocol: The oldest that the caller speaks: an agent of protocol 2, which knows of no
            range, takes a caller of just that one.
        newest: The newest that it speaks; 0 where it knows of no range.
    """

    version: str
    protocol: int
    migration: MigrationId
    source: HostName
    hypervisor: str
    newest: int = 0

    @property
    def agreed(self) -> int | None:
        """The newest protocol that both ends speak; None where there is none."""
        newest = min(self.newest or self.protocol, NEWEST)
        return newest if newest >= max(self.protocol, OLDEST) else None

    @property
    def speaks(self) -> str:
        """The protocols that the caller speaks, for people."""
        return spoken(self.protocol, self.newest or self.protocol)


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to Hello: who answers.

    Attributes:
        protocol: The newest that both ends speak.
        journal: The UUID of the journal here: this host's identity for the hand-over.
        address: An address of it that the source can reach; empty where it knows none.
        clock: Its monotonic clock, ns.
    """

    version: str
    protocol: int
    host: str
    journal: str
    address: str
    clock: int


class TestDomain(msgspec.Struct, frozen=True, kw_only=True):
    """Could this domain be built on the target?

    Attributes:
        domain: The running configuration.
        facts: What the source's hypervisor says of itself, to be compared.
    """

    __test__ = False  # for pytest, which takes the name for its own

    domain: Domain
    facts: dict[str, str]


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Listen as memory and disks will be listened for, so that the source can prove the way.

    Attributes:
        ports: The first and the last of the range.
        address: The target's, as the source will use it; empty: only the range is wanted.
        connections: How many ports are needed.
        token: What the source will say there; see ``hosts.dataway``.
    """

    ports: tuple[int, int]
    address: Annotated[str, Meta(max_length=100, pattern=r"^[0-9A-Za-z.:%_-]*\Z")] = ""
    connections: Annotated[int, Meta(ge=1, le=8)] = 1
    token: Annotated[bytes, Meta(max_length=32)] = b""


class WayAwaited(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to Way.

    Attributes:
        ports: Where the proof is awaited.
        range: The first and last port of those that will be used, which may be the hypervisor's
            own; None where nothing travels by TCP ports.
        offers: What ``Opened`` will say; None of an Entourage that does not tell beforehand.
    """

    ports: Annotated[tuple[int, ...], Meta(max_length=8)] = ()
    range: tuple[int, int] | None = None
    offers: dict[str, str] | None = None


class AskDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's question to its other half."""

    device: str
    half: str
    request: Any


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """The migration begins: write it down, before the first resource is made."""

    generation: Annotated[int, Meta(ge=0, le=1 << 52)]
    domain: Domain
    plane: DataPlane
    source_journal: str
    paused: bool
    """The guest was paused by its user, and stays so."""


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to Open: the migration is in the target's journal.

    Attributes:
        offers: What the target's hypervisor has, in its own words.
    """

    offers: dict[str, str] = {}


class SwitchoverCookie(msgspec.Struct, frozen=True, kw_only=True):
    """One-way, before GO: what the source's carrier says late to the target's.

    That is its ``before_memory``, or the end-of-stream cookie.
    """

    data: bytes


class Say(msgspec.Struct, frozen=True):
    """A message of the hand-over."""

    verb: str
    migration: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the source is, for people: ``copying memory, 41 %``."""

    doing: Annotated[str, Meta(max_length=MOST_TOLD)]


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """The guest was released: moments of the target's monotonic clock, ns.

    Attributes:
        heard: GO began to be put on the disk.
        decided: It was there.
        runs: The guest ran.
    """

    heard: int
    decided: int
    runs: int


class Farewell(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to BYE, after everything that was asked before is done.

    Attributes:
        settled: The target waits for no further word of the source.
        problems: What could not be cleaned up there.
    """

    settled: bool
    problems: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Something went wrong on the target that nobody had asked about."""

    message: str
    device: str = ""
    remedy: str = ""


# Calls, source to agent.
HELLO = Question("hello", Hello, Welcome)
TEST = Question("test", TestDomain, list[Refusal])
WAY = Question("way", Way, WayAwaited)
DEVICE = Question("device", AskDevice, object)
"""What is answered is decided by what the device's controller asks."""
OPEN = Question("open", Open, Opened)
BUILD = Question("build", Plan, NoneType)
LISTEN = Question("listen", NoneType, Ticket)
PUBLISH = Question("publish", NoneType, NoneType)
"""Of a checkpoint, once memory has landed: have it whole, under its name. Its guest goes on."""
ABORT = Question("abort", NoneType, list[str])
BYE = Question("bye", NoneType, Farewell)
# One-way messages: the hand-over's (both ways), the source's, and the agent's to the source.
SWITCHOVER_COOKIE = Notice("last-words", SwitchoverCookie)
HANDOVER = Notice("handover", Say)
PROGRESS = Notice("progress", Progress)
FAILED = Notice("failed", Failure)
RESUMED = Notice("resumed", Resumed)
