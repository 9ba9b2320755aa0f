"""What a plan is made of: what runs where, what is left where, and TEST of each pair."""

from __future__ import annotations

import asyncio
import fnmatch
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from entourage.errors import EntourageError, UsageError
from entourage.fleet.ensure_off import OFFLINE
from entourage.fleet.fleetfile import FleetFile
from entourage.fleet.remote import Refused, Remote, RoomThere
from entourage.fleet.values import HUGE_PAGES, FleetDomain, Host, Move, in_huge_pages

TESTS_AT_ONCE: Final = 4
"""Processes that TEST, each with one on its target."""
_WORTH_ONE: Final = 8
"""Domains for which a process is worth its start: that takes as long as TEST of about as many."""
_TESTED_BY_ONE: Final = 50
"""Domains at most: their names are words of a command."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        hosts: The targets.
        leaving: The domains that are to leave.
        residents: What runs on the targets.
        problems: What could not be asked, a sentence each.
        off: By source, the names of the domains there that do not run, and stay.
    """

    hosts: Sequence[Host]
    leaving: Sequence[FleetDomain]
    residents: Sequence[FleetDomain]
    problems: Sequence[str] = ()
    off: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


@dataclass(slots=True)
class Tests:
    """What TEST said: by UUID and host, reasons and remedies."""

    refused: dict[tuple[str, str], list[tuple[str, str]]] = field(
        default_factory=dict[tuple[str, str], list[tuple[str, str]]]
    )
    asked: int = 0


@dataclass(frozen=True, slots=True)
class Meant:
    """Which domains are to leave; all of them, if nothing is said.

    Attributes:
        patterns: Their names.
        uuids: Their UUIDs.
        off: Also those that do not run.
    """

    patterns: Sequence[str] = ()
    uuids: Collection[str] = ()
    off: bool = False

    def is_meant(self, name: str, uuid: str) -> bool:
        """Whether a domain is."""
        if self.uuids:
            return uuid in self.uuids
        return not self.patterns or any(_is_meant(name, each) for each in self.patterns)


ALL: Final = Meant()


async def survey(
    remote: Remote, sources: Sequence[str], targets: Sequence[str], meant: Meant = ALL
) -> Survey:
    """Ask all hosts at once.

    Args:
        remote: The hosts.
        sources: Those that domains leave.
        targets: Those that they may go to; one that does not answer is closed, and is told.
        meant: Which domains leave.

    Raises:
        EntourageError: A source does not answer.
        UsageError: No domain of that name runs there.
        EntourageError: One runs on two of the sources.
    """
    names = list(dict.fromkeys((*sources, *targets)))
    answers = await asyncio.gather(
        *(remote.room(name) for name in names), return_exceptions=True
    )  # fmt: skip
    rooms: dict[str, RoomThere] = {}
    problems: list[str] = []
    failed: dict[str, str] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, RoomThere):
            rooms[name] = answer
        elif not isinstance(answer, EntourageError) or name in sources:
            raise answer
        else:
            failed[name] = answer.message
            problems.append(str(answer))
    leaving: list[FleetDomain] = []
    for source in sources:
        leaving += _leaving(remote.fleet, source, rooms[source], meant)
    known = leaving
    leaving = _without_twins(known, rooms, problems)
    _check_once(leaving)
    for pattern in meant.patterns:
        if not any(_is_meant(one.name, pattern) for one in known):
            raise UsageError(
                f"no domain {pattern!r} runs on {', '.join(sources)}",
                remedy="`entourage room` there lists them",
            )
    hosts = [_host(remote.fleet, name, rooms.get(name), failed.get(name, "")) for name in targets]
    going = {one.uuid for one in leaving}
    residents = [
        one
        for name in targets
        if name in rooms
        for one in _domains(remote.fleet, name, rooms[name])
        if one.uuid not in going
    ]
    moved_off = {(one.host, one.name) for one in leaving if one.off}
    off = {
        source: left
        for source in sources
        if (left := [one for one in rooms[source].off if (source, one) not in moved_off])
    }
    return Survey(hosts=hosts, leaving=leaving, residents=residents, problems=problems, off=off)


async def tests_of(
    remote: Remote,
    found: Survey,
    told: Callable[[int, int], None],
    options: Sequence[str],
) -> Tests:
    """TEST each domain against each host that takes any; nothing is touched.

    Args:
        remote: The hosts.
        found: What there is.
        told: Is told how many are done, of how many.
        options: More of `entourage migrate`.
    """
    tests, gate = Tests(), asyncio.Semaphore(TESTS_AT_ONCE)
    groups = in_groups([one for one in found.leaving if not one.pinned])
    targets = {
        source: [one for one in found.hosts if not one.closed and one.name != source]
        for source in {group[0].host for group in groups}
    }
    count = sum(len(group) * len(targets[group[0].host]) for group in groups)

    async def test_on(group: Sequence[FleetDomain], host: str) -> None:
        left = [one.name for one in group]

        def one_more() -> None:
            if left:
                left.pop()
                tests.asked += 1
                told(tests.asked, count)

        names, source = tuple(left), group[0].host
        words = OFFLINE if group[0].off else options
        refused: Mapping[str, Sequence[Refused]]
        async with gate:
            try:
                refused = await remote.test(names, source, host, words, one_more)
            except EntourageError as error:
                refused = {name: [(error.what, error.remedy)] for name in names}
        while left:  # of these nothing was said
            one_more()
        tests.refused |= {
            (one.uuid, host): [*refused[one.name]] for one in group if refused[one.name]
        }

    async def test(group: Sequence[FleetDomain]) -> None:
        for host in targets[group[0].host]:  # one after the other: each TEST locks its domain
            await test_on(group, host.name)

    await asyncio.gather(*map(test, groups))
    return tests


def in_groups(domains: Sequence[FleetDomain]) -> list[Sequence[FleetDomain]]:
    """Domains that one process tests, one after the other; of one host each.

    No more than are at work at once, but where there would be too many in one.
    """
    alike: defaultdict[tuple[str, bool], list[FleetDomain]] = defaultdict(list)
    for one in domains:
        alike[one.host, one.off].append(one)
    most = min(_TESTED_BY_ONE, max(_WORTH_ONE, -(-len(domains) // TESTS_AT_ONCE)))
    return [
        ours[first : first + (1 if off else most)]  # of what is off a command tests one
        for (_, off), ours in alike.items()
        for first in range(0, len(ours), 1 if off else most)
    ]


def less(
    hosts: Sequence[Host], domains: Sequence[FleetDomain], promised: Sequence[Move]
) -> list[Host]:
    """Hosts without what other campaigns have promised of them.

    Args:
        hosts: As they were found.
        domains: What runs on them: what has arrived is counted there already.
        promised: What other campaigns have yet to move.
    """
    there = {(one.uuid, one.host) for one in domains}
    used: Counter[str] = Counter()
    huge: Counter[str] = Counter()
    devices: defaultdict[str, Counter[str]] = defaultdict(Counter)
    held: defaultdict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    for move in promised:
        if (move.uuid, move.target) not in there:
            used[move.target] += move.memory
            huge[move.target] += in_huge_pages(move.devices)
            devices[move.target].update(move.devices)
            held[move.target] |= {
                key: (
                    f"{key} is promised to {move.name}, which another campaign moves there",
                    "`entourage campaign list` shows it; wait for it, or abort it",
                )
                for key in move.devices
                if not key.startswith(HUGE_PAGES)
            }
    return [
        msgspec.structs.replace(
            host,
            free=host.free - used[host.name] - (huge[host.name] if host.counts_huge else 0),
            devices=dict(Counter(host.devices) - devices[host.name]),
            held=dict(host.held)
            | {
                key: why
                for key, why in held[host.name].items()
                if 0 < host.devices.get(key, 0) <= devices[host.name][key]
            },
        )
        for host in hosts
    ]


def _without_twins(
    leaving: Sequence[FleetDomain], rooms: Mapping[str, RoomThere], problems: list[str]
) -> list[FleetDomain]:
    """Those that leave, without what is off and runs elsewhere: that is told, and stays."""
    running = {one.uuid: host for host, room in rooms.items() for one in room.domains}
    left: list[FleetDomain] = []
    for one in leaving:
        if one.off and one.uuid in running:
            problems.append(
                f"{one.name} ({one.uuid}) is off on {one.host}, and runs on {running[one.uuid]}:"
                f" it stays on {one.host}; delete it there, if it is of no use any more"
            )
        else:
            left.append(one)
    return left


def _check_once(leaving: Sequence[FleetDomain]) -> None:
    """Raise EntourageError where a domain is said to run on two hosts."""
    seen: dict[str, str] = {}
    for one in leaving:
        if seen.setdefault(one.uuid, one.host) != one.host:
            raise EntourageError(
                f"{one.name} ({one.uuid}) runs on {seen[one.uuid]} and on {one.host}",
                remedy="`entourage status` on both; nothing is moved before that is settled",
            )


def _leaving(fleet: FleetFile, source: str, room: RoomThere, meant: Meant) -> list[FleetDomain]:
    known = _domains(fleet, source, room)
    if meant.off:
        known += _domains(fleet, source, room, off=True)
    return [one for one in known if meant.is_meant(one.name, one.uuid)]


def _is_meant(name: str, pattern: str) -> bool:
    """Whether a domain is: by its very name, which may look like a pattern, or by one."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _domains(
    fleet: FleetFile, host: str, room: RoomThere, *, off: bool = False
) -> list[FleetDomain]:
    found: list[FleetDomain] = []
    for one in room.off_domains if off else room.domains:
        rule = fleet.rule(one.name)
        found.append(
            FleetDomain(
                name=one.name,
                uuid=one.uuid,
                host=host,
                memory=max(0, one.memory - in_huge_pages(one.devices)),
                devices=one.devices,
                require=rule.require,
                together=rule.together,
                apart=rule.apart,
                pinned=rule.pinned,
                off=off,
            )
        )
    return found


def _host(fleet: FleetFile, name: str, room: RoomThere | None, problem: str) -> Host:
    labels = fleet.entry(name).labels
    if room is None:
        return Host(name=name, memory=0, free=0, labels=labels, closed=problem)
    names = ", ".join(one.name for one in room.cordons)
    return Host(
        name=name,
        memory=room.memory,
        free=room.free,
        devices=room.devices,
        held={key: (one.reason, one.remedy) for key, one in room.held.items()},
        labels=labels,
        arrivals=room.arrivals,
        counts_huge=room.limited,
        closed=f"it takes no domains (cordon {names})" if names else "",
    )
