"""What is shown while a migration is under way: a live display, or plain lines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from entourage.events import AnyEvent, MigrationPlanned
from entourage.report.ending import plan_of
from entourage.report.frame import Screen, frame
from entourage.report.lines import Teller, note
from entourage.report.outlet import Outlet
from entourage.report.text import ASCII, UNICODE, Glyphs
from entourage.report.view import View

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "console_for", "glyphs_for", "open_display"]

TICK: Final = 0.1
"""Seconds between two calls of ``Display.tick``."""
# Drawing may take this part of the time at most: on a slow host it is done less often.
_SHARE: Final = 0.03
_EVERY: Final = 0.12
_MOST_LINES: Final = 20


class Display(Protocol):
    """Shows what goes on. Call it with each event, and ``tick`` now and then."""

    def __call__(self, event: AnyEvent) -> None:
        """Take an event in; cheap."""
        ...

    def tick(self) -> None:
        """Draw, where it is time to. Not to be called while the guest stands still."""
        ...

    def say(self, line: str) -> None:
        """Show a line at once."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was, with everything written that is worth it."""
        ...


def console_for(outlet: Outlet) -> Console:
    """A console that writes there and takes nothing in what it is given for markup."""
    return Console(file=outlet.as_file(), highlight=False, markup=False, emoji=False)


def glyphs_for(outlet: Outlet) -> Glyphs:
    """The signs that can be shown there."""
    return UNICODE if outlet.is_utf8 else ASCII


def open_display(
    outlet: Outlet, *, verbose: bool = False, quiet: bool = False, plan: bool = False
) -> Display:
    """The display that suits what ``outlet`` leads to.

    Args:
        outlet: Where it is shown.
        verbose: Show more.
        quiet: Show nothing but what a person should read even then: warnings, and what tools say.
        plan: Show the plan of a migration that can begin.
    """
    console = console_for(outlet)
    if quiet:
        return PlainDisplay(outlet, tell=note)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(outlet, console, verbose=verbose, plan=plan)
    return PlainDisplay(outlet, tell=Teller(verbose=verbose).tell, plan=plan)


class PlainDisplay:
    """A line for each event that means something.

    Args:
        outlet: Where to.
        tell: Makes an event's line; None for none.
        plan: Write the plan as well.
    """

    def __init__(
        self, outlet: Outlet, *, tell: Callable[[AnyEvent], str | None], plan: bool = False
    ) -> None:
        self._outlet = outlet
        self._tell = tell
        self._plan = plan
        self._view = View()

    def __call__(self, event: AnyEvent) -> None:
        """Write its line."""
        self._view.apply(event)
        if line := self._tell(event):
            self._outlet.write(f"{line}\n")
        if self._plan and isinstance(event, MigrationPlanned) and not self._view.refusals:
            console_for(self._outlet).print(plan_of(self._view, glyphs_for(self._outlet)))

    def tick(self) -> None:
        """Nothing moves here."""

    def say(self, line: str) -> None:
        """Write it."""
        self._outlet.write(f"{line}\n")

    def close(self) -> None:
        """Wait until all is written."""
        self._outlet.close()


class LiveDisplay:
    """A few lines at the bottom of the terminal that are drawn again and again.

    There is no thread that draws: ``tick`` does, in the event loop, and only if the terminal has
    taken the frame before. Taking an event draws nothing.

    Args:
        outlet: Leads to a terminal.
        console: Writes to it.
        verbose: Let every event that means something scroll by above, too.
        plan: Let the plan do so.
        clock: Seconds.
    """

    def __init__(
        self,
        outlet: Outlet,
        console: Console,
        *,
        verbose: bool = False,
        plan: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outlet = outlet
        self._console = console
        self._tell = Teller(verbose=True).tell if verbose else note
        self._clock = clock
        self._view = View()
        self._plan = plan
        self._above: list[RenderableType] = []
        self._began = clock()
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._dropped = 0
        self._next = 0.0
        self._live: Live | None = None

    def __call__(self, event: AnyEvent) -> None:
        """Take an event in."""
        if self._view.started is None:
            self._began = self._clock() - event.at
        self._view.apply(event)
        if self._plan and isinstance(event, MigrationPlanned) and not self._view.refusals:
            self._above.append(plan_of(self._view, glyphs_for(self._outlet)))
        if line := self._tell(event):
            self._dropped += len(self._lines) == _MOST_LINES
            self._lines.append(line)

    def tick(self) -> None:
        """Draw a frame where one is due."""
        now = self._clock()
        if now < self._next or self._outlet.backlog or not self._outlet.in_foreground:
            return
        if self._view.started is None and not self._lines:
            return  # ssh may be asking for a password
        self._draw()
        self._next = self._clock() + max(_EVERY, (self._clock() - now) / _SHARE)

    def say(self, line: str) -> None:
        """Show a line at once, also while the guest stands still: the user has asked for it."""
        self._lines.append(line)
        self._draw()

    def close(self) -> None:
        """Take the display away; what has scrolled by above it stays."""
        if self._lines or self._above:
            self._draw()
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._outlet.close()

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(
                Text(""),
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._print_lines()
        width, height = self._console.size
        # The last column stays free: some terminals wrap as soon as it is written.
        screen = Screen(width - 1, height, glyphs_for(self._outlet))
        self._live.update(frame(self._view, self._clock() - self._began, screen), refresh=True)

    def _print_lines(self) -> None:
        for part in self._above:
            self._console.print(Text(""), part, Text(""), sep="\n")
        self._above.clear()
        if not self._lines:
            return
        lines = [Text(line, style="dim" if line[:8] != "warning:" else "yellow")
                 for line in self._lines]  # fmt: skip
        if self._dropped:
            lines.insert(0, Text(f"({self._dropped} lines more)", style="dim"))
        self._lines.clear()
        self._dropped = 0
        self._console.print(Group(*lines))
