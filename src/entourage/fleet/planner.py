"""A plan: for each domain a host, or why there is none. No input or output.

Hardest first: the domains that the fewest hosts can take, then the largest; each goes to the host
that it fits best. One that finds no room has a domain that was placed before move aside, where that
one fits elsewhere too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal, TypeAlias

from entourage.fleet.placement import Group, Placement, Refused, Style
from entourage.fleet.values import FleetDomain, Host, Move, MoveState, Obstacle, Plan, Stay

Order: TypeAlias = Literal["hardest", "smallest", "largest", "name"]
_ASIDE = 64
"""So many hosts, and so many domains on each, are looked at for one that could move aside."""


def plan(
    hosts: Sequence[Host],
    leaving: Sequence[FleetDomain],
    residents: Iterable[FleetDomain] = (),
    refused: Refused | None = None,
    *,
    style: Style = "pack",
    emptied: Sequence[str] = (),
) -> Plan:
    """Find a host for each domain.

    Args:
        hosts: Those that domains may go to.
        leaving: The domains.
        residents: What runs on the hosts and stays there.
        refused: What TEST said: see ``Placement``.
        style: See ``Placement``.
        emptied: The hosts that are emptied, for the plan to name.
    """
    return Planner(hosts, leaving, residents, refused, style=style).plan(emptied)


def in_order(moves: Sequence[Move], order: Order) -> Sequence[Move]:
    """The same moves in the order in which they are to begin.

    Args:
        moves: As they were placed, the hardest first.
        order: By what; ``smallest`` and ``largest`` are about a domain's memory.
    """
    if order == "name":
        return sorted(moves, key=lambda move: move.name)
    if order == "hardest":
        return moves
    return sorted(moves, key=lambda move: move.memory, reverse=order == "largest")


class Planner:
    """Places groups of domains one after the other."""

    def __init__(
        self,
        hosts: Sequence[Host],
        leaving: Sequence[FleetDomain],
        residents: Iterable[FleetDomain] = (),
        refused: Refused | None = None,
        *,
        style: Style = "pack",
    ) -> None:
        stayed = list(residents)
        self._placement = Placement(hosts, stayed, refused, style)
        self._refused = refused or {}
        self._groups = _grouped([one for one in leaving if not one.pinned])
        self._pinned = [one for one in leaving if one.pinned]
        self._homes: dict[str, str] = {one.together: one.host for one in stayed if one.together}
        self._on: dict[str, list[Group]] = defaultdict(list)

    def plan(self, emptied: Sequence[str] = ()) -> Plan:
        """All of it."""
        placed: list[tuple[Group, str]] = []
        stays = [Stay(name=one.name, uuid=one.uuid, host=one.host, why=[_pinned(one)])
                 for one in self._pinned]  # fmt: skip
        moved: dict[int, str] = {}
        left: list[Group] = []
        for group in sorted(self._groups, key=self._hardness):
            target = self._place(group, moved)
            if target is None:
                left.append(group)
                continue
            moved[id(group)] = target
            placed.append((group, target))
        for group in left:
            why = self._obstacles(group)
            stays += [
                Stay(name=one.name, uuid=one.uuid, host=one.host, why=why) for one in group.domains
            ]
        moves = [Move.of(one, moved[id(group)]) for group, _ in placed for one in group.domains]
        return Plan(hosts=emptied, moves=moves, stays=stays)

    def _hardness(self, group: Group) -> tuple[int, int, str]:
        suited = self._placement.suited(group)
        refused = {
            host for one in group.domains for host in suited if (one.uuid, host) in self._refused
        } if self._refused else set[str]()  # fmt: skip
        return len(suited) - len(refused), -group.memory, group.domains[0].name

    def _place(self, group: Group, moved: dict[int, str]) -> str | None:
        target = self._found(group)
        if target is None:
            target = self._make_room(group, moved)
        if target is not None:
            self._placement.take(group, target)
            self._on[target].append(group)
        return target

    def _home(self, group: Group) -> str | None:
        """The host on which the others of its kind already are, and stay."""
        word = group.domains[0].together
        return self._homes.get(word) if word else None

    def _found(self, group: Group) -> str | None:
        home = self._home(group)
        if home is None:
            return self._placement.best(group)
        fits = home in self._placement.suited(group) and self._placement.fits(group, home)
        return home if fits else None

    def _make_room(self, group: Group, moved: dict[int, str]) -> str | None:
        """Have one that was placed go elsewhere, so that this one has room; where it has then."""
        home = self._home(group)
        never = {one.host for one in group.domains}
        suited = (one for one in self._placement.suited_in_order(group) if one not in never)
        most = self._placement.most_free()
        for host in [home] if home is not None else islice(suited, _ASIDE):
            short = group.memory - self._placement.free(host)
            for other in self._on[host][:_ASIDE]:
                if not short <= other.memory <= most or self._home(other) is not None:
                    continue
                self._placement.give_back(other, host)
                if host in self._placement.suited(group) and self._placement.fits(group, host):
                    self._placement.take(group, host)
                    elsewhere = self._placement.best(other, without=[host])
                    self._placement.give_back(group, host)
                    if elsewhere is not None:
                        self._placement.take(other, elsewhere)
                        self._on[host].remove(other)
                        self._on[elsewhere].append(other)
                        moved[id(other)] = elsewhere
                        return host
                self._placement.take(other, host)
        return None

    def _obstacles(self, group: Group) -> list[Obstacle]:
        found = self._placement.obstacles(group)
        home = self._home(group)
        if home is None:
            return found
        word = group.domains[0].together
        others = Obstacle(
            constraint="together",
            hosts=[home],
            count=1,
            reason=f"the others of together = {word!r} are on {home}, and stay there",
            remedy="move them as well",
        )
        return [others, *(one for one in found if home in one.hosts)]


def _grouped(domains: Sequence[FleetDomain]) -> list[Group]:
    """Domains that belong together as one group, each other as one alone."""
    alone: list[Group] = []
    together: dict[str, list[FleetDomain]] = defaultdict(list)
    for one in domains:
        if one.together:
            together[one.together].append(one)
        else:
            alone.append(Group.of([one]))
    return [*alone, *(Group.of(each) for each in together.values())]


def _pinned(one: FleetDomain) -> Obstacle:
    return Obstacle(
        constraint="pinned",
        hosts=[one.host],
        count=1,
        reason=f"it is pinned to {one.host}",
        remedy="take `pinned` away from it in the fleet's file",
    )


def _promised(move: Move) -> Group:
    """What a move takes of its target."""
    domain = FleetDomain(
        name=move.name, uuid=move.uuid, host=move.source, memory=move.memory, devices=move.devices
    )
    return Group.of([domain])


class Replanner:
    """Finds another target for a domain that did not get to its own, while the campaign goes on.

    Args:
        hosts: Those that domains may go to, with what they had left before any of the moves.
        domains: Those that move, and those that run on the hosts.
        refused: What TEST said.
        style: See ``Placement``.
        moves: Where each domain that has not ended otherwise is, or goes.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        domains: Iterable[FleetDomain],
        moves: Iterable[Move],
        refused: Refused | None = None,
        *,
        style: Style = "pack",
    ) -> None:
        known = {one.uuid: one for one in domains}
        going = {move.uuid: move.target for move in moves}
        residents = [one for one in known.values() if one.uuid not in going]
        self._placement = Placement(hosts, residents, refused, style)
        self._domains = known
        self._hosts = {one.name for one in hosts}
        for uuid, target in going.items():
            if uuid in known and target in self._hosts:
                self._placement.take(Group.of([known[uuid]]), target)

    def elsewhere(self, state: MoveState, promised: Iterable[Move] = ()) -> str | None:
        """Another target; None where there is none, or where others have to go there with it.

        Args:
            state: How far the domain has come.
            promised: What other campaigns have yet to move. What of it was promised before this one
                was planned is missing from the hosts already: too much is left free then, never too
                little.
        """
        domain, old = self._domains.get(state.move.uuid), state.move.target
        if domain is None or domain.together:
            return None
        group = Group.of([domain])
        if old in self._hosts:
            self._placement.give_back(group, old)
        others = [(_promised(move), move.target) for move in promised if move.target in self._hosts]
        for other, host in others:
            self._placement.take(other, host)
        new = self._placement.best(group, without=state.tried)
        for other, host in others:
            self._placement.give_back(other, host)
        target = new or old
        if target in self._hosts:
            self._placement.take(group, target)
        return new
