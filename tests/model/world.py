"""The world that is explored: two hosts, what is on their disks, what runs there, what was said.

Everything is a tuple of small things, so that a million worlds can be kept and compared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias, TypeVar

from entourage.handover.rules import Source, Target
from entourage.handover.values import Effect, Guest, MessageKind, Record

# A host's copy of the guest. A source copy is RUN, then COPY (pre-copy), STOP (for the switchover)
# and POST (QEMU says that all is sent, and never resumes by itself any more). A target copy is
# BUILD, then LAND, and RUN once it was released; PAUSED is what its user does to it after that.
DEAD, RUN, PAUSED, COPY, STOP, POST = "dead", "run", "paused", "copy", "stop", "post"
BUILD, LAND = "build", "land"
RUNNING = frozenset({RUN, PAUSED, COPY})
STOPPED = frozenset({STOP, POST})
INCOMING = frozenset({BUILD, LAND})
SEEN = {
    DEAD: Guest.DEAD,
    **dict.fromkeys(RUNNING, Guest.RUNNING),
    **dict.fromkeys(STOPPED | INCOMING, Guest.STOPPED),
}

# A TPM's state on a host's disk; CACHED does not survive a power cut.
NO_TPM, CACHED, SAFE = "no TPM", "cached", "safe"

# What became of a target's copy.
NOT_BUILT, BUILT, RAN = "not built", "built", "ran"

# The deadman: ARMED resumes the guest when its parent dies, ACTING is about to.
NO_HAND, ARMED, HELD, ACTING = "none", "armed", "held", "acting"

# Processes: whoever holds a host's lock of the domain (the command that began a migration and its
# agent, or a ``recover`` later), and the one that only answers, without the lock.
HOLDER, ANSWER = "holder", "answer"

Row: TypeAlias = tuple[Record | None, bool]
"""What a journal says of one migration, and whether it is clean."""
Rows: TypeAlias = tuple[Row, ...]
Said: TypeAlias = frozenset[tuple[MessageKind, int]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """What one process knows, and which effects it still has to execute.

    Made by `process` only, which makes each one once: comparing them is comparing addresses.
    """

    kind: str
    migration: int
    state: Source | Target
    effects: tuple[Effect, ...] = ()
    unsynced: bool = False
    """In the middle of a flush: written, and not synced yet."""


_processes: dict[tuple[Any, ...], Process] = {}


def process(
    kind: str,
    migration: int,
    state: Source | Target,
    effects: tuple[Effect, ...] = (),
    *,
    unsynced: bool = False,
) -> Process:
    """The one process that is so."""
    key = (kind, migration, state, effects, unsynced)
    found = _processes.get(key)
    return found if found is not None else _processes.setdefault(key, Process(*key))


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """One host: ``disk`` is the journal as a power cut leaves it, ``cache`` as processes see it.

    Made by `host` only, like processes.
    """

    guest: str
    tpm: str
    disk: Rows
    cache: Rows
    main: Process | None = None
    answer: Process | None = None
    hand: str = NO_HAND

    def but(self, **changes: Any) -> Host:
        """This host with something changed."""
        return host(*[changes.get(field, getattr(self, field)) for field in _HOST])


_HOST = tuple(field.name for field in fields(Host))
_hosts: dict[tuple[Any, ...], Host] = {}


def host(*values: Any) -> Host:
    """The one host that is so; the values are all of `Host`'s fields."""
    found = _hosts.get(values)
    return found if found is not None else _hosts.setdefault(values, Host(*values))


class World(NamedTuple):
    """All of it.

    Attributes:
        hosts: The two hosts.
        said: Every message that was ever sent. None is taken away, so that each can arrive late, in
            any order, again and again, or never: no network can do worse.
        sources: For each migration that was begun, which host was its source.
        copies: For each, whether the target's copy was built, and whether it was ever released.
        fenced: For each, the host that the user declared fenced, if any.
        faulty: Whether a fault may happen next.
    """

    hosts: tuple[Host, Host]
    said: Said
    sources: tuple[int, ...]
    copies: tuple[str, ...]
    fenced: tuple[int | None, ...]
    faulty: bool = False

    def host(self, place: int, **changes: Any) -> World:
        """This world with one host changed."""
        return self.host_is(place, self.hosts[place].but(**changes))

    def host_is(self, place: int, host: Host) -> World:
        """This world with one host replaced."""
        hosts = (host, self.hosts[1]) if place == 0 else (self.hosts[0], host)
        return World(hosts, *self[1:])

    def role(self, place: int, migration: int) -> type[Source | Target]:
        """A host's part in a migration."""
        return Source if self.sources[migration] == place else Target


def first_world(*, migrations: int) -> World:
    """The domain runs on host 0, and nobody has ever heard of a migration."""
    nothing: Rows = ((None, False),) * migrations
    home = host(RUN, SAFE, nothing, nothing, None, None, NO_HAND)
    away = host(DEAD, NO_TPM, nothing, nothing, None, None, NO_HAND)
    return World(
        (home, away),
        frozenset(),
        (),
        (NOT_BUILT,) * migrations,
        (None,) * migrations,
    )


@functools.cache
def also(said: Said, kinds: frozenset[MessageKind], migration: int) -> Said:
    """What was said, and more."""
    return said | {(kind, migration) for kind in kinds}


@functools.cache
def with_row(rows: Rows, migration: int, row: Row) -> Rows:
    """A journal with one row changed."""
    return replaced(rows, migration, row)


def replaced(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    """A tuple with one value changed."""
    return (*values[:index], value, *values[index + 1 :])


def name(place: int) -> str:
    """What stories call a host."""
    return "AB"[place]
