"""The values of the hand-over: records, messages, inputs and effects.

What they mean together is in `entourage.handover.rules`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeAlias, TypeVar


class Role(enum.StrEnum):
    """A host's part in one migration."""

    SOURCE = "source"
    TARGET = "target"


class Record(enum.StrEnum):
    """What a journal says of one migration; drawn in `entourage.handover.rules`."""

    ARMED = "armed"
    BACK = "back"
    GONE = "gone"

    OPEN = "open"
    NEVER = "never"
    GO = "go"
    RAN = "ran"
    OWNS = "owns"
    FENCED = "fenced"


TERMINAL = frozenset({Record.BACK, Record.GONE, Record.NEVER, Record.OWNS, Record.FENCED})
"""Nothing is decided after these; `Do.CLEAN` then says that nothing is left to be done either."""

MAY_FOLLOW: Mapping[Record | None, frozenset[Record]] = {
    None: frozenset({Record.ARMED, Record.OPEN, Record.NEVER}),
    Record.ARMED: frozenset({Record.BACK, Record.GONE}),
    Record.OPEN: frozenset({Record.NEVER, Record.GO}),
    Record.GO: frozenset({Record.RAN, Record.NEVER, Record.FENCED}),
    Record.RAN: frozenset({Record.OWNS, Record.FENCED}),
}
"""The drawing in `entourage.handover.rules`, for those who want to check a step against it."""


class MessageKind(enum.StrEnum):
    """What the two sides say to each other."""

    GO = "go"
    """S to T: run it. Said once; from just before that, S does not know who runs the domain."""
    ASK = "ask"
    """S to T: what did you decide? Forces NEVER where nothing is decided yet."""
    GONE = "gone"
    """S to T, the answer to RAN: I have let go for good."""
    BACK = "back"
    """S to T, the answer to RAN: you were declared fenced, the domain is mine."""

    LANDED = "landed"
    """T to S: all of memory is here, the guest is paused."""
    RAN = "ran"
    """T to S: it is mine, released as it was (one that its user had paused is still paused)."""
    NEVER = "never"
    """T to S: it never ran here and never will."""
    GO_STANDS = "go-stands"
    """T to S: GO is on my disk; whether it ran is not known yet. Wait."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message about one migration."""

    kind: MessageKind
    migration: str


class Guest(enum.Enum):
    """A host's copy of the guest, as its hypervisor shows it."""

    RUNNING = "running"
    """Not held by the migration: running, or paused by its user."""
    STOPPED = "stopped"
    """Held by it: at the source stopped for the switchover; at the target never yet released."""
    DEAD = "dead"
    """There is none."""


class Finding(enum.StrEnum):
    """What the user is told; each has its paragraph in docs/recovery.md."""

    CAME_BACK = "came-back"
    """Source: the domain runs here, as before."""
    CAME_BACK_DEAD = "came-back-dead"
    """Source: the domain belongs here, but its machine is dead: start it here."""
    HANDED_OVER = "handed-over"
    """Source: the domain belongs to the target."""
    ASK_FAILED = "ask-failed"
    """Source in doubt: the target cannot be reached; what its journal says is missing."""
    WRONG_JOURNAL = "wrong-journal"
    """Source in doubt: the host that answers has another journal than the target had."""
    GO_STANDS = "go-stands"
    """Source in doubt: the target decided to run it; whether it did must be found out there."""

    RUNS_HERE = "runs-here"
    """Target: the domain was handed over, and runs here."""
    CRASHED_HERE = "crashed-here"
    """Target: handed over, and its machine is dead: the domain belongs here, start it here."""
    NEVER_HERE = "never-here"
    """Target: it never ran here; what was made for it is undone."""
    SOURCE_SILENT = "source-silent"
    """Target: the domain is here, but the source has not confirmed that it let go."""
    FENCED_AWAY = "fenced-away"
    """Target: the user gave the domain back to the source while this host was off."""

    TWO_COPIES = "two-copies"
    """Alarm: the copy that has no right to run was found running, and was stopped."""


# ── effects ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Flush:
    """Set the record where it still is ``expected`` (None: insert it); on the disk on return.

    A NEVER that is inserted is clean: nothing was ever made for it.
    """

    expected: Record | None
    new: Record


@dataclass(frozen=True, slots=True)
class Send:
    """Send it if there is a link, and go on; nobody waits for its arrival."""

    message: Message


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the user."""

    finding: Finding


class Do(enum.Enum):
    """The effects that need no parameter. All may be repeated without harm."""

    DISARM_DEADMAN = "disarm-deadman"
    """Source: from its return on, the deadman never again resumes the guest."""
    RESUME_SOURCE = "resume-source"
    """Source: end the carrier, put the guest back as it was before the stop."""
    DESTROY_SOURCE = "destroy-source"
    """Source: end the copy, then erase its TPM state, keep or remove its disks as was asked."""
    LET_RUN = "let-run"
    """Target: release the guest as it was; leads to RELEASED, RELEASE_REFUSED or GUEST_DIED."""
    SYNC_DEVICES = "sync-devices"
    """Target: put on the disk what devices wrote and did not sync (the TPM's state).

    Before GO it leads to DEVICES_SYNCED or ABORT."""
    KILL_TARGET = "kill-target"
    """Target: end the copy that has no right to run, and wait until it is gone."""
    UNDO_RESOURCES = "undo-resources"
    """Undo what the ledger holds, newest first: all of it after NEVER and FENCED, else only what
    the migration alone needed."""
    CLEAN = "clean"
    """Note that nothing is left to be done here; no new migration begins without it."""
    STOP_AND_ALARM = "stop-and-alarm"
    """Stop the copy that runs without a right to, keep it, and shout."""


Effect: TypeAlias = Flush | Send | Report | Do
StateT = TypeVar("StateT")


class Transition(NamedTuple, Generic[StateT]):
    """What follows: the state once all effects are executed, and the effects."""

    state: StateT
    effects: tuple[Effect, ...] = ()


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────


class Input(enum.Enum):
    """The inputs that need no parameter."""

    BEGIN = "begin"
    """Source: before PREPARE. Target: before its first resource."""
    MEMORY_LANDED = "memory-landed"
    """Target: all of memory is here, the guest is paused."""
    DEVICES_SYNCED = "devices-synced"
    """Target: SYNC_DEVICES worked before GO; where it did not, ABORT."""
    READY = "ready"
    """Source: landed on both sides' word, every SYNC done, budget left. Hand over."""
    ABORT = "abort"
    """Something failed, the user asked, the link was lost. In doubt: find out."""
    GUEST_DIED = "guest-died"
    """This host's copy died."""
    RELEASED = "released"
    """Target: LET_RUN worked."""
    RELEASE_REFUSED = "release-refused"
    """Target: LET_RUN was refused, or found the copy dead before it tried: it never ran."""
    RESTARTED = "restarted"
    """A new process took the lock, and read the journal and the hypervisor."""
    UNREACHABLE = "unreachable"
    """The other host cannot be reached now."""
    PEER_IS_FENCED = "peer-is-fenced"
    """The user vouches that the other host is off, and that its copy is gone for good."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message arrived."""

    message: Message


@dataclass(frozen=True, slots=True)
class Connected:
    """Source: there is a link (again), to a host with this journal."""

    journal: str


@dataclass(frozen=True, slots=True)
class Overtaken:
    """A `Flush` changed nothing: another process was first, and decided this."""

    record: Record


AnyInput: TypeAlias = Input | Heard | Connected | Overtaken
