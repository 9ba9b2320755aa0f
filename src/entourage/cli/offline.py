"""``entourage migrate --offline``: moves a domain that is off, and says how that ended."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from entourage.cli import options
from entourage.cli.migrate import EXIT_STATUS
from entourage.cli.output import put
from entourage.cli.tell import say, tell
from entourage.errors import EntourageError, InDoubt, Refused, UsageError
from entourage.events import AnyEvent, DeviceRefused, Finished, Outcome
from entourage.offline import source
from entourage.report.jsonl import JsonLines
from entourage.report.outlet import Outlet
from entourage.report.text import clean
from entourage.steps import Refusal


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was typed.

    Attributes:
        certain: The user vouches that no host has the domain.
        verbose: Show each step, but to programs. What ``--quiet`` leaves is shown anyway: there is
            no more.
    """

    domain: str
    host: str
    connect: str | None
    config: Path | None
    typed: options.Typed
    certain: bool = False
    verbose: bool = False


def run(wanted: Wanted, of_running: Mapping[str, object], *, json: bool, dry_run: bool) -> int:
    """Move it; returns the exit status.

    Args:
        wanted: What was typed.
        of_running: By the option, what only a domain that runs can be given; false: it was not.
        json: Write events as lines of JSON.
        dry_run: Only say what speaks against it.

    Raises:
        UsageError: Something of a running domain's was given, or the host cannot be one.
    """
    wrong = [option for option, value in of_running.items() if value]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: not of a domain that is off", remedy="leave it out")
    where = options.destination(wanted.host)
    settings = options.read_settings(
        wanted.config, lambda note: say(clean(f"entourage: note: {note}"))
    )

    def step(done: str) -> None:
        if wanted.verbose and not json:
            say(clean(f"entourage: {wanted.domain}: {done}"))

    asked = source.Asked(
        name=wanted.domain,
        route=where.route,
        connect=wanted.connect,
        settings=options.with_typed(settings, wanted.typed),
        certain=wanted.certain,
        told=step,
    )
    began, told = time.monotonic(), _Told(asked, json=json)
    try:
        if dry_run:
            refused = asyncio.run(source.test(asked))
        else:
            asyncio.run(source.move(asked))
            refused = ()
    except Refused as error:
        refused = error.refusals
    except EntourageError as error:
        if json:
            outcome = "in-doubt" if isinstance(error, InDoubt) else "failed"
            told.end(outcome, time.monotonic() - began, error)
        return tell(error, verbose=wanted.verbose)
    outcome: Outcome = "refused" if refused else "can-move" if dry_run else "moved"
    told.refused(refused)
    told.end(outcome, time.monotonic() - began, Refused(refused) if refused else None)
    return EXIT_STATUS[outcome]


class _Told:
    """Who looks on: a person, or a program that reads JSON.

    Args:
        asked: The move.
        json: Whether it is a program.
    """

    def __init__(self, asked: source.Asked, *, json: bool) -> None:
        self._asked = asked
        self._out = Outlet(sys.stdout) if json else None
        self._lines = JsonLines(self._out) if self._out is not None else None

    def refused(self, refusals: Sequence[Refusal]) -> None:
        """What speaks against it."""
        for one in refusals:
            if self._lines is None:
                put(clean(f"✗ {one}"))
            else:
                self._say(
                    DeviceRefused(
                        at=0.0,
                        device=one.device,
                        host=one.host,
                        reason=one.reason,
                        remedy=one.remedy,
                    )
                )

    def end(self, outcome: Outcome, seconds: float, error: EntourageError | None = None) -> None:
        """How it ended; and why it was refused or failed."""
        name, host = self._asked.name, self._asked.host
        if self._lines is not None:
            self._say(
                Finished(
                    at=0.0,
                    outcome=outcome,
                    seconds=seconds,
                    runs_on="",
                    message=error.what if error else "",
                    remedy=error.remedy if error else "",
                )
            )
        elif outcome == "moved":
            put(f"{name} is on {host}, off; nothing of it is here any more")
        elif outcome == "can-move":
            put(f"{name} can move to {host}, off; nothing was touched")
        else:
            put(f"{name} cannot move to {host}; nothing was touched")
        if self._out is not None:
            self._out.close()

    def _say(self, event: AnyEvent) -> None:
        if self._lines is not None:
            self._lines(event)
