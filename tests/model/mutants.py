"""Planted bugs: rules that look harmless to change, each of which the exploration must find.

A mutant changes one rule of the real code by wrapping its function, or one thing that the executor
owes it. ``migrations`` and ``faults`` are the smallest world in which it does harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, TypeVar

from entourage.handover.rules import Source, Target, decide_source, decide_target, refuses_start
from entourage.handover.values import (
    AnyInput,
    Do,
    Effect,
    Flush,
    Heard,
    Input,
    Message,
    MessageKind,
    Record,
    Transition,
)
from tests.model.executor import Rules


class Mutant(NamedTuple):
    """One planted bug."""

    name: str
    rules: Rules
    migrations: int = 1
    faults: int = 1


StateT = TypeVar("StateT", Source, Target)
SourceRule = Callable[[Source, AnyInput], Transition[Source]]
TargetRule = Callable[[Target, AnyInput], Transition[Target]]


def _without(
    rule: Callable[[StateT, AnyInput], Transition[StateT]],
    effect: Effect,
    given: AnyInput | None = None,
) -> Callable[[StateT, AnyInput], Transition[StateT]]:
    """A rule that forgets an effect, always or after one input."""

    def forgetful(state: StateT, happened: AnyInput) -> Transition[StateT]:
        after, effects = rule(state, happened)
        if given is None or happened is given:
            effects = tuple(one for one in effects if one != effect)
        return Transition(after, effects)

    return forgetful


def _takes_for_never(given: Input) -> SourceRule:
    """A source in doubt that takes an input for the target's NEVER."""

    def hopeful(state: Source, happened: AnyInput) -> Transition[Source]:
        if happened is given and state.in_doubt:
            happened = Heard(Message(MessageKind.NEVER, state.migration))
        return decide_source(state, happened)

    return hopeful


def _runs_after_never(state: Target, given: AnyInput) -> Transition[Target]:
    match given:
        case Heard(Message(MessageKind.GO, _)) if state.record is Record.NEVER:
            flush = Flush(Record.NEVER, Record.GO)
            return Transition(replace(state, record=Record.GO), (flush, Do.LET_RUN))
        case _:
            return decide_target(state, given)


def _runs_in_ran(state: Target, given: AnyInput) -> Transition[Target]:
    if given is Input.RESTARTED and state.record is Record.RAN:
        return Transition(replace(state, record=Record.GO), (Do.LET_RUN,))
    return decide_target(state, given)


def _lands_unsynced(dropped: Effect | None) -> TargetRule:
    """A target that would obey GO before its devices' state is on the disk."""

    def hasty(state: Target, given: AnyInput) -> Transition[Target]:
        after, effects = decide_target(state, given)
        if given is Input.MEMORY_LANDED and effects:
            kept = tuple(effect for effect in effects if effect is not dropped)
            return Transition(replace(after, landed=True), kept)
        return Transition(after, effects)

    return hasty


def _takes_a_word_for_a_record(state: Target, given: AnyInput) -> Transition[Target]:
    """Answers NEVER to an ASK before the journal says so."""
    after, effects = decide_target(state, given)
    match given, effects:
        case Heard(Message(MessageKind.ASK, _)), (Flush() as flush, said, *rest):
            return Transition(after, (said, flush, *rest))
        case _:
            return Transition(after, effects)


def _forgets_the_unknown(state: Target, given: AnyInput) -> Transition[Target]:
    """Answers NEVER for an id that it never heard of, and writes nothing down."""
    after, effects = decide_target(state, given)
    if state.record is None and after.record is Record.NEVER:
        return Transition(state, tuple(one for one in effects if not isinstance(one, Flush)))
    return Transition(after, effects)


def _destroys_before_gone(state: Source, given: AnyInput) -> Transition[Source]:
    after, effects = decide_source(state, given)
    if Do.DESTROY_SOURCE in effects and isinstance(effects[0], Flush):
        others = tuple(effect for effect in effects if effect is not Do.DESTROY_SOURCE)
        return Transition(after, (Do.DESTROY_SOURCE, *others))
    return Transition(after, effects)


def _resumes_before_back(state: Source, given: AnyInput) -> Transition[Source]:
    after, effects = decide_source(state, given)
    if given is Input.PEER_IS_FENCED and Do.RESUME_SOURCE in effects:
        others = tuple(effect for effect in effects if effect is not Do.RESUME_SOURCE)
        return Transition(after, (Do.RESUME_SOURCE, *others))
    return Transition(after, effects)


def _ran_is_enough(records: Iterable[Record]) -> Record | None:
    known = list(records)
    return None if known and known[0] is Record.RAN else refuses_start(known)


def _always(_record: Record | None, *, clean: bool) -> bool:
    return True


MUTANTS = (
    Mutant(
        "the target runs the guest before GO is on its disk", Rules(unsynced=frozenset({Record.GO}))
    ),
    Mutant("NEVER is said, and not synced", Rules(unsynced=frozenset({Record.NEVER})), faults=2),
    Mutant("NEVER is said before it is written", Rules(target=_takes_a_word_for_a_record)),
    Mutant(
        "an unknown id is answered and not written", Rules(target=_forgets_the_unknown), faults=2
    ),
    Mutant("RAN is said, and not synced", Rules(unsynced=frozenset({Record.RAN}))),
    Mutant(
        "the source resumes when RAN takes too long", Rules(source=_takes_for_never(Input.ABORT))
    ),
    Mutant("a lost link is taken for NEVER", Rules(source=_takes_for_never(Input.UNREACHABLE))),
    Mutant("a record is set without comparing", Rules(compares=False)),
    Mutant("a late GO is accepted after NEVER", Rules(target=_runs_after_never)),
    Mutant("a target that restarts in RAN runs the guest", Rules(target=_runs_in_ran), faults=2),
    Mutant("READY does not wait for the source's own word", Rules(needs_completed=False)),
    Mutant(
        "the deadman is not told of GO", Rules(source=_without(decide_source, Do.DISARM_DEADMAN))
    ),
    Mutant("the deadman does not hold the lock", Rules(hand_holds_lock=False), 2, 1),
    Mutant("the deadman ends a blackout that is too long after GO", Rules(hand_is_held=False)),
    Mutant("GO is said although the deadman has acted", Rules(hand_is_missed=False)),
    Mutant("a killed process's unsynced record is believed", Rules(synced_reads=False), faults=2),
    Mutant(
        "the TPM is not synced before GO",
        Rules(target=_lands_unsynced(Do.SYNC_DEVICES)),
        faults=2,
    ),
    Mutant(
        "GO is obeyed where the sync failed, and NEVER could not be written",
        Rules(target=_lands_unsynced(None)),
        faults=2,
    ),
    Mutant(
        "the source is destroyed before GONE is written",
        Rules(source=_destroys_before_gone),
        faults=3,
    ),
    Mutant(
        "a fenced target's guest is resumed before BACK",
        Rules(source=_resumes_before_back),
        faults=3,
    ),
    Mutant("RAN alone lets the user start the domain", Rules(start=_ran_is_enough), faults=2),
    Mutant("a new migration does not wait for the last one", Rules(begin=_always), 2, 1),
)
