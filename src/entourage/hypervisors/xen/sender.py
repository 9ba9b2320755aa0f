"""The state machine of the program that xl runs in the place of ssh, on the source. Sans-IO.

It plays the receiver towards xl, and hears the engine. In that order::

    STREAM   xl sends its domain; it hears no READY, however long that takes
    HELD     the engine has said HOLD: xl hears READY, renames its copy, and says GO
    GIVEN    GO is here: whatever dies now, xl never resumes the domain by itself
    OVER     the engine has said how it ends, or somebody has died

So this program is the deadman as well: until GIVEN, the domain runs again on the source when the
engine dies; from then on only when somebody says so, for the engine may have told the target to
run it. That is also so where the engine lives and is frozen, and the domain has stood still for as
long as it may.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from entourage.errors import HypervisorError
from entourage.hypervisors.xen.constants import BANNER, GO, READY, RUNS, RUNS_NOT, Expect


class Word(enum.Enum):
    """What the engine says, and what it is answered."""

    HOLD = "hold"
    """GO may be sent next; answered HELD once nothing resumes the domain by itself any more."""
    RELEASE = "release"
    """The domain runs on the target: end the copy here."""
    FAIL = "fail"
    """The domain is to run here again. Never said where the target may run it."""
    ALIVE = "alive"
    """Said again and again: an engine that does not is dead or frozen."""
    STOPPED = "stopped"
    """The domain is suspended from about now on."""
    BEGUN = "begun"
    HELD = "held"
    BROKEN = "broken"


class Happened(enum.Enum):
    """What else happens."""

    XL_CLOSED = "xl has closed its end"
    STREAM_CLOSED = "the way to the target has closed"
    ENGINE_GONE = "the engine is dead"
    ENGINE_FROZEN = "entourage stood still, and the domain for longer than --max-blackout"


@dataclass(frozen=True, slots=True)
class ToXl:
    """Write this to xl."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to the engine; ``why`` where it is BROKEN."""

    word: Word
    why: str = ""


class Do(enum.Enum):
    """What else is to be done."""

    DRAIN = "let the target see the end of the stream, and wait a while until it is through"
    END = "end; xl sees its other end close"


Effect: TypeAlias = ToXl | Tell | Do
Effects: TypeAlias = tuple[Effect, ...]


class Phase(enum.Enum):
    """See the module."""

    STREAM = enum.auto()
    HELD = enum.auto()
    GIVEN = enum.auto()
    OVER = enum.auto()


_BACK = (Do.DRAIN, Do.END)
_REFUSE = (Do.DRAIN, ToXl(RUNS_NOT), Do.END)


class Sender:
    """One migration's handshake with the xl that sends."""

    def __init__(self) -> None:
        self.phase = Phase.STREAM
        self._go = Expect(GO)
        self._give_up = False

    def begin(self) -> Effects:
        """The way to the target is open."""
        return (ToXl(BANNER), Tell(Word.BEGUN))

    def hear(self, word: Word) -> Effects:
        """The engine says something."""
        match self.phase, word:
            case Phase.STREAM, Word.HOLD:
                self.phase = Phase.HELD
                return (ToXl(READY),)
            case Phase.STREAM, Word.FAIL:
                return self._over(_BACK)
            case Phase.HELD, Word.FAIL:
                # xl says GO next, whatever it hears, and can only then be sent back.
                self._give_up = True
                return ()
            case Phase.GIVEN, Word.FAIL:
                return self._over(_REFUSE)
            case Phase.GIVEN, Word.RELEASE:
                return self._over((ToXl(RUNS), Do.END))
            case _:
                return ()

    def xl_said(self, data: bytes) -> Effects:
        """Bytes from xl after READY; before it, they are the domain's and go past this machine."""
        if self.phase is not Phase.HELD:
            return self._broken("xl says more than it ever does") if data else ()
        try:
            after = self._go.feed(data)
        except HypervisorError as error:
            return self._broken(error.message)
        if not self._go.complete:
            return ()
        if after:
            return self._broken("xl says more than GO")
        self.phase = Phase.GIVEN
        return self._over(_REFUSE) if self._give_up else (Tell(Word.HELD),)

    def happens(self, what: Happened) -> Effects:
        """Somebody has gone."""
        match self.phase, what:
            case Phase.OVER, _:
                return ()
            case Phase.GIVEN | Phase.HELD, Happened.STREAM_CLOSED:
                return ()  # the domain is there already
            case Phase.HELD, Happened.ENGINE_GONE | Happened.ENGINE_FROZEN:
                self._give_up = True
                return ()
            case Phase.STREAM, Happened.ENGINE_GONE:
                return self._over(_BACK)
            case Phase.STREAM, Happened.ENGINE_FROZEN:
                return self._over((Tell(Word.BROKEN, what.value), *_BACK))
            case _, Happened.ENGINE_FROZEN:
                return ()
            case Phase.GIVEN, Happened.ENGINE_GONE:
                return self._over((Do.END,))
            case Phase.STREAM, Happened.XL_CLOSED:
                return self._over((Tell(Word.BROKEN, what.value), *_BACK))
            case _:
                return self._broken(what.value)

    def _broken(self, why: str) -> Effects:
        return self._over((Tell(Word.BROKEN, why), Do.END))

    def _over(self, effects: Effects) -> Effects:
        self.phase = Phase.OVER
        return effects
