"""The blackout of a move as rows of bars, from the figures that the terminal's timeline has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from entourage.events import AnyEvent
from entourage.report.metrics import Stretch, blackout
from entourage.report.text import duration

WIDTH: Final = 1000
"""Units of a bar's drawing from its left to its right."""
_ROWS: Final = 32
_LEAST: Final = 6  # units: whatever is short, and a mark, is drawn all the same
_LONGEST: Final = 86400.0 * 7  # seconds: no blackout; what a host says may be any number


@dataclass(frozen=True, slots=True)
class Row:
    """Something that took its time in the blackout.

    Attributes:
        host: Where.
        name: What.
        kind: See ``metrics.Stretch``.
        place: Of the host among those of the drawing, for its colour.
        left, width: In units of ``WIDTH``.
        start, took: In words.
        error: Why it failed; empty where it did not.
    """

    host: str
    name: str
    kind: str
    place: int
    left: int
    width: int
    start: str
    took: str
    error: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """All of a blackout.

    Attributes:
        length: In words.
        resumed: The host that resumed the guest; empty where none did.
        unnamed: How long nothing with a name was under way; empty where that is next to nothing.
        rows: In the order of their beginning, the longest ones where there are many.
        left_out: How many are not among them.
    """

    length: str
    resumed: str
    unnamed: str
    rows: Sequence[Row]
    left_out: int


def timeline(events: Iterable[AnyEvent]) -> Timeline | None:
    """Draw the blackout; None where the guest never stopped, or what is told of it cannot be."""
    try:
        dark = blackout(events)
    except (OverflowError, ValueError):
        return None
    if dark is None or not 0 < dark.seconds < _LONGEST:
        return None
    chosen = sorted(
        dark.stretches, key=lambda one: (one.kind != "mark", not one.error, -one.seconds)
    )
    keep = {id(one) for one in chosen[:_ROWS]}
    hosts = list(dict.fromkeys(one.host for one in dark.stretches))
    rows = [
        _row(one, dark.seconds, hosts.index(one.host))
        for one in dark.stretches
        if id(one) in keep and math.isfinite(one.start) and math.isfinite(one.end)
    ]
    return Timeline(
        length=duration(dark.seconds),
        resumed=dark.resumed,
        unnamed=duration(dark.unnamed) if dark.unnamed >= dark.seconds / 100 else "",
        rows=rows,
        left_out=len(dark.stretches) - len(rows),
    )


def _row(one: Stretch, total: float, place: int) -> Row:
    left = round(min(max(one.start / total, 0.0), 1.0) * WIDTH)
    right = round(min(max(one.end / total, 0.0), 1.0) * WIDTH)
    left = min(left, WIDTH - _LEAST)
    return Row(
        host=one.host,
        name=one.name,
        kind=one.kind,
        place=place % 4,
        left=left,
        width=max(right - left, _LEAST),
        start=duration(max(one.start, 0.0)),
        took="" if one.kind == "mark" else duration(max(one.seconds, 0.0)),
        error=one.error,
    )
