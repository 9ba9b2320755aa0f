"""Which host a domain goes to: room that is left, and constraints. No input or output.

``Placement`` keeps account of what hosts have left while domains are given to them. It finds a host
among thousands by two orders: hosts that have all that a domain requires (the same for all domains
that require the same), and hosts by the memory that they have left.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from entourage.fleet.values import HUGE_PAGES, FleetDomain, Host, Obstacle, in_huge_pages

Style: TypeAlias = Literal["pack", "spread"]
Refused: TypeAlias = Mapping[tuple[str, str], Sequence[tuple[str, str]]]
"""By a domain's UUID and a host: reasons and remedies, as TEST gave them."""
Signature: TypeAlias = tuple[frozenset[tuple[str, str]], frozenset[tuple[str, int]]]
_FEW = 256
"""Of so few hosts each is looked at; of more those first that have as much memory as is needed."""


@dataclass(frozen=True, slots=True)
class Group:
    """Domains that go to one host together; most are one domain alone."""

    domains: tuple[FleetDomain, ...]
    memory: int
    devices: Mapping[str, int]
    require: frozenset[tuple[str, str]]
    huge: int = 0
    """Bytes in huge pages, which are among the devices."""

    @classmethod
    def of(cls, domains: Sequence[FleetDomain]) -> Group:
        """Those domains as a group."""
        devices: Counter[str] = Counter()
        for one in domains:
            devices.update(one.devices)
        return cls(
            domains=tuple(domains),
            memory=sum(one.memory for one in domains),
            devices=dict(devices),
            require=frozenset(pair for one in domains for pair in one.require.items()),
            huge=in_huge_pages(devices),
        )

    def needs(self, host: Host) -> int:
        """Bytes that it takes of a host's memory."""
        return self.memory + self.huge if host.counts_huge else self.memory

    @property
    def signature(self) -> Signature:
        """What a host must have for it at the least, room left out."""
        return self.require, frozenset(self.devices.items())

    @property
    def apart(self) -> list[str]:
        """The words by which its domains are to be apart from others."""
        return [one.apart for one in self.domains if one.apart]


@dataclass(slots=True)
class _Left:
    """What a host has left."""

    host: Host
    free: int
    devices: Counter[str]
    apart: Counter[str] = field(default_factory=Counter[str])


class Placement:
    """Hosts, and what they have left.

    Args:
        hosts: Those that domains may go to.
        residents: Domains that run on them, which count for ``apart`` alone: their memory and
            devices are not among what is left.
        refused: What TEST has said.
        style: ``pack`` prefers the host with the least memory left that suffices, ``spread`` the
            one with the most.
    """

    def __init__(
        self,
        hosts: Iterable[Host],
        residents: Iterable[FleetDomain] = (),
        refused: Refused | None = None,
        style: Style = "pack",
    ) -> None:
        self._left = {one.name: _Left(one, one.free, Counter(one.devices)) for one in hosts}
        self._order = sorted((left.free, name) for name, left in self._left.items())
        self._suited: dict[Signature, frozenset[str]] = {}
        self._in_order: dict[Signature, Sequence[str]] = {}
        self._told: dict[tuple[Signature, int], list[Obstacle]] = {}
        self._refused: Refused = refused or {}
        self._style = style
        for one in residents:
            if one.apart and one.host in self._left:
                self._left[one.host].apart[one.apart] += 1

    def suited(self, group: Group) -> frozenset[str]:
        """The hosts that have what a group requires, were they empty."""
        signature = group.signature
        if signature not in self._suited:
            require, devices = signature
            self._suited[signature] = frozenset(
                name
                for name, left in self._left.items()
                if not left.host.closed
                and all(left.host.labels.get(key) == value for key, value in require)
                and all(left.host.devices.get(key, 0) >= count for key, count in devices)
            )
        return self._suited[signature]

    def suited_in_order(self, group: Group) -> Sequence[str]:
        """The same by their names."""
        signature = group.signature
        if signature not in self._in_order:
            self._in_order[signature] = sorted(self.suited(group))
        return self._in_order[signature]

    def best(self, group: Group, *, without: Iterable[str] = ()) -> str | None:
        """The best host for a group, by the style; None where none has room.

        Args:
            group: The domains.
            without: Hosts that it is not to go to; those that its domains run on are none anyway.
        """
        never = {one.host for one in group.domains}.union(without)
        fits = (name for name in self._candidates(group) if name not in never)
        return next((name for name in fits if self.fits(group, name)), None)

    def fits(self, group: Group, name: str) -> bool:
        """Whether a host that is suited has room for the group now, and nothing else is against."""
        left = self._left[name]
        if left.free < group.needs(left.host):
            return False
        if any(left.devices[key] < count for key, count in group.devices.items()):
            return False
        if any(left.apart[word] for word in group.apart):
            return False
        return not any((one.uuid, name) in self._refused for one in group.domains)

    def against(self, group: Group, name: str) -> list[Obstacle]:
        """Why one host does not take a group; empty where it does."""
        if name in self.suited(group) and self.fits(group, name):
            return []
        found = _Found()
        found.look(group, self._left[name], self._refused)
        return found.told()

    def _candidates(self, group: Group) -> Iterator[str]:
        """Hosts that are suited, those first that are preferred."""
        suited = self.suited(group)
        packs = self._style == "pack"
        if len(suited) <= _FEW:
            key = ((self._left[name].free, name) for name in suited)
            for _, name in sorted(key, reverse=not packs):
                yield name
            return
        first = bisect.bisect_left(self._order, (group.memory, ""))
        places = range(first, len(self._order))
        for place in places if packs else reversed(places):
            name = self._order[place][1]
            if name in suited:
                yield name

    def take(self, group: Group, name: str) -> None:
        """A group goes to a host."""
        self._change(group, name, 1)

    def give_back(self, group: Group, name: str) -> None:
        """It does not go there after all, or has left."""
        self._change(group, name, -1)

    def _change(self, group: Group, name: str, sign: int) -> None:
        left = self._left[name]
        self._told.clear()
        del self._order[bisect.bisect_left(self._order, (left.free, name))]
        left.free -= sign * group.needs(left.host)
        bisect.insort(self._order, (left.free, name))
        for key, count in group.devices.items():
            left.devices[key] -= sign * count
        for word in group.apart:
            left.apart[word] += sign

    def free(self, name: str) -> int:
        """Bytes that a host has left."""
        return self._left[name].free

    def most_free(self) -> int:
        """Bytes that the host has left which has the most left."""
        return self._order[-1][0] if self._order else 0

    def obstacles(self, group: Group, *, without: Iterable[str] = ()) -> list[Obstacle]:
        """Why no host takes a group: each kind of reason, and the hosts that it is true of."""
        never = {one.host for one in group.domains}.union(without).intersection(self._left)
        plain = not (never or group.apart or self._refused)
        key = group.signature, group.memory
        if not plain or key not in self._told:
            told = self._obstacles(group, never)
            if not plain:
                return told
            self._told[key] = told  # the same for each that is alike, of whom there may be many
        return self._told[key]

    def _obstacles(self, group: Group, never: Container[str]) -> list[Obstacle]:
        found = _Found()
        for name, left in sorted(self._left.items()):
            if name not in never:
                found.look(group, left, self._refused)
        return found.told() or [
            Obstacle(
                constraint="no-target",
                hosts=(),
                count=0,
                reason="there is no other host",
                remedy="add one: `entourage hosts add`, or name it with --to",
            )
        ]


_TOLD: int = 8  # hosts of each kind of reason


class _Found:
    """Reasons, with the hosts that each is true of."""

    def __init__(self) -> None:
        self._hosts: dict[tuple[str, str, str], list[str]] = {}
        self._most_free: tuple[int, str] = (-1, "")

    def look(self, group: Group, left: _Left, refused: Refused) -> None:
        """The first reason against a host, or all of TEST's."""
        host = left.host
        tested = [pair for one in group.domains for pair in refused.get((one.uuid, host.name), ())]
        if host.closed:
            self._add("closed", host.closed, "`entourage uncordon` there", host.name)
            return
        for key, value in sorted(group.require):
            if host.labels.get(key) != value:
                remedy = f"`entourage hosts add HOST --label {key}={value}` of one that is"
                self._add("labels", f"{key} is not {value} there", remedy, host.name)
                return
        for reason, remedy in tested:
            self._add("test", reason, remedy, host.name)
        if tested:
            return
        for key, count in sorted(group.devices.items()):
            if left.devices[key] < count:
                reason, remedy = _short_of(key, count, left)
                self._add("devices", reason, remedy, host.name)
                return
        for word in group.apart:
            if left.apart[word]:
                reason = f"another domain of apart = {word!r} is there, or goes there"
                self._add("apart", reason, "one more host", host.name)
                return
        if left.free > self._most_free[0]:
            self._most_free = (left.free, host.name)
        self._add("memory", "", "", host.name)
        self._needed = group.needs(host)

    def _add(self, constraint: str, reason: str, remedy: str, host: str) -> None:
        self._hosts.setdefault((constraint, reason, remedy), []).append(host)

    def told(self) -> list[Obstacle]:
        """Each as an obstacle."""
        found: list[Obstacle] = []
        for (constraint, reason, remedy), hosts in self._hosts.items():
            if constraint == "memory":
                free, host = self._most_free
                short = self._needed - free
                reason = (  # noqa: PLW2901 - only now is it known of all
                    f"not enough memory: {_mib(self._needed)} needed, {_mib(max(free, 0))} left on"
                    f" {host}, which has the most"
                )
                remedy = f"free {_mib(short)} there, or add a host"  # noqa: PLW2901 - same
            found.append(
                Obstacle(
                    constraint=constraint,  # type: ignore[arg-type]
                    hosts=hosts[:_TOLD],
                    count=len(hosts),
                    reason=reason,
                    remedy=remedy,
                )
            )
        return found


def _short_of(key: str, count: int, left: _Left) -> tuple[str, str]:
    """What is to be said of a host that has too few of a device left, or too few huge pages."""
    if key.startswith(HUGE_PAGES):
        size = key.removeprefix(HUGE_PAGES)
        return (
            f"not enough huge pages of {size}: {count} needed, {max(0, left.devices[key])} left",
            "set more aside there (vm.nr_hugepages, or virsh allocpages)",
        )
    has = left.host.devices.get(key, 0)
    if has >= count:
        return f"{key} is promised to another domain", "plug another one in there"
    if has:
        return f"not enough of {key}: {count} needed, {has} free", "plug another one in there"
    return left.host.held.get(key, (f"there is no {key}", "plug another one in there"))


def _mib(size: int) -> str:
    return f"{-(-size >> 20)} MiB"
