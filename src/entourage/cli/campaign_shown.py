"""How campaigns are shown in a terminal: a screen, and a daemon's log."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from entourage.cli.tell import say
from entourage.fleet.controller import Told
from entourage.fleet.records import copied
from entourage.fleet.shown import line, time_left
from entourage.fleet.store import Store
from entourage.fleet.values import Move, MoveState
from entourage.report.text import clean


class Screen(Told):
    """A line for each domain, and a line of sums: in place on a terminal, else what changes.

    Args:
        store: The campaigns.
        name: The one that is shown.

    Attributes:
        tells_others: Say too what happens in other campaigns that run here.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.tells_others = False
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
            if self.tells_others:
                say(clean(f"{campaign}: {line(state)}"))
            return
        self._states[state.move.uuid] = state
        shown = self._lines[state.move.uuid] = line(state)
        if not self._terminal:
            say(clean(shown))

    def heard(self, campaign: str, move: Move, event: Mapping[str, Any]) -> None:
        """See ``Told``."""
        if campaign != self._name or event.get("event") != "copy-progress":
            return
        what, percent = copied(event)
        if what:
            self._lines[move.uuid] = f"{move.name} moves to {move.target}: {what} {percent} %"

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
            text += f"; {time_left((time.monotonic() - self._began) / len(done), left)}"
        return text


class Log(Told):
    """A line for each thing that happens, for a daemon's journal."""

    def changed(self, campaign: str, state: MoveState) -> None:
        """See ``Told``."""
        say(clean(f"{campaign}: {line(state)}"))

    def note(self, campaign: str, message: str) -> None:
        """See ``Told``."""
        say(clean(f"{campaign}: note: {message}"))
