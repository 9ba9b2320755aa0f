"""Who looks on while a migration is under way: a person, or a program that reads JSON."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Iterable

from entourage.cli.tell import say
from entourage.events import AnyEvent, Finished, Warned
from entourage.report.ending import ending
from entourage.report.jsonl import JsonLines
from entourage.report.outlet import Outlet
from entourage.report.progress import TICK, Display, console_for, glyphs_for, open_display
from entourage.report.stream import Recorder, Stream


class Audience:
    """Shows the events of one migration; nothing that goes wrong here reaches the migration.

    Args:
        json: Lines of JSON to standard output, and nothing else there. Otherwise what goes on is
            shown on standard error, and how it ended on standard output.
        verbose: Show more.
        quiet: Show warnings, errors and how it ended, and nothing else.
        plan: Show the plan before anything is done.

    Attributes:
        stream: The listener for the migration.
    """

    def __init__(
        self, *, json: bool, verbose: bool, quiet: bool = False, plan: bool = False
    ) -> None:
        self._verbose = verbose
        self._quiet = quiet
        self._out, self._err = Outlet(sys.stdout), Outlet(sys.stderr)
        self._recorder = Recorder()
        self._display: Display | None = None
        if json:
            self.stream = Stream(self._recorder, JsonLines(self._out))
        else:
            self._display = open_display(self._err, verbose=verbose, quiet=quiet, plan=plan)
            self.stream = Stream(self._recorder, self._display)

    @property
    def finished(self) -> Finished | None:
        """The last event, where it has come."""
        return self._recorder.finished

    def note(self, text: str) -> None:
        """Something to know before it begins."""
        self.stream(Warned(at=0.0, message=text))

    def say(self, line: str) -> None:
        """Show a line at once."""
        if self._display is None:
            self._err.write(f"{line}\n")
            return
        with contextlib.suppress(Exception):
            self._display.say(line)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Let the display move meanwhile."""
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        display = self._display
        with contextlib.suppress(Exception):  # then it stands still; the migration does not
            while display is not None:
                if not self.stream.held:
                    display.tick()
                await asyncio.sleep(TICK)

    def end(self, error: Exception | None = None) -> None:
        """Show how it ended. Ctrl-C ends only the showing."""
        self.stream.release()
        if self.finished is None and error is not None:
            # What went wrong before there was a migration: who reads events hears of it too.
            self.stream(
                Finished(at=0.0, outcome="failed", seconds=0.0, runs_on="", message=str(error))
            )
        try:
            if self._display is not None:
                with contextlib.suppress(Exception):
                    self._display.close()
                self._report()
            self._out.close()
            self._err.close()
        except KeyboardInterrupt:
            return
        if self._verbose:
            say(
                *(f"entourage: the display failed: {failure!r}" for failure in self.stream.failures)
            )

    def _report(self) -> None:
        show_ending(self._out, self._recorder.events, verbose=self._verbose, quiet=self._quiet)


def show_ending(
    out: Outlet, events: Iterable[AnyEvent], *, verbose: bool = False, quiet: bool = False
) -> None:
    """Show how a migration ended, with its tables and its timeline.

    Args:
        out: Where to.
        events: All of them.
        verbose: Show more.
        quiet: Show how it ended, and nothing else.
    """
    console, glyphs = console_for(out), glyphs_for(out)
    for part in ending(events, width=console.width, glyphs=glyphs, verbose=verbose, quiet=quiet):
        console.print(part)
