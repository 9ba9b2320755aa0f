"""The executor as the rules demand it: one effect at a time, and killed after any of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from entourage.handover.rules import (
    Source,
    Target,
    deadman,
    decide_source,
    decide_target,
    may_begin,
    refuses_start,
)
from entourage.handover.values import (
    TERMINAL,
    AnyInput,
    Do,
    Effect,
    Flush,
    Input,
    MessageKind,
    Overtaken,
    Record,
    Report,
    Send,
    Transition,
)
from tests.model.world import (
    ACTING,
    ANSWER,
    ARMED,
    BUILT,
    CACHED,
    COPY,
    DEAD,
    HELD,
    HOLDER,
    INCOMING,
    LAND,
    NO_HAND,
    NO_TPM,
    PAUSED,
    POST,
    RAN,
    RUN,
    RUNNING,
    SAFE,
    SEEN,
    STOP,
    Host,
    Process,
    Rows,
    World,
    also,
    name,
    process,
    replaced,
    with_row,
)


class Rules(NamedTuple):
    """The code under exploration, and what an executor owes it. Mutants change one of these."""

    source: Callable[[Source, AnyInput], Transition[Source]] = decide_source
    target: Callable[[Target, AnyInput], Transition[Target]] = decide_target
    hand: Callable[..., tuple[Effect, ...]] = deadman
    begin: Callable[..., bool] = may_begin
    start: Callable[[Iterable[Record]], Record | None] = refuses_start
    unsynced: frozenset[Record] = frozenset()
    """Records whose flush is written and never synced."""
    synced_reads: bool = True
    """A journal is synced when it is opened."""
    compares: bool = True
    """A flush compares before it sets."""
    hand_holds_lock: bool = True
    hand_is_held: bool = True
    """A deadman that was disarmed does nothing when the guest stands still for too long."""
    hand_is_missed: bool = True
    """Disarming a deadman that has acted is an error, and GO is not said."""
    needs_completed: bool = True
    """READY needs the source's own word too, not only the target's."""


class Violation(Exception):  # noqa: N818 - what it is called in the trade
    """Something happened that must never happen."""


class Move(NamedTuple):
    """One thing that may happen next.

    Attributes:
        story: What happens, for people.
        world: What comes of it.
        helps: Recovery may count on it.
        costs: It is a fault, of which there are only so many.
    """

    story: str
    world: World
    helps: bool = True
    costs: bool = False


@functools.cache
def decided(rules: Rules, before: Process, given: AnyInput) -> Process:
    """The process after an input, with the effects that it now has to execute."""
    if isinstance(before.state, Source):
        step = rules.source(before.state, given)
    else:
        step = rules.target(before.state, given)
    return _trimmed(process(before.kind, before.migration, step.state, step.effects))


def _trimmed(one: Process) -> Process:
    """Without the next effects that change nothing in this world: so there are fewer worlds."""
    effects = one.effects
    while effects and (
        isinstance(effects[0], Report)
        or (effects[0] is Do.UNDO_RESOURCES and isinstance(one.state, Source))
    ):
        effects = effects[1:]
    return process(one.kind, one.migration, one.state, effects)


@functools.cache
def popped(before: Process) -> Process:
    """The process with its first effect executed."""
    after = process(before.kind, before.migration, before.state, before.effects[1:])
    return _trimmed(after)


@functools.cache
def written(before: Process) -> Process:
    """The process between the write and the sync of a flush."""
    return process(before.kind, before.migration, before.state, before.effects, unsynced=True)


@functools.cache
def waits(one: Process) -> bool:
    """Whether an idle process has something to wait for; else it ends."""
    return one.kind == HOLDER and one.state.record in {Record.ARMED, Record.OPEN, Record.RAN}


def called(one: Process, place: int) -> str:
    """What stories call a process."""
    role = "source" if isinstance(one.state, Source) else "target"
    return f"{role} {name(place)}{' (no lock)' if one.kind == ANSWER else ''}"


def place_process(world: World, place: int, slot: str, one: Process) -> World:
    """Put a process where it belongs, or let it end if it has nothing to do any more."""
    while one.effects and isinstance(effect := one.effects[0], Send | Do):
        if isinstance(effect, Send):
            # Sent at once: a message that was never sent is one that never arrives, and one that is
            # sent later is one that arrives later.
            said = also(world.said, frozenset({effect.message.kind}), one.migration)
            world = world._replace(said=said)
        elif (
            effect is not Do.SYNC_DEVICES
            or one.state.record is Record.OPEN  # more follows from it: see `execute`
            or world.hosts[place].tpm != SAFE
        ):
            break
        one = popped(one)
    if one.effects or waits(one):
        return world.host(place, **{slot: one})
    return end_process(world, place, slot)


def end_process(world: World, place: int, slot: str) -> World:
    """A process ends by itself; an engine takes its deadman with it."""
    if slot == "main":
        hand = ACTING if world.hosts[place].hand == ACTING else NO_HAND
        return world.host(place, main=None, hand=hand)
    return world.host(place, answer=None)


def settle(world: World) -> World:
    """Forget how a migration ended that is settled on both sides, and take its messages as said.

    This makes fewer worlds, and each of them worse: no process can tell the difference but by a
    late message, and of those it now meets every one that such an end can have left behind.
    """
    a, b = world.hosts
    ends = _ends(a.disk, a.cache, b.disk, b.cache)
    if not any(ends):
        return world
    busy = {one.migration for one in (a.main, a.answer, b.main, b.answer) if one is not None}
    for migration, source in enumerate(world.sources):
        if ends[migration] and migration not in busy:
            gone = world.hosts[source].disk[migration][0] is Record.GONE
            late = _LATE_GONE if gone else _LATE_BACK
            world = world._replace(
                said=also(world.said, late, migration),
                copies=replaced(world.copies, migration, RAN if gone else BUILT),
                fenced=replaced(world.fenced, migration, None),
            )
    return world


@functools.cache
def _ends(*journals: Rows) -> tuple[bool, ...]:
    """For each migration, whether all of the journals, disk and cache, call it settled."""
    return tuple(
        all(record in TERMINAL and clean for record, clean in rows)
        for rows in zip(*journals, strict=True)
    )


_LATE_GONE = frozenset(
    {
        MessageKind.LANDED,
        MessageKind.GO,
        MessageKind.ASK,
        MessageKind.GO_STANDS,
        MessageKind.RAN,
        MessageKind.GONE,
    }
)
_LATE_BACK = frozenset(
    {MessageKind.LANDED, MessageKind.GO, MessageKind.ASK, MessageKind.NEVER, MessageKind.BACK}
)


def execute(world: World, place: int, slot: str, rules: Rules) -> Iterator[Move]:
    """Execute the next effect of a process."""
    host = world.hosts[place]
    one = host.main if slot == "main" else host.answer
    assert one is not None
    effect = one.effects[0]
    who = called(one, place)
    match effect:
        case Flush():
            yield from _flush(world, place, slot, effect, rules)
        case Do.LET_RUN:
            yield from _let_run(world, place, slot, rules)
        case Do.SYNC_DEVICES if one.state.record is Record.OPEN:
            assert len(one.effects) == 1, "what SYNC_DEVICES leads to decides what follows"
            changed = _change(world, place, one, effect)
            synced = decided(rules, popped(one), Input.DEVICES_SYNCED)
            done = place_process(changed, place, slot, synced)
            yield Move(f"{who} does {effect.value}", done)
            if world.faulty:
                failed = decided(rules, popped(one), Input.ABORT)
                undone = place_process(world, place, slot, failed)
                yield Move(f"{who}: a device cannot be synced", undone, helps=False, costs=True)
        case Do.DISARM_DEADMAN if _has_acted(host, rules) and rules.hand_is_missed:
            # The executor is where it was before READY, and its caller goes back.
            assert isinstance(one.state, Source)
            before = process(one.kind, one.migration, replace(one.state, live=True))
            after = place_process(world, place, slot, decided(rules, before, Input.ABORT))
            yield Move(f"{who} finds that its deadman has acted, and calls it off", after)
        case _:
            changed = _change(world, place, one, effect)
            done = place_process(changed, place, slot, popped(one))
            yield Move(f"{who} does {getattr(effect, 'value', effect)}", done)


def _has_acted(host: Host, rules: Rules) -> bool:
    """Whether a process finds its deadman gone, or about to resume the guest."""
    # One that does not hold the lock may be that of a process before this one.
    return host.hand == NO_HAND or (host.hand == ACTING and rules.hand_holds_lock)


def _flush(world: World, place: int, slot: str, flush: Flush, rules: Rules) -> Iterator[Move]:
    host = world.hosts[place]
    one = host.main if slot == "main" else host.answer
    assert one is not None
    who = called(one, place)
    if one.unsynced:
        after = world.host(place, disk=host.cache)
        yield Move(
            f"{who}: {flush.new} is on the disk", place_process(after, place, slot, popped(one))
        )
        return
    other = host.answer if slot == "main" else host.main
    if other is not None and other.unsynced:
        return  # SQLite lets one write at a time
    found = host.cache[one.migration][0]
    if found is not flush.expected and (rules.compares or found is None):
        assert found is not None
        # Whoever wrote that may have been killed before it was synced: see Journal.flush.
        after = world.host(place, disk=host.cache) if rules.synced_reads else world
        after = place_process(after, place, slot, decided(rules, one, Overtaken(found)))
        yield Move(f"{who} wants {flush.new}, finds {found}", after)
        return
    if flush.new in {Record.ARMED, Record.OPEN} and not begins(host, one.migration, rules):
        yield Move(f"{who} may not begin", end_process(world, place, slot))
        return
    if flush.new is Record.GO and host.tpm == CACHED:
        raise Violation("GO is written, and the TPM is not on the disk")
    if world.faulty and (flush.expected, flush.new) == (Record.OPEN, Record.NEVER):
        # The executor is where it was before: nothing of that has happened.
        before = process(
            one.kind, one.migration, replace(one.state, record=Record.OPEN, clean=False)
        )
        failed = place_process(world, place, slot, before)
        yield Move(f"{who} cannot write {flush.new}", failed, helps=False, costs=True)
    born_clean = flush.expected is None and flush.new is Record.NEVER
    cache = with_row(host.cache, one.migration, (flush.new, born_clean))
    after = world.host(place, cache=cache)
    if flush.new in rules.unsynced:
        after = place_process(after, place, slot, popped(one))
    elif not world.faulty:  # nothing can come between the write and the sync
        after = place_process(after.host(place, disk=cache), place, slot, popped(one))
    else:
        after = after.host(place, **{slot: written(one)})
    yield Move(f"{who} writes {flush.new}", after)


def begins(host: Host, migration: int, rules: Rules) -> bool:
    """R10, as the journal checks it: the id is new, nothing newer is known, all else is settled."""
    rows = host.cache
    newer = any(record is not None for record, _ in rows[migration + 1 :])
    settled = all(rules.begin(record, clean=clean) for record, clean in rows[:migration])
    return settled and not newer


def _let_run(world: World, place: int, slot: str, rules: Rules) -> Iterator[Move]:
    host = world.hosts[place]
    one = host.main if slot == "main" else host.answer
    assert one is not None
    assert len(one.effects) == 1, "what LET_RUN leads to decides what follows"
    who = called(one, place)
    if host.guest == DEAD:
        after = decided(rules, popped(one), Input.RELEASE_REFUSED)
        yield Move(f"{who} finds the copy dead", place_process(world, place, slot, after))
        return
    if host.guest == PAUSED:
        raise Violation("a guest that its user had paused was let run")
    if world.faulty and host.guest == LAND:
        after = decided(rules, popped(one), Input.RELEASE_REFUSED)
        refused = place_process(world, place, slot, after)
        yield Move(f"{who}: the release is refused", refused, helps=False, costs=True)
    after = world._replace(copies=replaced(world.copies, one.migration, RAN))
    after = after.host(place, guest=RUN)
    after = place_process(after, place, slot, decided(rules, popped(one), Input.RELEASED))
    yield Move(f"{who} lets the guest run", after)


def _change(world: World, place: int, one: Process, effect: Effect) -> World:
    host = world.hosts[place]
    row = host.cache[one.migration]
    match effect:
        case Do.DISARM_DEADMAN:
            return world.host(place, hand=HELD if host.hand == ARMED else host.hand)
        case Do.RESUME_SOURCE:
            return resume(world, place)
        case Do.DESTROY_SOURCE:
            _may_destroy(world, place, one.migration)
            return world.host(place, guest=DEAD, tpm=NO_TPM)
        case Do.SYNC_DEVICES:
            return world.host(place, tpm=SAFE) if host.tpm == CACHED else world
        case Do.KILL_TARGET:
            if host.guest != DEAD and host.guest not in INCOMING:
                raise Violation("a copy was killed that had run")
            return world.host(place, guest=DEAD)
        case Do.UNDO_RESOURCES if row[0] in {Record.NEVER, Record.FENCED}:
            if host.guest != DEAD:
                raise Violation("resources of a living copy were undone")
            return world.host(place, tpm=NO_TPM)
        case Do.CLEAN:
            cache = with_row(host.cache, one.migration, (row[0], True))
            return world.host(place, cache=cache, disk=cache)
        case Do.STOP_AND_ALARM:
            raise Violation("the alarm rang: a copy without a right to run was running")
        case _:
            return world


def resume(world: World, place: int) -> World:
    """RESUME_SOURCE, by a process or by the deadman."""
    guest = world.hosts[place].guest
    if guest in INCOMING:
        raise Violation("a copy that is still arriving was resumed as if it were a source's")
    return world.host(place, guest=RUN) if guest in {RUN, COPY, STOP, POST} else world


def _may_destroy(world: World, place: int, migration: int) -> None:
    there = world.hosts[1 - place]
    if there.disk[migration][0] not in {Record.RAN, Record.OWNS}:
        raise Violation("the source was destroyed before RAN was on the target's disk")
    if there.tpm != SAFE:
        raise Violation("the source's TPM was erased before the target's was on its disk")
    if world.hosts[place].guest in RUNNING | INCOMING:
        raise Violation("a newer copy was destroyed in the place of the one that left")


def lock_is_free(host: Host, rules: Rules) -> bool:
    """Whether a new process gets the host's lock of the domain."""
    return host.main is None and (host.hand != ACTING or not rules.hand_holds_lock)


def may_start(host: Host, rules: Rules, *, home: bool) -> bool:
    """Whether the user may start the domain by hand: the guard lets him, and he has a reason to."""
    records = [record for record, _ in reversed(host.cache) if record is not None]
    known = any(record is not Record.NEVER for record in records)
    return rules.start(records) is None and (known or home)


def newcomer(
    world: World, place: int, migration: int, kind: str, *, synced: bool
) -> tuple[World, Process]:
    """A fresh process that has read the journal and the hypervisor."""
    host = world.hosts[place]
    record, clean = host.cache[migration]
    lock = kind != ANSWER
    seen = SEEN[host.guest]
    state: Source | Target
    text = f"m{migration + 1}"
    if world.sources[migration] == place:
        state = Source(
            migration=text,
            peer_journal="T",
            record=record,
            guest=seen,
            clean=clean,
            holds_lock=lock,
        )
    else:
        state = Target(migration=text, record=record, guest=seen, clean=clean, holds_lock=lock)
    if synced:
        world = world.host(place, disk=host.cache)
    return world, process(kind, migration, state)
