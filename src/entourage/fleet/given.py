"""A plan that a user may have changed, as it is carried out.

Nothing is taken from it but which domain goes where, and in which order: what a domain is called,
and what it needs, is what its host says now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from entourage.errors import UsageError
from entourage.fleet.placement import Group, Placement, Refused
from entourage.fleet.survey import Survey
from entourage.fleet.values import FleetDomain, Host, Move, Obstacle, Plan, Stay


def adopted(given: Plan, found: Survey, refused: Refused, hosts: Sequence[Host]) -> Plan:
    """The plan anew, with what there is now.

    Args:
        given: The user's.
        found: What there is.
        refused: What TEST said: see ``Placement``.
        hosts: The targets, without what other campaigns have promised of them.

    Raises:
        UsageError: A domain is not where the plan has it, or something is against its target.
    """
    there = {one.uuid: one for one in found.leaving}
    placement = Placement(hosts, found.residents, refused)
    together = {one.together: one.host for one in found.residents if one.together}
    problems: list[str] = []
    moves: list[Move] = []
    for move in given.moves:
        domain = there.get(move.uuid)
        if domain is None or domain.host != move.source:
            problems.append(f"{move.name} does not run on {move.source}")
            continue
        against = _against(domain, move.target, placement, together)
        problems += [f"{domain.name} to {move.target}: {reason}" for reason in against]
        moves.append(Move.of(domain, move.target))
    if problems:
        raise UsageError(
            f"the plan cannot be carried out: {'; '.join(problems)}",
            remedy="make a new one: `entourage plan`",
        )
    return Plan(hosts=given.hosts, moves=moves, stays=_stays(given, found))


def _against(
    domain: FleetDomain, target: str, placement: Placement, together: dict[str, str]
) -> Sequence[str]:
    """What speaks against a target, once what comes before in the plan is there."""
    if domain.pinned:
        return [f"it is pinned to {domain.host}"]
    word = domain.together
    if word and together.setdefault(word, target) != target:
        return [f"another domain of together = {word!r} is on {together[word]}, or goes there"]
    group = Group.of([domain])
    found = [one.reason for one in placement.against(group, target)]
    placement.take(group, target)
    return found


def _stays(given: Plan, found: Survey) -> list[Stay]:
    """What runs on the hosts that are emptied, and is not moved: it may be there only since."""
    if not given.hosts:
        return []
    moved = {move.uuid for move in given.moves}
    why: Mapping[str, Sequence[Obstacle]] = {stay.uuid: stay.why for stay in given.stays}
    return [
        Stay(name=one.name, uuid=one.uuid, host=one.host, why=why.get(one.uuid) or [_unplanned()])
        for one in found.leaving
        if one.uuid not in moved
    ]


def _unplanned() -> Obstacle:
    return Obstacle(
        constraint="plan",
        hosts=(),
        count=0,
        reason="the plan does not move it",
        remedy="make a new one: `entourage plan`",
    )
