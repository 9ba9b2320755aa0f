"""The rules one by one; tests/model explores what they do together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from entourage.handover.rules import (
    Source,
    Target,
    dead_hand,
    decide_source,
    decide_target,
    may_begin,
    refuses_start,
)
from entourage.handover.values import (
    MAY_FOLLOW,
    TERMINAL,
    AnyEvent,
    Connected,
    Do,
    Effect,
    Event,
    Finding,
    Flush,
    Guest,
    Heard,
    Message,
    Overtaken,
    Record,
    Report,
    Send,
    Verb,
)

M = "m-1"
SOURCE_RECORDS = (None, Record.ARMED, Record.BACK, Record.GONE)
TARGET_RECORDS = (
    None,
    Record.OPEN,
    Record.NEVER,
    Record.GO,
    Record.RAN,
    Record.OWNS,
    Record.FENCED,
)
EVENTS: tuple[AnyEvent, ...] = (
    *Event,
    *(Heard(Message(verb, M)) for verb in Verb),
    Connected("T"),
    Connected("another"),
)


def said(verb: Verb) -> Send:
    return Send(Message(verb, M))


def heard(verb: Verb, migration: str = M) -> Heard:
    return Heard(Message(verb, migration))


def source(
    record: Record | None = None,
    guest: Guest = Guest.STOPPED,
    *,
    live: bool = False,
    clean: bool = False,
    lock: bool = True,
) -> Source:
    return Source(
        migration=M,
        peer_journal="T",
        record=record,
        guest=guest,
        live=live,
        clean=clean,
        holds_lock=lock,
    )


def target(
    record: Record | None = None,
    guest: Guest = Guest.STOPPED,
    *,
    landed: bool = False,
    clean: bool = False,
    lock: bool = True,
) -> Target:
    return Target(
        migration=M, record=record, guest=guest, landed=landed, clean=clean, holds_lock=lock
    )


LIVE = source(Record.ARMED, live=True)
DOUBT = source(Record.ARMED)
TIDY = (Do.UNDO_RESOURCES, Do.CLEAN)
BACK = (Do.RESUME_SOURCE, Flush(Record.ARMED, Record.BACK), *TIDY, Report(Finding.CAME_BACK))
BACK_FROM_DOUBT = (
    Flush(Record.ARMED, Record.BACK),
    Do.RESUME_SOURCE,
    *TIDY,
    Report(Finding.CAME_BACK),
)
BACK_DEAD = (Flush(Record.ARMED, Record.BACK), *TIDY, Report(Finding.CAME_BACK_DEAD))
GONE = (
    Flush(Record.ARMED, Record.GONE),
    said(Verb.GONE),
    Do.DESTROY_SOURCE,
    *TIDY,
    Report(Finding.HANDED_OVER),
)
ALARM = (Do.STOP_AND_ALARM, Report(Finding.TWO_COPIES))


@pytest.mark.parametrize(
    ("state", "event", "effects"),
    [
        (source(), Event.BEGIN, (Flush(None, Record.ARMED),)),
        (source(lock=False), Event.BEGIN, ()),
        (LIVE, Event.BEGIN, ()),
        (LIVE, Event.READY, (Do.HOLD_DEAD_HAND, said(Verb.GO))),
        (LIVE, Event.ABORT, BACK),
        (LIVE, heard(Verb.NEVER), BACK),
        (LIVE, heard(Verb.LANDED), ()),
        (LIVE, Event.UNREACHABLE, ()),
        (LIVE, Event.PEER_IS_FENCED, ()),
        (source(Record.ARMED, Guest.DEAD, live=True), Event.ABORT, BACK_DEAD),
        (
            source(Record.ARMED, Guest.DEAD, live=True),
            Event.READY,
            (Do.HOLD_DEAD_HAND, said(Verb.GO)),
        ),
        (DOUBT, Event.READY, ()),
        (DOUBT, Event.ABORT, (said(Verb.ASK),)),
        (DOUBT, Event.RESTARTED, ()),
        (DOUBT, Connected("T"), (said(Verb.ASK),)),
        (DOUBT, Connected("another"), (Report(Finding.WRONG_JOURNAL),)),
        (DOUBT, Event.UNREACHABLE, (Report(Finding.ASK_FAILED),)),
        (DOUBT, heard(Verb.GO_STANDS), (Report(Finding.GO_STANDS),)),
        (DOUBT, heard(Verb.NEVER), BACK_FROM_DOUBT),
        (source(Record.ARMED, Guest.RUNNING), heard(Verb.NEVER), BACK_FROM_DOUBT),
        (DOUBT, heard(Verb.NEVER, "another"), ()),
        (source(Record.ARMED, lock=False), heard(Verb.NEVER), ()),
        (source(Record.ARMED, Guest.DEAD), heard(Verb.NEVER), BACK_DEAD),
        (DOUBT, heard(Verb.RAN), GONE),
        (source(Record.ARMED, Guest.DEAD), heard(Verb.RAN), GONE),
        (source(Record.ARMED, lock=False), heard(Verb.RAN), GONE[:2]),
        (source(Record.ARMED, Guest.RUNNING), heard(Verb.RAN), ALARM),
        (source(Record.ARMED, Guest.RUNNING, lock=False), heard(Verb.RAN), ALARM[1:]),
        (DOUBT, Event.PEER_IS_FENCED, BACK_FROM_DOUBT),
        (source(Record.ARMED, lock=False), Event.PEER_IS_FENCED, ()),
        (source(Record.GONE), Event.PEER_IS_FENCED, ()),
        (DOUBT, Overtaken(Record.GONE), GONE[2:]),
        (source(Record.GONE), Event.RESTARTED, GONE[2:]),
        (source(Record.GONE, clean=True), Event.RESTARTED, ()),
        (source(Record.GONE, Guest.RUNNING), Event.RESTARTED, ALARM),
        (source(Record.GONE), heard(Verb.RAN), (said(Verb.GONE),)),
        (source(Record.GONE), heard(Verb.NEVER), ()),
        (source(Record.BACK), heard(Verb.RAN), (said(Verb.BACK),)),
        (source(Record.BACK), Connected("T"), (said(Verb.ASK),)),
        (source(Record.GONE, clean=True), Connected("T"), (said(Verb.ASK),)),
        (
            source(Record.BACK),
            Event.RESTARTED,
            (Do.RESUME_SOURCE, *TIDY, Report(Finding.CAME_BACK)),
        ),
        (
            source(Record.BACK, Guest.DEAD),
            Event.RESTARTED,
            (*TIDY, Report(Finding.CAME_BACK_DEAD)),
        ),
    ],
)
def test_source(state: Source, event: AnyEvent, effects: tuple[Effect, ...]) -> None:
    assert decide_source(state, event).effects == effects


UNDONE = (Do.KILL_TARGET, *TIDY, Report(Finding.NEVER_HERE))
NEVER = (Flush(Record.OPEN, Record.NEVER), said(Verb.NEVER), *UNDONE)
RAN = (
    Do.SYNC_DEVICES,
    Flush(Record.GO, Record.RAN),
    said(Verb.RAN),
    Do.UNDO_RESOURCES,
    Report(Finding.RUNS_HERE),
)
CRASHED = (
    Flush(Record.GO, Record.RAN),
    said(Verb.RAN),
    Do.UNDO_RESOURCES,
    Report(Finding.CRASHED_HERE),
)
FENCED = (Do.KILL_TARGET, *TIDY, Report(Finding.FENCED_AWAY))
LANDED = target(Record.OPEN, landed=True)


@pytest.mark.parametrize(
    ("state", "event", "effects"),
    [
        (target(), Event.BEGIN, (Flush(None, Record.OPEN),)),
        (target(lock=False), Event.BEGIN, ()),
        (target(Record.NEVER), Event.BEGIN, ()),
        (target(Record.OPEN), Event.MEMORY_LANDED, (said(Verb.LANDED), Do.SYNC_DEVICES)),
        (LANDED, heard(Verb.GO), (Flush(Record.OPEN, Record.GO), Do.LET_RUN)),
        (LANDED, heard(Verb.GO, "another"), ()),
        (LANDED, heard(Verb.ASK), NEVER),
        (LANDED, Event.ABORT, NEVER),
        (LANDED, Event.GUEST_DIED, NEVER),
        (target(Record.OPEN), heard(Verb.GO), NEVER),
        (target(Record.OPEN), Event.RESTARTED, NEVER),
        (target(Record.OPEN, lock=False), heard(Verb.ASK), NEVER[:2]),
        (target(Record.OPEN, lock=False), Event.ABORT, NEVER[:2]),
        (target(Record.OPEN, lock=False, landed=True), heard(Verb.GO), NEVER[:2]),
        (target(), heard(Verb.ASK), (Flush(None, Record.NEVER), said(Verb.NEVER))),
        (target(), heard(Verb.GO), (Flush(None, Record.NEVER), said(Verb.NEVER))),
        (target(lock=False), Overtaken(Record.OPEN), NEVER[:2]),
        (target(Record.OPEN), Overtaken(Record.NEVER), (said(Verb.NEVER), *UNDONE)),
        (target(Record.OPEN, lock=False), Overtaken(Record.GO), (said(Verb.GO_STANDS),)),
        (target(Record.OPEN, lock=False), Overtaken(Record.RAN), (said(Verb.RAN),)),
        (target(Record.GO), Event.RELEASED, RAN),
        (target(Record.GO), Event.GUEST_DIED, CRASHED),
        (
            target(Record.GO),
            Event.RELEASE_REFUSED,
            (
                Flush(Record.GO, Record.NEVER),
                Do.KILL_TARGET,
                said(Verb.NEVER),
                *TIDY,
                Report(Finding.NEVER_HERE),
            ),
        ),
        (target(Record.GO), Event.ABORT, ()),
        (target(Record.GO), heard(Verb.GO), (said(Verb.GO_STANDS),)),
        (target(Record.GO), heard(Verb.ASK), (said(Verb.GO_STANDS),)),
        (target(Record.GO), Event.RESTARTED, (Do.LET_RUN,)),
        (target(Record.GO, Guest.RUNNING), Event.RESTARTED, RAN),
        (target(Record.GO, Guest.DEAD), Event.RESTARTED, CRASHED),
        (target(Record.GO, lock=False), Event.RESTARTED, ()),
        (target(Record.GO, lock=False), Event.RELEASED, ()),
        (
            target(Record.GO, Guest.DEAD),
            heard(Verb.BACK),
            (Flush(Record.GO, Record.FENCED), *FENCED),
        ),
        (target(Record.RAN, Guest.RUNNING), Event.RESTARTED, (said(Verb.RAN), Do.UNDO_RESOURCES)),
        (target(Record.RAN), heard(Verb.ASK), (said(Verb.RAN),)),
        (target(Record.RAN), heard(Verb.GONE), (Flush(Record.RAN, Record.OWNS), *TIDY)),
        (target(Record.RAN, lock=False), heard(Verb.GONE), ()),
        (target(Record.RAN), Event.PEER_IS_FENCED, (Flush(Record.RAN, Record.OWNS), *TIDY)),
        (target(Record.RAN), Event.UNREACHABLE, (Report(Finding.SOURCE_SILENT),)),
        (target(Record.RAN), Event.ABORT, ()),
        (
            target(Record.RAN, Guest.DEAD),
            heard(Verb.BACK),
            (Flush(Record.RAN, Record.FENCED), *FENCED),
        ),
        (
            target(Record.RAN, Guest.RUNNING),
            heard(Verb.BACK),
            (Do.STOP_AND_ALARM, Flush(Record.RAN, Record.FENCED), Report(Finding.TWO_COPIES)),
        ),
        (target(Record.OWNS), heard(Verb.ASK), (said(Verb.RAN),)),
        (target(Record.OWNS), heard(Verb.BACK), ()),
        (target(Record.OWNS), Event.RESTARTED, TIDY),
        (target(Record.OWNS, clean=True), Event.RESTARTED, ()),
        (target(Record.NEVER), heard(Verb.GO), (said(Verb.NEVER),)),
        (target(Record.NEVER), Event.RESTARTED, UNDONE),
        (target(Record.NEVER, clean=True), Event.RESTARTED, ()),
        (target(Record.FENCED), heard(Verb.ASK), (said(Verb.NEVER),)),
        (target(Record.FENCED), Event.RESTARTED, FENCED),
    ],
)
def test_target(state: Target, event: AnyEvent, effects: tuple[Effect, ...]) -> None:
    assert decide_target(state, event).effects == effects


def steps() -> Iterator[tuple[Source | Target, AnyEvent, Source | Target, tuple[Effect, ...]]]:
    """Every step there is."""
    yes_no = (False, True)
    for record, guest, one, clean, lock in itertools.product(
        SOURCE_RECORDS, Guest, yes_no, yes_no, yes_no
    ):
        here = source(
            record, guest, live=one and lock and record is Record.ARMED, clean=clean, lock=lock
        )
        for event in (*EVENTS, *(Overtaken(found) for found in SOURCE_RECORDS if found)):
            step = decide_source(here, event)
            yield here, event, step.state, step.effects
    for record, guest, one, clean, lock in itertools.product(
        TARGET_RECORDS, Guest, yes_no, yes_no, yes_no
    ):
        there = target(record, guest, landed=one, clean=clean, lock=lock)
        for event in (*EVENTS, *(Overtaken(found) for found in TARGET_RECORDS if found)):
            step = decide_target(there, event)
            yield there, event, step.state, step.effects


def test_every_step_keeps_to_the_drawing() -> None:
    for state, event, after, effects in steps():
        record = event.record if isinstance(event, Overtaken) else state.record
        for effect in effects:
            if isinstance(effect, Flush):
                assert effect.expected == record, (state, event)
                assert effect.new in MAY_FOLLOW[record], (state, event)
                record = effect.new
        assert after.record == record, (state, event)


def test_nothing_is_run_or_ended_without_the_lock() -> None:
    for state, event, _, effects in steps():
        if not state.holds_lock:
            assert not any(isinstance(effect, Do) for effect in effects), (state, event)


def test_nothing_is_said_before_it_is_written() -> None:
    words = {
        Record.GO: {Verb.GO_STANDS},
        Record.RAN: {Verb.RAN},
        Record.OWNS: {Verb.RAN},
        Record.NEVER: {Verb.NEVER},
        Record.FENCED: {Verb.NEVER},
        Record.OPEN: {Verb.LANDED},
        Record.GONE: {Verb.GONE, Verb.ASK},
        Record.BACK: {Verb.BACK, Verb.ASK},
        Record.ARMED: {Verb.GO, Verb.ASK},
        None: set[Verb](),
    }
    for state, event, _, effects in steps():
        record = event.record if isinstance(event, Overtaken) else state.record
        for effect in effects:
            if isinstance(effect, Flush):
                record = effect.new
            if isinstance(effect, Send):
                assert effect.message.verb in words[record], (state, event, effect)


def test_a_step_that_ends_clean_has_cleaned_or_never_had_to() -> None:
    for state, event, after, effects in steps():
        if after.clean and not state.clean:
            born = effects[:1] == (Flush(None, Record.NEVER),)
            assert Do.CLEAN in effects or born, (state, event)
            assert after.record in TERMINAL


def test_nothing_follows_a_release_in_its_step() -> None:
    for _, _, _, effects in steps():
        assert Do.LET_RUN not in effects[:-1]


def test_the_way_back_is_closed_for_good_by_ready() -> None:
    doubtful = decide_source(LIVE, Event.READY).state
    assert doubtful.in_doubt
    for event in EVENTS:
        resumes = Do.RESUME_SOURCE in decide_source(doubtful, event).effects
        assert resumes == (event in {heard(Verb.NEVER), Event.PEER_IS_FENCED}), event


def test_the_dead_hand_acts_unless_it_was_held() -> None:
    assert dead_hand(held=False) == (Do.RESUME_SOURCE,)
    assert dead_hand(held=True) == ()


def test_a_migration_begins_only_after_one_that_is_settled() -> None:
    assert may_begin(None, clean=False)
    for record in Record:
        assert not may_begin(record, clean=False)
        assert may_begin(record, clean=True) == (record in TERMINAL)


@pytest.mark.parametrize(
    ("records", "refusal"),
    [
        ((), None),
        ((Record.BACK, Record.GONE), None),
        ((Record.OWNS, Record.GONE), None),
        ((Record.NEVER,), None),
        ((Record.NEVER, Record.GONE), Record.GONE),
        ((Record.FENCED, Record.OWNS), Record.FENCED),
        *(((record,), record) for record in (Record.ARMED, Record.GONE, Record.OPEN)),
        *(((record,), record) for record in (Record.GO, Record.RAN, Record.FENCED)),
    ],
)
def test_the_tombstone(records: tuple[Record, ...], refusal: Record | None) -> None:
    assert refuses_start(records) is refusal
