"""``entourage migrate``: runs a migration, shows it, and says how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from entourage.cli.audience import Audience
from entourage.cli.signals import signals_to
from entourage.cli.tell import tell, tell_bug
from entourage.errors import EntourageError
from entourage.events import Finished, Outcome
from entourage.source.migration import Migration
from entourage.source.request import Request

EXIT_STATUS: Final[dict[Outcome, int]] = {
    "moved": 0,
    "saved": 0,
    "can-move": 0,
    "failed": 1,
    "refused": 3,
    "rolled-back": 4,
    "guest-ended": 7,
    "clean-up-incomplete": 5,
    "in-doubt": 6,
}


class Ended(NamedTuple):
    """How a migration ended.

    Attributes:
        status: The exit status.
        interrupted: Its user has asked for its end (Ctrl-C, or what else ends a command), whether
            it went back for that or was as good as done.
    """

    status: int
    interrupted: bool


def migrate(
    make_request: Callable[[Callable[[str], None]], Request],
    *,
    json: bool,
    verbose: bool,
    quiet: bool,
    dry_run: bool,
) -> int:
    """Move a domain; returns the exit status. See ``attempt``."""
    return attempt(make_request, json=json, verbose=verbose, quiet=quiet, dry_run=dry_run).status


def attempt(
    make_request: Callable[[Callable[[str], None]], Request],
    *,
    json: bool,
    verbose: bool,
    quiet: bool,
    dry_run: bool,
) -> Ended:
    """Move a domain.

    Args:
        make_request: Makes the request of what was typed; is told where notes on it go.
        json: Write events as lines of JSON, and nothing else, to standard output.
        verbose: Show more.
        quiet: Show less: neither the plan nor how far it is.
        dry_run: Only TEST is done: its plan is the result, and is not shown before it.
    """
    asked_to_end: list[str] = []
    audience = Audience(json=json, verbose=verbose, quiet=quiet, plan=not (quiet or dry_run))
    try:
        request = make_request(audience.note)
        audience.stream.hold = request.live
        finished = asyncio.run(run(Migration(request, audience.stream), audience, asked_to_end))
    except Exception as error:  # noqa: BLE001 - where the domain runs is said even after a bug
        return Ended(failed(audience, error, verbose=verbose), bool(asked_to_end))
    audience.end()
    return Ended(EXIT_STATUS[finished.outcome], bool(asked_to_end))


def failed(audience: Audience, error: Exception, *, verbose: bool) -> int:
    """Show how a migration ended that did not go well; returns the exit status."""
    audience.end(error)
    if isinstance(error, EntourageError):
        return tell(error, verbose=verbose)
    told = tell_bug(error, verbose=verbose)
    status = EXIT_STATUS[audience.finished.outcome] if audience.finished else 0
    return status or told


async def run(migration: Migration, audience: Audience, asked_to_end: list[str]) -> Finished:
    """Run it; whoever asks it to end is written down."""

    def interrupt(why: str) -> bool:
        asked_to_end.append(why)
        return migration.interrupt(why)

    with signals_to(interrupt, audience.say):
        async with audience.watching():
            return await migration.run()
