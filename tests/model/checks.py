"""What must hold in every world, and what a recovered world looks like."""

from __future__ import annotations

import functools

from entourage.handover.rules import Source
from entourage.handover.values import TERMINAL, Do, MessageKind, Record
from tests.model.executor import Rules, Violation, may_start
from tests.model.world import (
    ACTING,
    ARMED,
    DEAD,
    LAND,
    NO_HAND,
    NO_TPM,
    PAUSED,
    RAN,
    RUN,
    RUNNING,
    STOPPED,
    Host,
    World,
    name,
)


def check(world: World, rules: Rules) -> None:
    """Raise `Violation` where something does not hold."""
    claims = [_claim(world.hosts[place], place, rules) for place in (0, 1)]
    if all(claims):
        raise Violation(f"two copies: {claims[0]} on A, {claims[1]} on B")
    for migration, source in enumerate(world.sources):
        record = world.hosts[1 - source].cache[migration][0]
        if record in _WANTED and (MessageKind.NEVER, migration) in world.said:
            raise Violation(f"the target said NEVER, and its journal says {record}")
    tpms = [host.tpm for host in world.hosts]
    if tpms == [NO_TPM, NO_TPM]:
        raise Violation("the TPM's state exists nowhere")
    for place in (0, 1):
        if not claims[place]:
            continue
        if tpms[place] == NO_TPM:
            raise Violation(f"{claims[place]} on {name(place)}, but its TPM is not there")
        holder = _holder(world)
        arriving = world.hosts[place].guest == LAND
        if place != holder and not arriving:
            raise Violation(
                f"{claims[place]} on {name(place)}, but its newest state is on {name(holder)}"
            )


_WANTED = frozenset({Record.OPEN, Record.GO, Record.RAN, Record.OWNS})


@functools.cache
def _claim(host: Host, place: int, rules: Rules) -> str:
    """Why a copy runs here, or may run without any further decision; empty where none may."""
    if host.guest in RUNNING:
        return "a copy runs"
    if host.guest in STOPPED:
        if host.hand in {ARMED, ACTING}:
            return "a deadman may resume the copy"
        if host.main is not None and isinstance(host.main.state, Source) and host.main.state.live:
            return "the source may resume its copy"
    for one in (host.main, host.answer):
        next_effect = one.effects[0] if one is not None and one.effects else None
        if next_effect in {Do.LET_RUN, Do.RESUME_SOURCE} and host.guest != DEAD:
            return "a process is about to run the copy"
    if host.guest == LAND and any(record is Record.GO for record, _ in host.cache):
        return "recover would run the copy"
    if may_start(host, rules, home=place == 0):
        return "the user may start a copy"
    return ""


def _holder(world: World) -> int:
    """The host on which the domain's newest state is."""
    holder = 0
    for migration, source in enumerate(world.sources):
        target = 1 - source
        record = world.hosts[target].cache[migration][0]
        if world.copies[migration] == RAN or record in {Record.RAN, Record.OWNS}:
            holder = target
        if (
            world.fenced[migration] == target
            and world.hosts[source].cache[migration][0] is Record.BACK
        ):
            holder = source
    return holder


RELEASED = frozenset({RUN, PAUSED})


def recovered(world: World) -> bool:
    """Exactly one copy runs, its TPM is there and only there, and nothing is left to be done."""
    one, other = sorted(world.hosts, key=lambda host: host.guest not in RELEASED)
    whole = one.guest in RELEASED and one.tpm != NO_TPM
    gone = other.guest == DEAD and other.tpm == NO_TPM
    return whole and gone and _quiet(one) and _quiet(other)


def _quiet(host: Host) -> bool:
    idle = host.main is None and host.answer is None and host.hand == NO_HAND
    return idle and all(
        record is None or (record in TERMINAL and clean) for record, clean in host.cache
    )
