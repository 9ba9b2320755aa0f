"""The rules one by one; tests/model explores what they do together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

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
    MAY_FOLLOW,
    TERMINAL,
    AnyInput,
    Connected,
    Do,
    Effect,
    Finding,
    Flush,
    Guest,
    Heard,
    Input,
    Message,
    MessageKind,
    Overtaken,
    Record,
    Report,
    Send,
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
INPUTS: tuple[AnyInput, ...] = (
    *Input,
    *(Heard(Message(kind, M)) for kind in MessageKind),
    Connected("T"),
    Connected("another"),
)


def said(kind: MessageKind) -> Send:
    return Send(Message(kind, M))


def heard(kind: MessageKind, migration: str = M) -> Heard:
    return Heard(Message(kind, migration))


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
    said(MessageKind.GONE),
    Do.DESTROY_SOURCE,
    *TIDY,
    Report(Finding.HANDED_OVER),
)
ALARM = (Do.STOP_AND_ALARM, Report(Finding.TWO_COPIES))


@pytest.mark.parametrize(
    ("state", "given", "effects"),
    [
        (source(), Input.BEGIN, (Flush(None, Record.ARMED),)),
        (source(lock=False), Input.BEGIN, ()),
        (LIVE, Input.BEGIN, ()),
        (LIVE, Input.READY, (Do.DISARM_DEADMAN, said(MessageKind.GO))),
        (LIVE, Input.ABORT, BACK),
        (LIVE, heard(MessageKind.NEVER), BACK),
        (LIVE, heard(MessageKind.LANDED), ()),
        (LIVE, Input.UNREACHABLE, ()),
        (LIVE, Input.PEER_IS_FENCED, ()),
        (source(Record.ARMED, Guest.DEAD, live=True), Input.ABORT, BACK_DEAD),
        (
            source(Record.ARMED, Guest.DEAD, live=True),
            Input.READY,
            (Do.DISARM_DEADMAN, said(MessageKind.GO)),
        ),
        (DOUBT, Input.READY, ()),
        (DOUBT, Input.ABORT, (said(MessageKind.ASK),)),
        (DOUBT, Input.RESTARTED, ()),
        (DOUBT, Connected("T"), (said(MessageKind.ASK),)),
        (DOUBT, Connected("another"), (Report(Finding.WRONG_JOURNAL),)),
        (DOUBT, Input.UNREACHABLE, (Report(Finding.ASK_FAILED),)),
        (DOUBT, heard(MessageKind.GO_STANDS), (Report(Finding.GO_STANDS),)),
        (DOUBT, heard(MessageKind.NEVER), BACK_FROM_DOUBT),
        (source(Record.ARMED, Guest.RUNNING), heard(MessageKind.NEVER), BACK_FROM_DOUBT),
        (DOUBT, heard(MessageKind.NEVER, "another"), ()),
        (source(Record.ARMED, lock=False), heard(MessageKind.NEVER), ()),
        (source(Record.ARMED, Guest.DEAD), heard(MessageKind.NEVER), BACK_DEAD),
        (DOUBT, heard(MessageKind.RAN), GONE),
        (source(Record.ARMED, Guest.DEAD), heard(MessageKind.RAN), GONE),
        (source(Record.ARMED, lock=False), heard(MessageKind.RAN), GONE[:2]),
        (source(Record.ARMED, Guest.RUNNING), heard(MessageKind.RAN), ALARM),
        (source(Record.ARMED, Guest.RUNNING, lock=False), heard(MessageKind.RAN), ALARM[1:]),
        (DOUBT, Input.PEER_IS_FENCED, BACK_FROM_DOUBT),
        (source(Record.ARMED, lock=False), Input.PEER_IS_FENCED, ()),
        (source(Record.GONE), Input.PEER_IS_FENCED, ()),
        (DOUBT, Overtaken(Record.GONE), GONE[2:]),
        (source(Record.GONE), Input.RESTARTED, GONE[2:]),
        (source(Record.GONE, clean=True), Input.RESTARTED, ()),
        (source(Record.GONE, Guest.RUNNING), Input.RESTARTED, ALARM),
        (source(Record.GONE), heard(MessageKind.RAN), (said(MessageKind.GONE),)),
        (source(Record.GONE), heard(MessageKind.NEVER), ()),
        (source(Record.BACK), heard(MessageKind.RAN), (said(MessageKind.BACK),)),
        (source(Record.BACK), Connected("T"), (said(MessageKind.ASK),)),
        (source(Record.GONE, clean=True), Connected("T"), (said(MessageKind.ASK),)),
        (
            source(Record.BACK),
            Input.RESTARTED,
            (Do.RESUME_SOURCE, *TIDY, Report(Finding.CAME_BACK)),
        ),
        (
            source(Record.BACK, Guest.DEAD),
            Input.RESTARTED,
            (*TIDY, Report(Finding.CAME_BACK_DEAD)),
        ),
    ],
)
def test_source(state: Source, given: AnyInput, effects: tuple[Effect, ...]) -> None:
    assert decide_source(state, given).effects == effects


UNDONE = (Do.KILL_TARGET, *TIDY, Report(Finding.NEVER_HERE))
NEVER = (Flush(Record.OPEN, Record.NEVER), said(MessageKind.NEVER), *UNDONE)
RAN = (
    Do.SYNC_DEVICES,
    Flush(Record.GO, Record.RAN),
    said(MessageKind.RAN),
    Do.UNDO_RESOURCES,
    Report(Finding.RUNS_HERE),
)
CRASHED = (
    Flush(Record.GO, Record.RAN),
    said(MessageKind.RAN),
    Do.UNDO_RESOURCES,
    Report(Finding.CRASHED_HERE),
)
FENCED = (Do.KILL_TARGET, *TIDY, Report(Finding.FENCED_AWAY))
LANDED = target(Record.OPEN, landed=True)


@pytest.mark.parametrize(
    ("state", "given", "effects"),
    [
        (target(), Input.BEGIN, (Flush(None, Record.OPEN),)),
        (target(lock=False), Input.BEGIN, ()),
        (target(Record.NEVER), Input.BEGIN, ()),
        (target(Record.OPEN), Input.MEMORY_LANDED, (said(MessageKind.LANDED), Do.SYNC_DEVICES)),
        (target(Record.OPEN), Input.DEVICES_SYNCED, ()),
        (target(Record.GO), Input.DEVICES_SYNCED, ()),
        (LANDED, heard(MessageKind.GO), (Flush(Record.OPEN, Record.GO), Do.LET_RUN)),
        (LANDED, heard(MessageKind.GO, "another"), ()),
        (LANDED, heard(MessageKind.ASK), NEVER),
        (LANDED, Input.ABORT, NEVER),
        (LANDED, Input.GUEST_DIED, NEVER),
        (target(Record.OPEN), heard(MessageKind.GO), NEVER),
        (target(Record.OPEN), Input.RESTARTED, NEVER),
        (target(Record.OPEN, lock=False), heard(MessageKind.ASK), NEVER[:2]),
        (target(Record.OPEN, lock=False), Input.ABORT, NEVER[:2]),
        (target(Record.OPEN, lock=False, landed=True), heard(MessageKind.GO), NEVER[:2]),
        (target(), heard(MessageKind.ASK), (Flush(None, Record.NEVER), said(MessageKind.NEVER))),
        (target(), heard(MessageKind.GO), (Flush(None, Record.NEVER), said(MessageKind.NEVER))),
        (target(lock=False), Overtaken(Record.OPEN), NEVER[:2]),
        (target(Record.OPEN), Overtaken(Record.NEVER), (said(MessageKind.NEVER), *UNDONE)),
        (target(Record.OPEN, lock=False), Overtaken(Record.GO), (said(MessageKind.GO_STANDS),)),
        (target(Record.OPEN, lock=False), Overtaken(Record.RAN), (said(MessageKind.RAN),)),
        (target(Record.GO), Input.RELEASED, RAN),
        (target(Record.GO), Input.GUEST_DIED, CRASHED),
        (
            target(Record.GO),
            Input.RELEASE_REFUSED,
            (
                Flush(Record.GO, Record.NEVER),
                Do.KILL_TARGET,
                said(MessageKind.NEVER),
                *TIDY,
                Report(Finding.NEVER_HERE),
            ),
        ),
        (target(Record.GO), Input.ABORT, ()),
        (target(Record.GO), heard(MessageKind.GO), (said(MessageKind.GO_STANDS),)),
        (target(Record.GO), heard(MessageKind.ASK), (said(MessageKind.GO_STANDS),)),
        (target(Record.GO), Input.RESTARTED, (Do.LET_RUN,)),
        (target(Record.GO, Guest.RUNNING), Input.RESTARTED, RAN),
        (target(Record.GO, Guest.DEAD), Input.RESTARTED, CRASHED),
        (target(Record.GO, lock=False), Input.RESTARTED, ()),
        (target(Record.GO, lock=False), Input.RELEASED, ()),
        (
            target(Record.GO, Guest.DEAD),
            heard(MessageKind.BACK),
            (Flush(Record.GO, Record.FENCED), *FENCED),
        ),
        (
            target(Record.RAN, Guest.RUNNING),
            Input.RESTARTED,
            (said(MessageKind.RAN), Do.UNDO_RESOURCES),
        ),
        (target(Record.RAN), heard(MessageKind.ASK), (said(MessageKind.RAN),)),
        (target(Record.RAN), heard(MessageKind.GONE), (Flush(Record.RAN, Record.OWNS), *TIDY)),
        (target(Record.RAN, lock=False), heard(MessageKind.GONE), ()),
        (target(Record.RAN), Input.PEER_IS_FENCED, (Flush(Record.RAN, Record.OWNS), *TIDY)),
        (target(Record.RAN), Input.UNREACHABLE, (Report(Finding.SOURCE_SILENT),)),
        (target(Record.RAN), Input.ABORT, ()),
        (
            target(Record.RAN, Guest.DEAD),
            heard(MessageKind.BACK),
            (Flush(Record.RAN, Record.FENCED), *FENCED),
        ),
        (
            target(Record.RAN, Guest.RUNNING),
            heard(MessageKind.BACK),
            (Do.STOP_AND_ALARM, Flush(Record.RAN, Record.FENCED), Report(Finding.TWO_COPIES)),
        ),
        (target(Record.OWNS), heard(MessageKind.ASK), (said(MessageKind.RAN),)),
        (target(Record.OWNS), heard(MessageKind.BACK), ()),
        (target(Record.OWNS), Input.RESTARTED, TIDY),
        (target(Record.OWNS, clean=True), Input.RESTARTED, ()),
        (target(Record.NEVER), heard(MessageKind.GO), (said(MessageKind.NEVER),)),
        (target(Record.NEVER), Input.RESTARTED, UNDONE),
        (target(Record.NEVER, clean=True), Input.RESTARTED, ()),
        (target(Record.FENCED), heard(MessageKind.ASK), (said(MessageKind.NEVER),)),
        (target(Record.FENCED), Input.RESTARTED, FENCED),
    ],
)
def test_target(state: Target, given: AnyInput, effects: tuple[Effect, ...]) -> None:
    assert decide_target(state, given).effects == effects


def test_go_is_obeyed_only_once_the_devices_are_synced() -> None:
    """The sync may fail, and NEVER as well: then GO, under way since LANDED, must not be obeyed."""
    landing = decide_target(target(Record.OPEN), Input.MEMORY_LANDED).state
    assert decide_target(landing, heard(MessageKind.GO)).effects == NEVER
    synced = decide_target(landing, Input.DEVICES_SYNCED).state
    assert Do.LET_RUN in decide_target(synced, heard(MessageKind.GO)).effects


def steps() -> Iterator[tuple[Source | Target, AnyInput, Source | Target, tuple[Effect, ...]]]:
    """Every step there is."""
    yes_no = (False, True)
    for record, guest, one, clean, lock in itertools.product(
        SOURCE_RECORDS, Guest, yes_no, yes_no, yes_no
    ):
        here = source(
            record, guest, live=one and lock and record is Record.ARMED, clean=clean, lock=lock
        )
        for given in (*INPUTS, *(Overtaken(found) for found in SOURCE_RECORDS if found)):
            step = decide_source(here, given)
            yield here, given, step.state, step.effects
    for record, guest, one, clean, lock in itertools.product(
        TARGET_RECORDS, Guest, yes_no, yes_no, yes_no
    ):
        there = target(record, guest, landed=one, clean=clean, lock=lock)
        for given in (*INPUTS, *(Overtaken(found) for found in TARGET_RECORDS if found)):
            step = decide_target(there, given)
            yield there, given, step.state, step.effects


def test_every_step_keeps_to_the_drawing() -> None:
    for state, given, after, effects in steps():
        record = given.record if isinstance(given, Overtaken) else state.record
        for effect in effects:
            if isinstance(effect, Flush):
                assert effect.expected == record, (state, given)
                assert effect.new in MAY_FOLLOW[record], (state, given)
                record = effect.new
        assert after.record == record, (state, given)


def test_nothing_is_run_or_ended_without_the_lock() -> None:
    for state, given, _, effects in steps():
        if not state.holds_lock:
            assert not any(isinstance(effect, Do) for effect in effects), (state, given)


def test_nothing_is_said_before_it_is_written() -> None:
    words = {
        Record.GO: {MessageKind.GO_STANDS},
        Record.RAN: {MessageKind.RAN},
        Record.OWNS: {MessageKind.RAN},
        Record.NEVER: {MessageKind.NEVER},
        Record.FENCED: {MessageKind.NEVER},
        Record.OPEN: {MessageKind.LANDED},
        Record.GONE: {MessageKind.GONE, MessageKind.ASK},
        Record.BACK: {MessageKind.BACK, MessageKind.ASK},
        Record.ARMED: {MessageKind.GO, MessageKind.ASK},
        None: set[MessageKind](),
    }
    for state, given, _, effects in steps():
        record = given.record if isinstance(given, Overtaken) else state.record
        for effect in effects:
            if isinstance(effect, Flush):
                record = effect.new
            if isinstance(effect, Send):
                assert effect.message.kind in words[record], (state, given, effect)


def test_a_step_that_ends_clean_has_cleaned_or_never_had_to() -> None:
    for state, given, after, effects in steps():
        if after.clean and not state.clean:
            born = effects[:1] == (Flush(None, Record.NEVER),)
            assert Do.CLEAN in effects or born, (state, given)
            assert after.record in TERMINAL


def test_nothing_follows_a_release_in_its_step() -> None:
    for _, _, _, effects in steps():
        assert Do.LET_RUN not in effects[:-1]


def test_the_way_back_is_closed_for_good_by_ready() -> None:
    doubtful = decide_source(LIVE, Input.READY).state
    assert doubtful.in_doubt
    for given in INPUTS:
        resumes = Do.RESUME_SOURCE in decide_source(doubtful, given).effects
        assert resumes == (given in {heard(MessageKind.NEVER), Input.PEER_IS_FENCED}), given


def test_the_deadman_acts_unless_it_was_held() -> None:
    assert deadman(disarmed=False) == (Do.RESUME_SOURCE,)
    assert deadman(disarmed=True) == ()


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
