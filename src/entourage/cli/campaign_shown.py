"""How campaigns are shown: a screen, a daemon's log, and the lines of both."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from entourage.cli.tell import say
from entourage.fleet.controller import Told
from entourage.fleet.store import Store, Summary
from entourage.fleet.values import Move, MoveState
from entourage.report.text import clean

_MOST: Final = 1 << 62  # bytes: what a host says may be any number
STATUSES: Final = {
    "waits": "waits",
    "moves": "moves",
    "moved": "moved",
    "stays": "stays",
    "doubt": "IN DOUBT",
    "off": "is off",
    "elsewhere": "is elsewhere",
}


class Screen(Told):
    """A line for each domain, and a line of sums: in place on a terminal, else what changes."""

    def __init__(self, store: Store, name: str) -> None:
        self._name = name
        self._began = time.monotonic()
        self._lines: dict[str, str] = {}
        self._drawn = 0
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._states = {one.move.uuid: one for one in store.states(name)}
        for state in self._states.values():
            self._lines[state.move.uuid] = line(state)

    def changed(self, campaign: str, state: MoveState) -> None:
        """See ``Told``."""
        if campaign != self._name:
            return
        self._states[state.move.uuid] = state
        shown = self._lines[state.move.uuid] = line(state)
        if not self._terminal:
            say(clean(shown))

    def heard(self, campaign: str, move: Move, event: Mapping[str, Any]) -> None:
        """See ``Told``."""
        if campaign != self._name or event.get("event") != "copy-progress":
            return
        done, total = event.get("done"), event.get("total")
        if (
            isinstance(done, int)
            and isinstance(total, int)
            and 0 <= done <= total < _MOST
            and total
        ):
            part = f"{event.get('what', '')} {100 * done // total} %"
            self._lines[move.uuid] = f"{move.name} moves to {move.target}: {part}"

    def note(self, campaign: str, message: str) -> None:
        """See ``Told``."""
        say(clean(f"entourage: note: {campaign}: {message}"))

    async def draw(self) -> None:
        """Again and again, on a terminal."""
        while self._terminal:
            self._redraw()
            await asyncio.sleep(0.5)

    def end(self) -> None:
        """For the last time."""
        if self._terminal:
            self._redraw()

    def _redraw(self) -> None:
        height = max(3, os.get_terminal_size(sys.stderr.fileno()).lines - 2)
        order = sorted(self._states.values(), key=lambda one: one.status not in {"moves", "waits"})
        lines = [clean(self._lines[one.move.uuid]) for one in order][: height - 1]
        lines.append(clean(self._sum()))
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        sys.stderr.write(up + "".join(f"\x1b[2K{line[: width - 1]}\n" for line in lines))
        sys.stderr.write("\x1b[J")
        sys.stderr.flush()
        self._drawn = len(lines)

    def _sum(self) -> str:
        states = list(self._states.values())
        done = [one for one in states if one.status not in {"waits", "moves"}]
        moving = sum(one.status == "moves" for one in states)
        text = f"{len(done)} of {len(states)} done, {moving} under way"
        left = len(states) - len(done)
        if done and left:
            each = (time.monotonic() - self._began) / len(done)
            first, last = (max(1, round(each * left * factor / 60)) for factor in (0.7, 1.5))
            text += f"; {first} to {last} min left"
        return text


class Log(Told):
    """A line for each thing that happens, for a daemon's journal."""

    def changed(self, campaign: str, state: MoveState) -> None:
        """See ``Told``."""
        say(clean(f"{campaign}: {line(state)}"))

    def note(self, campaign: str, message: str) -> None:
        """See ``Told``."""
        say(clean(f"{campaign}: note: {message}"))


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
