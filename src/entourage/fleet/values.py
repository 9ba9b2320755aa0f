"""What a campaign speaks of: hosts with room, domains with needs, a plan. Sizes are bytes.

All of it is JSON somewhere: what a host answers, a plan that a user edits, what the store keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

HUGE_PAGES: Final = "hugepages:"
"""What begins the names of huge pages among a host's devices: ``hugepages:2048kB``."""


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="kebab"):
    """One of them."""


class Host(Value, frozen=True):
    """A host that may take domains.

    Attributes:
        name: In the fleet.
        memory: What its domains may have in sum.
        free: What of that is left, without what is promised to domains that are on their way.
        devices: Its own devices that nobody has, as ``usb:1050:0407`` and ``pci:8086:1572``, and
            how many of each; and huge pages, as ``hugepages:2048kB``.
        held: Of devices that it has, but of which none is free: why, and what would free one.
        labels: What its owner calls it by.
        arrivals: How many domains it lets arrive at once; None: as many as come.
        closed: Why it takes none, whichever; empty where it does.
        counts_huge: What is in huge pages counts as memory too: its settings limit what its domains
            may have in sum.
    """

    name: str
    memory: int
    free: int
    devices: Mapping[str, int] = {}
    held: Mapping[str, tuple[str, str]] = {}
    labels: Mapping[str, str] = {}
    arrivals: int | None = None
    closed: str = ""
    counts_huge: bool = False


class FleetDomain(Value, frozen=True):
    """A domain, and what a host needs to have for it.

    Attributes:
        host: The host that it runs on.
        memory: Without what is in huge pages, which are among the devices.
        devices: The host's own devices that it has, and how many of each.
        require: The labels that its host must have.
        together: Domains with the same word here go to one host.
        apart: Of the domains with the same word here, no host has two.
        pinned: It stays where it is.
        off: It does not run; the memory is what it takes once it does.
    """

    name: str
    uuid: str
    host: str
    memory: int
    devices: Mapping[str, int] = {}
    require: Mapping[str, str] = {}
    together: str = ""
    apart: str = ""
    pinned: bool = False
    off: bool = False


def in_huge_pages(devices: Mapping[str, int]) -> int:
    """Bytes of memory that are in huge pages, among the devices of a domain."""
    total = 0
    for key, count in devices.items():
        kib = key.removeprefix(HUGE_PAGES).removesuffix("kB")
        if key.startswith(HUGE_PAGES) and kib.isascii() and kib.isdigit():
            total += (int(kib) << 10) * count
    return total


Constraint: TypeAlias = Literal[
    "pinned",
    "closed",
    "labels",
    "test",
    "devices",
    "apart",
    "together",
    "memory",
    "no-target",
    "plan",
]


class Obstacle(Value, frozen=True):
    """Why a domain cannot go to some hosts.

    Attributes:
        constraint: The kind of reason.
        hosts: The hosts that it is true of; the first few, where there are many.
        count: How many there are.
        reason: In a sentence.
        remedy: What would free it.
    """

    constraint: Constraint
    hosts: Sequence[str]
    count: int
    reason: str
    remedy: str


class Move(Value, frozen=True):
    """A domain that is to leave a host for another.

    Attributes:
        memory: Its own, which the target must have left.
        devices: The host's own devices that it has, which the target must have as well.
        off: It does not run, and is to be the target's, off.
    """

    name: str
    uuid: str
    source: str
    target: str
    memory: int = 0
    devices: Mapping[str, int] = {}
    off: bool = False

    @classmethod
    def of(cls, domain: FleetDomain, target: str) -> Move:
        """A domain's, from where it is."""
        return cls(
            name=domain.name,
            uuid=domain.uuid,
            source=domain.host,
            target=target,
            memory=domain.memory,
            devices=domain.devices,
            off=domain.off,
        )


class Stay(Value, frozen=True):
    """A domain for which there is no place."""

    name: str
    uuid: str
    host: str
    why: Sequence[Obstacle]


class Plan(Value, frozen=True):
    """Which domain goes where, in the order in which they are begun; and which cannot.

    Attributes:
        version: Of this form.
        hosts: Those that are emptied; empty where domains are moved by name.
    """

    version: int = 1
    hosts: Sequence[str] = ()
    moves: Sequence[Move] = ()
    stays: Sequence[Stay] = ()


class Limits(Value, frozen=True):
    """How a campaign goes.

    Attributes:
        at_once: How many domains may leave a source at once, whoever moves them.
        per_target: How many may arrive at a target at once, whoever moves them.
        attempts: How often one domain is tried.
        wait: Seconds before the second attempt; each later one waits twice as long.
        in_a_row: After so many that went back in a row the campaign stops.
        bandwidth: Bytes a second for the memory of all of a source's domains together; 0: no limit.
        window: First and last minute of the day, local time, in which moves may begin; None: any.
    """

    at_once: int = 2
    per_target: int = 1
    attempts: int = 3
    wait: float = 30.0
    in_a_row: int = 5
    bandwidth: int = 0
    window: tuple[int, int] | None = None


ResultKind: TypeAlias = Literal["moved", "back", "refused", "doubt", "off", "elsewhere"]


class Result(Value, frozen=True):
    """What became of one attempt.

    Attributes:
        kind: ``moved``: it runs on the target. ``back``: it runs on the source as before, or was
            not begun. ``refused``: the target does not take it. ``doubt``: who runs it is not
            known. ``off``: its guest ended by itself; or it was off, and no host has it.
            ``elsewhere``: somebody else has moved it.
        message, remedy: Why, where it did not move; what to type.
        blackout: Seconds that the guest stood still; None where that is not known.
    """

    kind: ResultKind
    message: str = ""
    remedy: str = ""
    blackout: float | None = None


Status: TypeAlias = Literal["waits", "moves", "moved", "stays", "doubt", "off", "elsewhere"]


class MoveState(Value, frozen=True):
    """How far a domain of a campaign has come.

    Attributes:
        move: Where to, as planned last.
        status: ``waits`` for its turn or its next attempt; ``moves``; how it ended else.
        attempts: How many were begun.
        not_before: The moment of the next attempt (seconds since 1970).
        tried: The targets that refused it, or from which it came back.
        message, remedy: Of the last attempt.
        blackout: Of the move that went well, seconds.
    """

    move: Move
    status: Status = "waits"
    attempts: int = 0
    not_before: float = 0.0
    tried: Sequence[str] = ()
    message: str = ""
    remedy: str = ""
    blackout: float | None = None
