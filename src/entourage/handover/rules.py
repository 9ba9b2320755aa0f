"""Who may run the domain: the hand-over protocol, as values and pure functions.

Two hosts, an unreliable link, a journal on each that survives a power cut, processes that may be
killed anywhere. Source and target have one function each, which takes a frozen state and an input
and returns the next state and the effects to be executed, in their order, by an executor::

    source   ARMED ──► BACK                  it runs at the source, as before
                  └──► GONE                  it runs at the target, for good

    target   OPEN ──► NEVER                  it never ran at the target and never will
                 └──► GO ──► RAN ──► OWNS    it ran at the target; OWNS: the source has let go
                        │     └────► FENCED  the user gave it back to the source
                        └──► NEVER, FENCED

What an executor owes this module (docs/handover.md says why, for each):

* It executes the effects of a step one by one and in order, and brings what `LET_RUN` led to before
  any other input. It may die between any two effects; `RESTARTED` finishes what it began.
* `Flush` is a compare-and-set that is on the disk when it returns. Where it changed nothing, the
  rest of the step is dropped and the executor brings `Overtaken` with what the journal holds. Where
  it raised, the process ends: nobody knows what is on the disk before it has been read again.
* A state built from a journal is built from what is on the disk, not in the kernel's cache
  (``Journal.open`` sees to that).
* ``holds_lock`` is true only while the process holds this host's lock of the domain. The source's
  deadman inherits that lock, so that nobody begins anew before it has spoken.

Nothing here does I/O, and nothing here knows of time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from entourage.handover.values import (
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
    Transition,
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


def decide_source(state: Source, given: AnyInput) -> Transition[Source]:
    """What the source does about an input; nothing where the rules have no answer."""
    armed_here = state.record is Record.ARMED and state.holds_lock
    match given:
        case Input.BEGIN if state.record is None and state.holds_lock:
            begun = replace(state, record=Record.ARMED, live=True)
            return Transition(begun, (Flush(None, Record.ARMED),))
        case Input.READY if state.live:
            # The way back is closed first: from here on neither this process nor its deadman
            # resumes the guest before the target has said NEVER.
            dead = state.guest is Guest.DEAD
            said = replace(state, live=False, guest=Guest.DEAD if dead else Guest.STOPPED)
            return Transition(said, (Do.DISARM_DEADMAN, _say(state, MessageKind.GO)))
        case Input.ABORT if state.live:
            return _come_back(state)
        case Input.ABORT if state.in_doubt:
            return Transition(state, (_say(state, MessageKind.ASK),))
        case Input.GUEST_DIED:
            return Transition(replace(state, guest=Guest.DEAD))
        case Input.RESTARTED:
            return _source_restarts(replace(state, live=False))
        case Input.UNREACHABLE if state.in_doubt:
            return Transition(state, (Report(Finding.ASK_FAILED),))
        case Connected(journal) if state.in_doubt or state.record in {Record.BACK, Record.GONE}:
            # A decided source asks for the target's sake, which says RAN where it does not know it.
            known = journal == state.peer_journal
            return Transition(state, (_say(state, MessageKind.ASK) if known else _WRONG_JOURNAL,))
        case Input.PEER_IS_FENCED if state.in_doubt and armed_here:
            return _come_back(state)
        case Heard(Message(kind, migration)) if migration == state.migration:
            return _source_hears(state, kind)
        case Overtaken(record):
            return _source_restarts(replace(state, record=record, live=False))
        case _:
            return Transition(state)


def _source_hears(state: Source, kind: MessageKind) -> Transition[Source]:
    match kind, state.record:
        case MessageKind.NEVER, Record.ARMED if state.holds_lock:
            return _come_back(state)
        case MessageKind.RAN, Record.ARMED if state.guest is Guest.RUNNING:
            return _alarm(state)
        case MessageKind.RAN, Record.ARMED:
            gone = replace(state, record=Record.GONE, live=False)
            said = (Flush(Record.ARMED, Record.GONE), _say(state, MessageKind.GONE))
            return Transition(replace(gone, clean=state.holds_lock), said + _let_go(state))
        case MessageKind.RAN, Record.GONE:
            return Transition(state, (_say(state, MessageKind.GONE),))
        case MessageKind.RAN, Record.BACK:
            return Transition(state, (_say(state, MessageKind.BACK),))
        case MessageKind.GO_STANDS, Record.ARMED:
            return Transition(state, (Report(Finding.GO_STANDS),))
        case _:
            return Transition(state)


def _come_back(state: Source) -> Transition[Source]:
    back = replace(state, record=Record.BACK, live=False, clean=True)
    flush = (Flush(Record.ARMED, Record.BACK),)
    if state.guest is Guest.DEAD:
        return Transition(back, (*flush, *_TIDY, Report(Finding.CAME_BACK_DEAD)))
    # While the guest waits every millisecond counts, and where GO was never said nobody else can
    # run it: the guest first. In doubt the record decides who may, so it comes first; and where the
    # target is declared fenced there would be nobody to ask again.
    resume = (Do.RESUME_SOURCE,)
    both = resume + flush if state.live else flush + resume
    return Transition(back, (*both, *_TIDY, Report(Finding.CAME_BACK)))


def _let_go(state: Source) -> tuple[Effect, ...]:
    if not state.holds_lock:
        return ()
    return (Do.DESTROY_SOURCE, *_TIDY, Report(Finding.HANDED_OVER))


def _alarm(state: Source) -> Transition[Source]:
    if not state.holds_lock:
        return Transition(state, _ALARM[1:])
    return Transition(replace(state, guest=Guest.STOPPED), _ALARM)


def _source_restarts(state: Source) -> Transition[Source]:
    done = replace(state, clean=True)
    match state.record:
        case Record.BACK | Record.GONE if state.clean or not state.holds_lock:
            return Transition(state)
        case Record.BACK if state.guest is Guest.DEAD:
            return Transition(done, (*_TIDY, Report(Finding.CAME_BACK_DEAD)))
        case Record.BACK:
            return Transition(done, (Do.RESUME_SOURCE, *_TIDY, Report(Finding.CAME_BACK)))
        case Record.GONE if state.guest is Guest.RUNNING:
            return _alarm(state)
        case Record.GONE:
            return Transition(done, _let_go(state))
        case _:
            return Transition(state)


# ── the target ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target's half of one migration, as one process knows it.

    Attributes:
        migration: The migration's id.
        record: What the journal says; None where it has never heard of the migration.
        guest: This host's copy.
        landed: All of memory is here and the devices' state is on the disk; this very process has
            seen it.
        clean: `Do.CLEAN` was done.
        holds_lock: See the module.
    """

    migration: str
    record: Record | None = None
    guest: Guest = Guest.STOPPED
    landed: bool = False
    clean: bool = False
    holds_lock: bool = True


def decide_target(state: Target, given: AnyInput) -> Transition[Target]:
    """What the target does about an input; nothing where the rules have no answer."""
    going = state.record is Record.GO and state.holds_lock
    match given:
        case Input.BEGIN if state.record is None and state.holds_lock:
            return Transition(replace(state, record=Record.OPEN), (Flush(None, Record.OPEN),))
        case Input.MEMORY_LANDED if state.record is Record.OPEN and state.holds_lock:
            # The sync runs while LANDED travels and the source thinks. It must be over before GO,
            # after which the source may erase its TPM even if nobody here gets as far as `_ran`.
            # So only then GO can be obeyed: where it fails, NEVER may not get on the disk either.
            return Transition(state, (_say(state, MessageKind.LANDED), Do.SYNC_DEVICES))
        case Input.DEVICES_SYNCED if state.record is Record.OPEN and state.holds_lock:
            return Transition(replace(state, landed=True))
        case Input.ABORT if state.record is Record.OPEN:
            return _never(state)
        case Input.GUEST_DIED:
            return _target_dies(replace(state, guest=Guest.DEAD))
        case Input.RELEASED if going:
            return _ran(replace(state, guest=Guest.RUNNING))
        case Input.RELEASE_REFUSED if going:
            return _never(state)
        case Input.RESTARTED if state.holds_lock:
            return _target_restarts(replace(state, landed=False))
        case Input.UNREACHABLE if state.record is Record.RAN:
            return Transition(state, (Report(Finding.SOURCE_SILENT),))
        case Input.PEER_IS_FENCED if state.record is Record.RAN and state.holds_lock:
            return _owns(state)
        case Heard(Message(kind, migration)) if migration == state.migration:
            return _target_hears(state, kind)
        case Overtaken(record):
            return _target_overtaken(replace(state, record=record))
        case _:
            return Transition(state)


def _target_hears(state: Target, kind: MessageKind) -> Transition[Target]:
    match kind, state.record:
        case MessageKind.GO, Record.OPEN if state.landed and state.holds_lock:
            # The commit of this record is the journal's only flush inside the blackout.
            gone = replace(state, record=Record.GO)
            return Transition(gone, (Flush(Record.OPEN, Record.GO), Do.LET_RUN))
        case ((MessageKind.GO | MessageKind.ASK), (None | Record.OPEN)):
            return _never(state)
        case ((MessageKind.GO | MessageKind.ASK), _):
            return Transition(state, (_answer(state),))
        case MessageKind.GONE, Record.RAN if state.holds_lock:
            return _owns(state)
        case MessageKind.BACK, (Record.GO | Record.RAN) if state.holds_lock:
            return _fenced(state)
        case _:
            return Transition(state)


def _never(state: Target) -> Transition[Target]:
    """Decide NEVER, say so, and only then undo: whoever finds the record undoes the rest."""
    flush = Flush(state.record, Record.NEVER)
    said = _say(state, MessageKind.NEVER)
    never = replace(state, record=Record.NEVER, clean=True)
    if state.record is None:
        return Transition(never, (flush, said))
    if not state.holds_lock:
        return Transition(replace(never, clean=False), (flush, said))
    # After a refused release the copy may already hold the locks of shared disks, which the source
    # needs to go on: then it has to die before the source hears of it.
    kill = (Do.KILL_TARGET,) if state.record is Record.GO else ()
    undo = (*kill, said) if kill else (said, Do.KILL_TARGET)
    return Transition(never, (flush, *undo, *_TIDY, Report(Finding.NEVER_HERE)))


def _ran(state: Target) -> Transition[Target]:
    ran = replace(state, record=Record.RAN)
    flush = (Do.SYNC_DEVICES, Flush(Record.GO, Record.RAN))
    said = (_say(state, MessageKind.RAN), Do.UNDO_RESOURCES, Report(Finding.RUNS_HERE))
    return Transition(ran, flush + said)


def _target_dies(state: Target) -> Transition[Target]:
    match state.record:
        case Record.OPEN:
            return _never(state)
        case Record.GO if state.holds_lock:
            # Released or not, nobody can tell any more: the guest may have acknowledged writes and
            # answered packets here, so it is this host's, and what is lost is its memory.
            ran = replace(state, record=Record.RAN)
            said = (_say(state, MessageKind.RAN), Do.UNDO_RESOURCES, Report(Finding.CRASHED_HERE))
            return Transition(ran, (Flush(Record.GO, Record.RAN), *said))
        case _:
            return Transition(state)


def _owns(state: Target) -> Transition[Target]:
    owns = replace(state, record=Record.OWNS, clean=True)
    return Transition(owns, (Flush(Record.RAN, Record.OWNS), *_TIDY))


def _fenced(state: Target) -> Transition[Target]:
    flush = Flush(state.record, Record.FENCED)
    fenced = replace(state, record=Record.FENCED)
    if state.guest is Guest.RUNNING:
        # It was not off, whatever the user said. Stop first, and lose nothing that he may want.
        return Transition(
            replace(fenced, guest=Guest.STOPPED), (Do.STOP_AND_ALARM, flush, _ALARM[1])
        )
    end = (Do.KILL_TARGET, *_TIDY, Report(Finding.FENCED_AWAY))
    return Transition(replace(fenced, clean=True), (flush, *end))


def _target_restarts(state: Target) -> Transition[Target]:
    done = replace(state, clean=True)
    match state.record, state.guest:
        case Record.OPEN, _:
            return _never(state)
        case Record.GO, Guest.STOPPED:
            return Transition(state, (Do.LET_RUN,))
        case Record.GO, Guest.RUNNING:
            return _ran(state)
        case Record.GO, Guest.DEAD:
            return _target_dies(state)
        case Record.RAN, _:
            return Transition(state, (_say(state, MessageKind.RAN), Do.UNDO_RESOURCES))
        case ((Record.NEVER | Record.FENCED), _) if not state.clean:
            finding = Finding.NEVER_HERE if state.record is Record.NEVER else Finding.FENCED_AWAY
            return Transition(done, (Do.KILL_TARGET, *_TIDY, Report(finding)))
        case Record.OWNS, _ if not state.clean:
            return Transition(done, _TIDY)
        case _:
            return Transition(state)


def _target_overtaken(state: Target) -> Transition[Target]:
    """Another process was first: decide on what it left open, or answer what it decided."""
    if state.record is Record.OPEN:
        return _never(state)
    said = (_answer(state),)
    if state.record is Record.NEVER and state.holds_lock:
        undo = (Do.KILL_TARGET, *_TIDY, Report(Finding.NEVER_HERE))
        return Transition(replace(state, clean=True), said + undo)
    return Transition(state, said)


def _answer(state: Target) -> Effect:
    return _say(state, _ANSWERS[state.record])


# ── both ─────────────────────────────────────────────────────────────────────────────────────────

_ANSWERS: Mapping[Record | None, MessageKind] = {
    Record.NEVER: MessageKind.NEVER,
    Record.FENCED: MessageKind.NEVER,
    Record.GO: MessageKind.GO_STANDS,
    Record.RAN: MessageKind.RAN,
    Record.OWNS: MessageKind.RAN,
}
_WRONG_JOURNAL = Report(Finding.WRONG_JOURNAL)
_TIDY = (Do.UNDO_RESOURCES, Do.CLEAN)
_ALARM = (Do.STOP_AND_ALARM, Report(Finding.TWO_COPIES))


def _say(state: Source | Target, kind: MessageKind) -> Send:
    return Send(Message(kind, state.migration))


def deadman(*, disarmed: bool) -> tuple[Effect, ...]:
    """What the deadman does once its parent is dead, or frozen: nothing after DISARM_DEADMAN.

    A parent that goes on after that cannot disarm it any more, and calls the migration off.
    """
    return () if disarmed else (Do.RESUME_SOURCE,)


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
