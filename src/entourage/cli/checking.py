"""``entourage check`` of several domains: TEST of each, over one connection to the target."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from entourage.cli.audience import Audience
from entourage.cli.migrate import EXIT_STATUS, failed, run
from entourage.cli.tell import INTERRUPTED
from entourage.source.kept_link import KeptLink
from entourage.source.migration import Migration
from entourage.source.request import Request

_WORST = (3, 0)
"""By how much they matter: another status than these is an error, and is the first."""


def check_several(
    make_request: Callable[[str, Callable[[str], None]], Request],
    domains: Sequence[str],
    *,
    json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    """TEST one domain after the other; returns the exit status.

    Args:
        make_request: Makes the request of one; is told where notes on it go.
        domains: Their names.
        json: Write events as lines of JSON; each domain has one that is its last, ``finished``.
        verbose: Show more.
        quiet: Show less.

    Returns:
        0 where all can move, 3 where one is refused, else the status of the first error.
    """
    return asyncio.run(_all(make_request, domains, json=json, verbose=verbose, quiet=quiet))


async def _all(
    make_request: Callable[[str, Callable[[str], None]], Request],
    domains: Sequence[str],
    *,
    json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    found: list[int] = []
    asked_to_end: list[str] = []
    async with KeptLink() as kept:
        for name in domains:
            audience = Audience(json=json, verbose=verbose, quiet=quiet)
            try:
                request = make_request(name, audience.note)
                migration = Migration(request, audience.stream, kept.open)
                finished = await run(migration, audience, asked_to_end)
            except Exception as error:  # noqa: BLE001 - told; the next one is tested all the same
                found.append(failed(audience, error, verbose=verbose))
            else:
                audience.end()
                found.append(EXIT_STATUS[finished.outcome])
            if asked_to_end:
                break
    if asked_to_end and len(found) < len(domains):
        return INTERRUPTED
    return next((one for one in found if one not in _WORST), 3 if 3 in found else 0)  # noqa: PLR2004
