"""The figures of a benchmark, and what is made of many: medians, spread, ratios. Nothing runs here.

A *round* is one move of each party, one right after the other, so that what slows the machine down
for a while slows all of them. Parties are compared by the differences and ratios within rounds.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

MOMENTS = ("blackout", "pinger", "early", "late", "total")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move of one guest, seen from outside.

    Attributes:
        party: Who moved it: ``entourage``, ``floor``, …
        survived: The guest went on: the same boot, ticking, and writing to each of its disks.
        blackout: Seconds from QEMU's STOP at the source to its RESUME.
        pinger: The longest time about the switchover without an answer to a ping each millisecond.
        early: The longest time without an answer before the guest stopped.
        late: The same in the second after it ran again.
        total: Seconds from the start of the command to its end.
        cpu: CPU seconds of what moved it, source and target.
        memory: Peak resident bytes of it, source and target.
        wire: Bytes between the two hosts.
        spans: Seconds by name of what the blackout was made of.
    """

    party: str
    survived: bool = True
    blackout: float = 0.0
    pinger: float = 0.0
    early: float = 0.0
    late: float = 0.0
    total: float = 0.0
    cpu: tuple[float, float] = (0.0, 0.0)
    memory: tuple[int, int] = (0, 0)
    wire: int = 0
    spans: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])


Round = Mapping[str, Move]
"""By party."""
Figure = Callable[[Move], float]


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """Many values of one figure."""

    count: int
    median: float
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """What they are like.

        Raises:
            ValueError: There are none.
        """
        found = sorted(values)
        if not found:
            raise ValueError("a spread of nothing")
        if len(found) == 1:
            low = middle = high = found[0]
        else:
            low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
        return cls(len(found), middle, low, high, found[0], found[-1])


def whole(rounds: Sequence[Round]) -> list[Round]:
    """The rounds that every guest survived; the others tell nothing."""
    return [one for one in rounds if all(move.survived for move in one.values())]


def thrown_out(rounds: Sequence[Round]) -> dict[str, int]:
    """How many rounds are thrown out because a guest did not survive, by who moved that guest."""
    counts: dict[str, int] = {}
    for one in rounds:
        for party, move in one.items():
            if not move.survived:
                counts[party] = counts.get(party, 0) + 1
    return counts


def spread(rounds: Sequence[Round], party: str, figure: Figure) -> Spread:
    """One figure of one party."""
    return Spread.of(figure(one[party]) for one in whole(rounds))


def differences(rounds: Sequence[Round], ours: str, theirs: str, figure: Figure) -> Spread:
    """By how much ours is more than theirs, round by round."""
    return Spread.of(figure(one[ours]) - figure(one[theirs]) for one in whole(rounds))


def ratios(rounds: Sequence[Round], ours: str, theirs: str, figure: Figure) -> Spread:
    """How many times theirs ours is, round by round; those where theirs is 0 are left out."""
    return Spread.of(
        figure(one[ours]) / figure(one[theirs]) for one in whole(rounds) if figure(one[theirs])
    )


def moment(name: str) -> Figure:
    """The figure of that name."""

    def figure(move: Move) -> float:
        value: float = getattr(move, name)
        return value

    return figure


def to_json(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """All that was measured."""
    return [{party: dataclasses.asdict(move) for party, move in one.items()} for one in rounds]


def from_json(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> Sequence[Round]:
    """What ``to_json`` made."""
    return [{party: msgspec.convert(move, Move) for party, move in one.items()} for one in rounds]
