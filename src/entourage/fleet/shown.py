"""How campaigns are told, in a terminal and on a page: a line for each domain, and sums."""

from __future__ import annotations

from typing import Final

from entourage.fleet.store import Summary
from entourage.fleet.values import MoveState

STATUSES: Final = {
    "waits": "waits",
    "moves": "moves",
    "moved": "moved",
    "stays": "stays",
    "doubt": "IN DOUBT",
    "off": "is off",
    "elsewhere": "is elsewhere",
}
_MINUTE: Final = 60.0  # seconds
_FACTORS: Final = (0.7, 1.5)
"""Of the pace so far: between these the rest is thought to take."""


def line(state: MoveState) -> str:
    """How far a domain has come."""
    move = state.move
    match state.status:
        case "moved":
            blackout = f", blackout {state.blackout * 1000:.0f} ms" if state.blackout else ""
            return f"{move.name} moved to {move.target}{blackout}"
        case "moves":
            return f"{move.name} moves to {move.target}"
        case "waits" if state.attempts:
            return f"{move.name} is back on {move.source}, waits for {move.target}: {state.message}"
        case "waits":
            return f"{move.name} waits for {move.target}"
        case _:
            return f"{move.name} {STATUSES[state.status]} ({move.source}): {state.message}"


def time_left(each: float, left: int) -> str:
    """How long the rest takes: ``3 to 7 min left``.

    Args:
        each: Seconds that each took so far, all that move at once reckoned in.
        left: How many there are yet.
    """
    first, last = (max(1, round(each * left * factor / _MINUTE)) for factor in _FACTORS)
    return f"{first} to {last} min left" if first < last else f"about {last} min left"


def sums(summary: Summary, planned_to_stay: int) -> str:
    """How many have come how far.

    Args:
        summary: The campaign.
        planned_to_stay: For how many there was no place.
    """
    counts = dict(summary.counts)
    if planned_to_stay:
        counts["stays"] = counts.get("stays", 0) + planned_to_stay
    parts = [f"{count} {STATUSES[status]}" for status, count in counts.items() if count]
    return f"{summary.name} {summary.phase}: {', '.join(parts) or 'nothing'}"
