"""Who may run the domain: the hand-over protocol, as values and pure functions.

Two hosts, an unreliable link, a journal on each that survives a power cut, processes that may be
killed anywhere. Source and target have one function each, which takes a frozen state and an event
and returns the next state and the effects to be executed, in their order, by a thin shell::

    source   ARMED ──► BACK                  it runs at the source, as before
                  └──► GONE                  it runs at the target, for good

    target   OPEN ──► NEVER                  it never ran at the target and never will
                 └──► GO ──► RAN ──► OWNS    it ran at the target; OWNS: the source has let go
                        │     └────► FENCED  the user gave it back to the source
                        └──► NEVER, FENCED

What a shell owes this module (docs/handover.md says why, for each):

* It executes the effects of a step one by one and in order, and brings what `LET_RUN` led to before
  any other event. It may die between any two effects; `RESTARTED` finishes what it began.
* `Flush` is a compare-and-set that is on the disk when it returns. Where it changed nothing, the
  rest of the step is dropped and the shell brings `Overtaken` with what the journal holds. Where
  it raised, the process ends: nobody knows what is on the disk before it has been read again.
* A state built from a journal is built from what is on the disk, not in the kernel's cache
  (``Journal.open`` sees to that).
* ``holds_lock`` is true only while the process holds this host's lock of the domain. The source's
  dead hand inherits that lock, so that nobody begins anew before it has spoken.

Nothing here does I/O, and nothing here knows of time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from entourage.handover.values import (
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
    Step,
    Verb,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# ── the source ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The source's half of one migration, as one process knows it.

    Attributes:
        migration: The migration's id.
        peer_journal: The UUID of the target's journal.
        record: What the journal says; None before BEGIN.
        guest: This host's copy.
        live: This is the process that began the migration, and it never began to send GO.
        clean: `Do.CLEAN` was done.
        holds_lock: See the module.
    """

    migration: str
    peer_journal: str
    record: Record | None = None
    guest: Guest = Guest.RUNNING
    live: bool = False
    clean: bool = False
    holds_lock: bool = True

    @property
    def in_doubt(self) -> bool:
        """GO may have been said: only the target knows who runs the domain."""
        return self.record is Record.ARMED and not self.live


def decide_source(state: Source, event: AnyEvent) -> Step[Source]:
    """What the source does about an event; nothing where the rules have no answer."""
    armed_here = state.record is Record.ARMED and state.holds_lock
    match event:
        case Event.BEGIN if state.record is None and state.holds_lock:
            begun = replace(state, record=Record.ARMED, live=True)
            return Step(begun, (Flush(None, Record.ARMED),))
        case Event.READY if state.live:
            # The way back is closed first: from here on neither this process nor its dead hand
            # resumes the guest before the target has said NEVER.
            dead = state.guest is Guest.DEAD
            said = replace(state, live=False, guest=Guest.DEAD if dead else Guest.STOPPED)
            return Step(said, (Do.HOLD_DEAD_HAND, _say(state, Verb.GO)))
        case Event.ABORT if state.live:
            return _come_back(state)
        case Event.ABORT if state.in_doubt:
            return Step(state, (_say(state, Verb.ASK),))
        case Event.GUEST_DIED:
            return Step(replace(state, guest=Guest.DEAD))
        case Event.RESTARTED:
            return _source_restarts(replace(state, live=False))
        case Event.UNREACHABLE if state.in_doubt:
            return Step(state, (Report(Finding.ASK_FAILED),))
        case Connected(journal) if state.in_doubt or state.record in {Record.BACK, Record.GONE}:
            # A decided source asks for the target's sake, which says RAN where it does not know it.
            known = journal == state.peer_journal
            return Step(state, (_say(state, Verb.ASK) if known else _WRONG_JOURNAL,))
        case Event.PEER_IS_FENCED if state.in_doubt and armed_here:
            return _come_back(state)
        case Heard(Message(verb, migration)) if migration == state.migration:
            return _source_hears(state, verb)
        case Overtaken(record):
            return _source_restarts(replace(state, record=record, live=False))
        case _:
            return Step(state)


def _source_hears(state: Source, verb: Verb) -> Step[Source]:
    match verb, state.record:
        case Verb.NEVER, Record.ARMED if state.holds_lock:
            return _come_back(state)
        case Verb.RAN, Record.ARMED if state.guest is Guest.RUNNING:
            return _alarm(state)
        case Verb.RAN, Record.ARMED:
            gone = replace(state, record=Record.GONE, live=False)
            said = (Flush(Record.ARMED, Record.GONE), _say(state, Verb.GONE))
            return Step(replace(gone, clean=state.holds_lock), said + _let_go(state))
        case Verb.RAN, Record.GONE:
            return Step(state, (_say(state, Verb.GONE),))
        case Verb.RAN, Record.BACK:
            return Step(state, (_say(state, Verb.BACK),))
        case Verb.GO_STANDS, Record.ARMED:
            return Step(state, (Report(Finding.GO_STANDS),))
        case _:
            return Step(state)


def _come_back(state: Source) -> Step[Source]:
    back = replace(state, record=Record.BACK, live=False, clean=True)
    flush = (Flush(Record.ARMED, Record.BACK),)
    if state.guest is Guest.DEAD:
        return Step(back, (*flush, *_TIDY, Report(Finding.CAME_BACK_DEAD)))
    # While the guest waits every millisecond counts, and where GO was never said nobody else can
    # run it: the guest first. In doubt the record decides who may, so it comes first; and where the
    # target is declared fenced there would be nobody to ask again.
    resume = (Do.RESUME_SOURCE,)
    both = resume + flush if state.live else flush + resume
    return Step(back, (*both, *_TIDY, Report(Finding.CAME_BACK)))


def _let_go(state: Source) -> tuple[Effect, ...]:
    if not state.holds_lock:
        return ()
    return (Do.DESTROY_SOURCE, *_TIDY, Report(Finding.HANDED_OVER))


def _alarm(state: Source) -> Step[Source]:
    if not state.holds_lock:
        return Step(state, _ALARM[1:])
    return Step(replace(state, guest=Guest.STOPPED), _ALARM)


def _source_restarts(state: Source) -> Step[Source]:
    done = replace(state, clean=True)
    match state.record:
        case Record.BACK | Record.GONE if state.clean or not state.holds_lock:
            return Step(state)
        case Record.BACK if state.guest is Guest.DEAD:
            return Step(done, (*_TIDY, Report(Finding.CAME_BACK_DEAD)))
        case Record.BACK:
            return Step(done, (Do.RESUME_SOURCE, *_TIDY, Report(Finding.CAME_BACK)))
        case Record.GONE if state.guest is Guest.RUNNING:
            return _alarm(state)
        case Record.GONE:
            return Step(done, _let_go(state))
        case _:
            return Step(state)


# ── the target ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target's half of one migration, as one process knows it.

    Attributes:
        migration: The migration's id.
        record: What the journal says; None where it has never heard of the migration.
        guest: This host's copy.
        landed: All of memory is here; this very process has seen it.
        clean: `Do.CLEAN` was done.
        holds_lock: See the module.
    """

    migration: str
    record: Record | None = None
    guest: Guest = Guest.STOPPED
    landed: bool = False
    clean: bool = False
    holds_lock: bool = True


def decide_target(state: Target, event: AnyEvent) -> Step[Target]:
    """What the target does about an event; nothing where the rules have no answer."""
    going = state.record is Record.GO and state.holds_lock
    match event:
        case Event.BEGIN if state.record is None and state.holds_lock:
            return Step(replace(state, record=Record.OPEN), (Flush(None, Record.OPEN),))
        case Event.MEMORY_LANDED if state.record is Record.OPEN and state.holds_lock:
            # The sync runs while LANDED travels and the source thinks. It must be over before GO,
            # after which the source may erase its TPM even if nobody here gets as far as `_ran`.
            said = (_say(state, Verb.LANDED), Do.SYNC_DEVICES)
            return Step(replace(state, landed=True), said)
        case Event.ABORT if state.record is Record.OPEN:
            return _never(state)
        case Event.GUEST_DIED:
            return _target_dies(replace(state, guest=Guest.DEAD))
        case Event.RELEASED if going:
            return _ran(replace(state, guest=Guest.RUNNING))
        case Event.RELEASE_REFUSED if going:
            return _never(state)
        case Event.RESTARTED if state.holds_lock:
            return _target_restarts(replace(state, landed=False))
        case Event.UNREACHABLE if state.record is Record.RAN:
            return Step(state, (Report(Finding.SOURCE_SILENT),))
        case Event.PEER_IS_FENCED if state.record is Record.RAN and state.holds_lock:
            return _owns(state)
        case Heard(Message(verb, migration)) if migration == state.migration:
            return _target_hears(state, verb)
        case Overtaken(record):
            return _target_overtaken(replace(state, record=record))
        case _:
            return Step(state)


def _target_hears(state: Target, verb: Verb) -> Step[Target]:
    match verb, state.record:
        case Verb.GO, Record.OPEN if state.landed and state.holds_lock:
            # The commit of this record is the journal's only flush inside the blackout.
            gone = replace(state, record=Record.GO)
            return Step(gone, (Flush(Record.OPEN, Record.GO), Do.LET_RUN))
        case ((Verb.GO | Verb.ASK), (None | Record.OPEN)):
            return _never(state)
        case ((Verb.GO | Verb.ASK), _):
            return Step(state, (_answer(state),))
        case Verb.GONE, Record.RAN if state.holds_lock:
            return _owns(state)
        case Verb.BACK, (Record.GO | Record.RAN) if state.holds_lock:
            return _fenced(state)
        case _:
            return Step(state)


def _never(state: Target) -> Step[Target]:
    """Decide NEVER, say so, and only then undo: whoever finds the record undoes the rest."""
    flush = Flush(state.record, Record.NEVER)
    said = _say(state, Verb.NEVER)
    never = replace(state, record=Record.NEVER, clean=True)
    if state.record is None:
        return Step(never, (flush, said))
    if not state.holds_lock:
        return Step(replace(never, clean=False), (flush, said))
    # After a refused release the copy may already hold the locks of shared disks, which the source
    # needs to go on: then it has to die before the source hears of it.
    kill = (Do.KILL_TARGET,) if state.record is Record.GO else ()
    undo = (*kill, said) if kill else (said, Do.KILL_TARGET)
    return Step(never, (flush, *undo, *_TIDY, Report(Finding.NEVER_HERE)))


def _ran(state: Target) -> Step[Target]:
    ran = replace(state, record=Record.RAN)
    flush = (Do.SYNC_DEVICES, Flush(Record.GO, Record.RAN))
    said = (_say(state, Verb.RAN), Do.UNDO_RESOURCES, Report(Finding.RUNS_HERE))
    return Step(ran, flush + said)


def _target_dies(state: Target) -> Step[Target]:
    match state.record:
        case Record.OPEN:
            return _never(state)
        case Record.GO if state.holds_lock:
            # Released or not, nobody can tell any more: the guest may have acknowledged writes and
            # answered packets here, so it is this host's, and what is lost is its memory.
            ran = replace(state, record=Record.RAN)
            said = (_say(state, Verb.RAN), Do.UNDO_RESOURCES, Report(Finding.CRASHED_HERE))
            return Step(ran, (Flush(Record.GO, Record.RAN), *said))
        case _:
            return Step(state)


def _owns(state: Target) -> Step[Target]:
    owns = replace(state, record=Record.OWNS, clean=True)
    return Step(owns, (Flush(Record.RAN, Record.OWNS), *_TIDY))


def _fenced(state: Target) -> Step[Target]:
    flush = Flush(state.record, Record.FENCED)
    fenced = replace(state, record=Record.FENCED)
    if state.guest is Guest.RUNNING:
        # It was not off, whatever the user said. Stop first, and lose nothing that he may want.
        return Step(replace(fenced, guest=Guest.STOPPED), (Do.STOP_AND_ALARM, flush, _ALARM[1]))
    end = (Do.KILL_TARGET, *_TIDY, Report(Finding.FENCED_AWAY))
    return Step(replace(fenced, clean=True), (flush, *end))


def _target_restarts(state: Target) -> Step[Target]:
    done = replace(state, clean=True)
    match state.record, state.guest:
        case Record.OPEN, _:
            return _never(state)
        case Record.GO, Guest.STOPPED:
            return Step(state, (Do.LET_RUN,))
        case Record.GO, Guest.RUNNING:
            return _ran(state)
        case Record.GO, Guest.DEAD:
            return _target_dies(state)
        case Record.RAN, _:
            return Step(state, (_say(state, Verb.RAN), Do.UNDO_RESOURCES))
        case ((Record.NEVER | Record.FENCED), _) if not state.clean:
            finding = Finding.NEVER_HERE if state.record is Record.NEVER else Finding.FENCED_AWAY
            return Step(done, (Do.KILL_TARGET, *_TIDY, Report(finding)))
        case Record.OWNS, _ if not state.clean:
            return Step(done, _TIDY)
        case _:
            return Step(state)


def _target_overtaken(state: Target) -> Step[Target]:
    """Another process was first: decide on what it left open, or answer what it decided."""
    if state.record is Record.OPEN:
        return _never(state)
    said = (_answer(state),)
    if state.record is Record.NEVER and state.holds_lock:
        undo = (Do.KILL_TARGET, *_TIDY, Report(Finding.NEVER_HERE))
        return Step(replace(state, clean=True), said + undo)
    return Step(state, said)


def _answer(state: Target) -> Effect:
    return _say(state, _ANSWERS[state.record])


# ── both ─────────────────────────────────────────────────────────────────────────────────────────

_ANSWERS: Mapping[Record | None, Verb] = {
    Record.NEVER: Verb.NEVER,
    Record.FENCED: Verb.NEVER,
    Record.GO: Verb.GO_STANDS,
    Record.RAN: Verb.RAN,
    Record.OWNS: Verb.RAN,
}
_WRONG_JOURNAL = Report(Finding.WRONG_JOURNAL)
_TIDY = (Do.UNDO_RESOURCES, Do.CLEAN)
_ALARM = (Do.STOP_AND_ALARM, Report(Finding.TWO_COPIES))


def _say(state: Source | Target, verb: Verb) -> Send:
    return Send(Message(verb, state.migration))


def dead_hand(*, held: bool) -> tuple[Effect, ...]:
    """What the dead hand does once its parent is dead: nothing after HOLD_DEAD_HAND."""
    return () if held else (Do.RESUME_SOURCE,)


def may_begin(record: Record | None, *, clean: bool) -> bool:
    """Whether ARMED or OPEN may follow the newest decision on this domain in this journal."""
    return record is None or (record in TERMINAL and clean)


def refuses_start(records: Iterable[Record]) -> Record | None:
    """The decision that forbids to start the domain here by hand, the tombstone of one that left.

    Args:
        records: This journal's decisions on the domain, the newest first.
    """
    for record in records:
        if record in {Record.BACK, Record.OWNS}:
            return None
        if record is not Record.NEVER:
            return record
    return None
