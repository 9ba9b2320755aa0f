"""Everything that may happen next in a world."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from entourage.handover.rules import Source, Target
from entourage.handover.values import (
    TERMINAL,
    AnyInput,
    Connected,
    Guest,
    Heard,
    Input,
    Message,
    MessageKind,
    Record,
)
from tests.model.executor import (
    Move,
    Rules,
    Violation,
    begins,
    called,
    decided,
    end_process,
    execute,
    lock_is_free,
    may_start,
    newcomer,
    place_process,
    resume,
    settle,
    waits,
)
from tests.model.world import (
    ACTING,
    ANSWER,
    ARMED,
    BUILD,
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
    NOT_BUILT,
    PAUSED,
    POST,
    RUN,
    STOP,
    STOPPED,
    Host,
    Process,
    Said,
    World,
    name,
    process,
    replaced,
)

TO_SOURCE = (MessageKind.RAN, MessageKind.NEVER, MessageKind.GO_STANDS)
TO_TARGET = (MessageKind.GO, MessageKind.ASK, MessageKind.GONE, MessageKind.BACK)


def moves(world: World, rules: Rules, *, faulty: bool) -> Iterator[Move]:
    """Everything that may happen next, faults too if ``faulty``.

    What happens on a host depends on that host, on what was said to it, and on little of the other:
    there are few such views in very many worlds, and what follows from each is worked out once.
    """
    for place in (0, 1):
        here, other = world.hosts[place], world.hosts[1 - place]
        for change in _changes(_view(world, place, faulty=faulty), place, rules):
            if isinstance(change, Violation):
                raise change
            story, now, there, said, begun, helps, costs = change
            seen = other if there is None else other.but(guest=there[0], tpm=there[1])
            hosts = (now, seen) if place == 0 else (seen, now)
            heard = world.said if said is None else _union(world.said, said)
            after = World(hosts, heard, *begun, faulty=False)
            ended = (here.main and not now.main) or (here.answer and not now.answer)
            if ended or here.disk is not now.disk:
                after = settle(after)
            yield Move(story, after, helps, costs)


class _Change(NamedTuple):
    """A move, as far as it can be told from a view: what is None stays as it is."""

    story: str
    here: Host
    there: tuple[str, str] | None
    said: Said | None
    begun: tuple[tuple[int, ...], tuple[str, ...], tuple[int | None, ...]]
    helps: bool
    costs: bool


@functools.cache
def _changes(view: World, place: int, rules: Rules) -> tuple[_Change | Violation, ...]:
    changes: list[_Change | Violation] = []
    try:
        for move in _local(place, view, rules):
            after = move.world
            other = after.hosts[1 - place]
            there = None if other is view.hosts[1 - place] else (other.guest, other.tpm)
            said = None if after.said is view.said else after.said
            begun = (after.sources, after.copies, after.fenced)
            here = after.hosts[place]
            changes.append(_Change(move.story, here, there, said, begun, move.helps, move.costs))
    except Violation as violation:
        changes.append(violation)
    return tuple(changes)


def _view(world: World, place: int, *, faulty: bool) -> World:
    glimpsed = _glimpse(world.hosts[1 - place])
    hosts = (world.hosts[0], glimpsed) if place == 0 else (glimpsed, world.hosts[1])
    heard = _heard(world.said, world.sources, place)
    return World(hosts, heard, world.sources, world.copies, world.fenced, faulty)


@functools.cache
def _heard(said: Said, sources: tuple[int, ...], place: int) -> Said:
    """What of all that was said is said to this host."""
    return frozenset(
        (kind, migration)
        for kind, migration in said
        if (kind in TO_TARGET) == (sources[migration] != place)
    )


@functools.cache
def _union(said: Said, more: Said) -> Said:
    return said | more


@functools.cache
def _glimpse(host: Host) -> Host:
    drives = host.main is not None and _drives(host.main, host.main.migration)
    # Whether anything is alive there matters only to a user who would declare the host fenced.
    if host.guest != DEAD and not drives:
        return host.but(cache=host.disk, main=None, answer=None, hand=NO_HAND)
    busy = host.main or host.answer or (_BUSY if host.hand != NO_HAND else None)
    main = host.main if drives else busy and _BUSY
    return host.but(cache=host.disk, main=main, answer=None, hand=NO_HAND)


def _drives(one: Process | None, migration: int) -> bool:
    """Whether this process, ARMED, drives the pre-copy of the migration."""
    if one is None or one.migration != migration or one.effects:
        return False
    return isinstance(one.state, Source) and one.state.live


_BUSY = process(HOLDER, 0, Target(migration="whichever"))


def _local(place: int, world: World, rules: Rules) -> Iterator[Move]:
    host = world.hosts[place]
    for slot, one in (("main", host.main), ("answer", host.answer)):
        if one is None:
            continue
        if one.effects:
            yield from execute(world, place, slot, rules)
        elif slot == "main":
            yield from _idle(world, place, one, rules)
    if host.hand == ACTING:
        after = resume(world, place).host(place, hand=NO_HAND)
        yield Move(f"the deadman on {name(place)} resumes the guest", after)
    yield from _newcomers(world, place, rules)
    yield from _hypervisor(world, place)
    if world.faulty:
        for story, after in _faults(world, place, rules):
            yield Move(story, after, helps=False, costs=True)


def _idle(world: World, place: int, one: Process, rules: Rules) -> Iterator[Move]:
    """What a process may do that waits for something: hear, give up, go on."""
    who = called(one, place)
    for kind in TO_SOURCE if isinstance(one.state, Source) else TO_TARGET:
        if (kind, one.migration) in world.said:
            heard = decided(rules, one, Heard(Message(kind, one.state.migration)))
            yield Move(f"{who} hears {kind}", place_process(world, place, "main", heard))
    for given, story in _inputs(world, place, one, rules):
        after = place_process(world, place, "main", decided(rules, one, given))
        if given is Input.PEER_IS_FENCED:
            off = replaced(world.fenced, one.migration, 1 - place)
            yield Move(f"{who} {story}", after._replace(fenced=off), helps=False)
        else:
            yield Move(f"{who} {story}", after)
    host, there = world.hosts[place], world.hosts[1 - place]
    if may_give_up(one):
        yield Move(f"{who} gives up", end_process(world, place, "main"))
    match one.state:
        case Target(record=Record.OPEN) if world.copies[one.migration] == NOT_BUILT:
            # The ledger takes a row only while the journal says OPEN; see Journal.ledger_add.
            drives = _drives(there.main, one.migration)
            if host.cache[one.migration][0] is Record.OPEN and there.guest == RUN and drives:
                built = world._replace(copies=replaced(world.copies, one.migration, BUILT))
                copying = built.host(place, guest=BUILD).host(1 - place, guest=COPY)
                yield Move(f"{who} builds a copy, pre-copy begins", copying)
        case _:
            pass


def may_give_up(one: Process) -> bool:
    """Whether the process may end at any time, which is then no fault."""
    doubt = isinstance(one.state, Source) and not one.state.live
    return not one.effects and (doubt or one.state.record is Record.RAN)


def _inputs(
    world: World, place: int, one: Process, rules: Rules
) -> Iterator[tuple[Input | Connected, str]]:
    host = world.hosts[place]
    match one.state:
        case Source(live=True, guest=guest):
            yield Input.ABORT, "calls it off"
            done = host.guest in {POST, DEAD} or not rules.needs_completed
            if done and (MessageKind.LANDED, one.migration) in world.said:
                yield Input.READY, "has everything and hands over"
            if host.guest == DEAD and guest is not Guest.DEAD:
                yield Input.GUEST_DIED, "sees its guest dead"
        case Source(record=Record.ARMED, guest=guest):
            if (MessageKind.ASK, one.migration) not in world.said:
                yield Connected("T"), "reaches the target"
            yield Input.ABORT, "has waited long enough"
            yield Input.UNREACHABLE, "cannot reach the target"
            if host.guest == DEAD and guest is not Guest.DEAD:
                yield Input.GUEST_DIED, "sees its guest dead"
            if _fenceable(world, 1 - place, one.migration):
                yield Input.PEER_IS_FENCED, "is told that the target is fenced"
        case Target(record=Record.OPEN, landed=False) if host.guest == LAND:
            yield Input.MEMORY_LANDED, "sees memory landed"
            yield Input.ABORT, "calls it off"
        case Target(record=Record.OPEN):
            yield Input.ABORT, "calls it off"
        case Target(record=Record.RAN) if _fenceable(world, 1 - place, one.migration):
            yield Input.PEER_IS_FENCED, "is told that the source is fenced"
        case _:
            pass


def _fenceable(world: World, place: int, migration: int) -> bool:
    """Whether a user may honestly say that a host is off and its copy gone."""
    host = world.hosts[place]
    off = host.guest == DEAD and host.main is None and host.answer is None
    return off and host.hand == NO_HAND and world.fenced[migration] is None


def _newcomers(world: World, place: int, rules: Rules) -> Iterator[Move]:
    """Processes that may be started now."""
    host = world.hosts[place]
    if any(one is not None and one.unsynced for one in (host.main, host.answer)):
        return  # opening a journal commits, and waits for a commit that is under way
    begun = range(len(world.sources))
    if lock_is_free(host, rules):
        for migration in begun:
            record, clean = host.cache[migration]
            if record is not None and not (record in TERMINAL and clean):
                yield from _recover(world, place, migration, rules)
        yield from _begins(world, place, rules)
        if host.guest == DEAD and may_start(host, rules, home=place == 0):
            if host.tpm == NO_TPM:
                raise Violation("the domain is started where its TPM is not")
            yield Move(f"the user starts the domain on {name(place)}", world.host(place, guest=RUN))
    if host.answer is None:
        for migration in begun:
            record, clean = host.cache[migration]
            if (
                lock_is_free(host, rules)
                and record is not None
                and not (record in TERMINAL and clean)
            ):
                continue  # it takes the lock and recovers first
            yield from _answers(world, place, migration, rules)


def _recover(world: World, place: int, migration: int, rules: Rules) -> Iterator[Move]:
    world, one = newcomer(world, place, migration, HOLDER, synced=rules.synced_reads)
    found = one.state.record
    one = decided(rules, one, Input.RESTARTED)
    if one.effects or waits(one):
        yield Move(
            f"recover starts on {name(place)}, finds {found}",
            place_process(world, place, "main", one),
        )


def _answers(world: World, place: int, migration: int, rules: Rules) -> Iterator[Move]:
    """A process without the lock: a message brings it to life, or a user who calls it off.

    What may come between its look at the journal and its write is explored with one migration. The
    write compares before it sets, so with several they are one step, and the worlds half as many.
    """
    alone = len(world.copies) == 1
    wakes: list[tuple[AnyInput, str]] = [
        (Heard(Message(kind, f"m{migration + 1}")), f"hears {kind}")
        for kind in (TO_SOURCE if world.sources[migration] == place else TO_TARGET)
        if (kind, migration) in world.said
    ]
    record = world.hosts[place].cache[migration][0]
    if alone and record is Record.OPEN:
        wakes.append((Input.ABORT, "is told to call it off"))
    # Of several migrations only those that were fenced: else ASK can only lead to a late RAN.
    asks = record in {Record.BACK, Record.GONE} and (alone or world.fenced[migration] is not None)
    if asks and (MessageKind.ASK, migration) not in world.said:
        wakes.append((Connected("T"), "reaches the target, to tell it"))
    for given, story in wakes:
        after, one = newcomer(world, place, migration, ANSWER, synced=rules.synced_reads)
        one = decided(rules, one, given)
        woken = place_process(after, place, "answer", one)
        start = f"{called(one, place)} {story}"
        if alone or woken.hosts[place].answer is None:
            yield Move(start, woken)
            continue
        for move in execute(woken, place, "answer", rules):
            yield move._replace(story=f"{start}: {move.story}")


def _begins(world: World, place: int, rules: Rules) -> Iterator[Move]:
    host = world.hosts[place]
    new = len(world.sources)
    if new < len(world.copies) and host.guest == RUN and begins(host, new, rules):
        one = process(HOLDER, new, Source(migration=f"m{new + 1}", peer_journal="T"))
        hand = ACTING if host.hand == ACTING else ARMED
        begun = world._replace(sources=(*world.sources, place))
        after = begun.host(place, main=decided(rules, one, Input.BEGIN), hand=hand)
        yield Move(f"migration {new + 1} begins on {name(place)}", after, helps=False)
    for migration, source in enumerate(world.sources):
        known = world.hosts[source].cache[migration][0] is not None
        unheard = host.cache[migration][0] is None
        if source != place and known and unheard and begins(host, migration, rules):
            one = process(HOLDER, migration, Target(migration=f"m{migration + 1}"))
            after = world.host(place, main=decided(rules, one, Input.BEGIN))
            yield Move(f"agent of migration {migration + 1} begins on {name(place)}", after)


def _hypervisor(world: World, place: int) -> Iterator[Move]:
    """What the hypervisor of a source does by itself."""
    here, there = world.hosts[place], world.hosts[1 - place]
    source, target = name(place), name(1 - place)
    if here.guest == COPY:
        yield Move(f"QEMU on {source} fails to copy", world.host(place, guest=RUN))
        yield Move(f"QEMU on {source} stops the guest", world.host(place, guest=STOP))
    if here.guest == STOP:
        yield Move(f"QEMU on {source} resumes the guest", world.host(place, guest=RUN))
        if there.guest in INCOMING:
            yield Move(f"QEMU on {source} says completed", world.host(place, guest=POST))
    if here.guest in STOPPED and there.guest == BUILD:
        after = world.host(1 - place, guest=LAND, tpm=CACHED)
        yield Move(f"memory and TPM land on {target}", after)


def _faults(world: World, place: int, rules: Rules) -> Iterator[tuple[str, World]]:
    host = world.hosts[place]
    where = name(place)
    if host.main is not None and not may_give_up(host.main):
        acts = host.hand in {ARMED, HELD} and rules.hand(disarmed=host.hand == HELD)
        acts = acts or host.hand == ACTING
        after = world.host(place, main=None, hand=ACTING if acts else NO_HAND)
        yield f"{called(host.main, place)} is killed", after
    if host.answer is not None:
        after = world.host(place, answer=None)
        yield f"{called(host.answer, place)} is killed", after
    # Not the source's own deed: it is frozen, which for others is as if it were slow.
    held_too_long = host.hand == ARMED or (host.hand == HELD and not rules.hand_is_held)
    if host.guest in STOPPED and held_too_long:
        after = world.host(place, hand=ACTING)
        yield f"the deadman on {where} finds that the guest is held for too long", after
    if host.hand == ACTING:
        after = world.host(place, hand=NO_HAND)
        yield f"the deadman on {where} is killed", after
    if host.guest != DEAD:
        yield f"QEMU on {where} dies", world.host(place, guest=DEAD)
    if host.guest == RUN and not {Record.GO, Record.RAN}.isdisjoint(
        record for record, _ in host.cache
    ):
        yield f"the user pauses the guest on {where}", world.host(place, guest=PAUSED)
    tpm = NO_TPM if host.tpm == CACHED else host.tpm
    dark = host.but(guest=DEAD, tpm=tpm, cache=host.disk, main=None, answer=None, hand=NO_HAND)
    if dark is not host:
        yield f"{where} loses power", world.host_is(place, dark)
