"""``entourage migrate``: runs a migration, shows it, and says how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from entourage.cli.audience import Audience
from entourage.cli.signals import signals_to
from entourage.cli.tell import tell, tell_bug
from entourage.errors import EntourageError
from entourage.events import Finished, Outcome
from entourage.hypervisors.agents import EarlyAgent
from entourage.source.migration import Migration
from entourage.source.opening import Opening, open_session, reached
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


MakeRequest: TypeAlias = Callable[[Callable[[str], None]], Awaitable[Request]]
"""Makes a request of what was typed; is told where notes on it go."""


class Ended(NamedTuple):
    """How a migration ended.

    Attributes:
        status: The exit status.
        interrupted: Its user has asked for its end (Ctrl-C, or what else ends a command), whether
            it went back for that or was as good as done.
    """

    status: int
    interrupted: bool


async def attempt(
    make_request: MakeRequest,
    *,
    json: bool,
    verbose: bool,
    quiet: bool,
    dry_run: bool,
    agent: EarlyAgent | None = None,
) -> Ended:
    """Move a domain.

    Args:
        make_request: Makes the request of what was typed; is told where notes on it go.
        json: Write events as lines of JSON, and nothing else, to standard output.
        verbose: Show more.
        quiet: Show less: neither the plan nor how far it is.
        dry_run: Only TEST is done: its plan is the result, and is not shown before it.
        agent: The target's, where it was started already.
    """
    asked_to_end: list[str] = []
    audience = Audience(json=json, verbose=verbose, quiet=quiet, plan=not (quiet or dry_run))
    try:
        request = await make_request(audience.note)
        audience.stream.hold = request.live
        migration = Migration(request, audience.stream, _opening_by(agent))
        finished = await run(migration, audience, asked_to_end)
    except Exception as error:  # noqa: BLE001 - where the domain runs is said even after a bug
        return Ended(failed(audience, error, verbose=verbose), bool(asked_to_end))
    audience.end()
    return Ended(EXIT_STATUS[finished.outcome], bool(asked_to_end))


def _opening_by(agent: EarlyAgent | None) -> Opening:
    """What opens a session over the link to an agent that was started already."""
    if agent is None:
        return open_session
    return partial(open_session, reach=partial(reached, link_to=agent.link))


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
