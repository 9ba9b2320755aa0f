"""``entourage migrate``: runs a migration, shows it, and says how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

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


def migrate(
    make_request: Callable[[Callable[[str], None]], Request],
    *,
    json: bool,
    verbose: bool,
    quiet: bool,
    dry_run: bool,
) -> int:
    """Move a domain; returns the exit status.

    Args:
        make_request: Makes the request of what was typed; is told where notes on it go.
        json: Write events as lines of JSON, and nothing else, to standard output.
        verbose: Show more.
        quiet: Show less: neither the plan nor how far it is.
        dry_run: Only TEST is done: its plan is the result, and is not shown before it.
    """
    audience = Audience(json=json, verbose=verbose, quiet=quiet, plan=not (quiet or dry_run))
    try:
        request = make_request(audience.note)
        audience.stream.hold = request.live
        finished = asyncio.run(_run(Migration(request, audience.stream), audience))
    except EntourageError as error:
        audience.end(error)
        return tell(error, verbose=verbose)
    except Exception as error:  # noqa: BLE001 - where the domain runs is said even after a bug
        audience.end(error)
        told = tell_bug(error, verbose=verbose)
        return (EXIT_STATUS[audience.finished.outcome] if audience.finished else 0) or told
    audience.end()
    return EXIT_STATUS[finished.outcome]


async def _run(migration: Migration, audience: Audience) -> Finished:
    with signals_to(migration.interrupt, audience.say):
        async with audience.watching():
            return await migration.run()
