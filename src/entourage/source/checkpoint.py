"""The end of a checkpoint: the guest goes on here, and what was saved of it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from entourage import messages
from entourage.errors import EntourageError, Interrupted, MigrationFailed, ours
from entourage.source.abort import come_back
from entourage.source.endings import guest_ended
from entourage.source.role import SourceSide
from entourage.source.session import Session

_LOOK_AGAIN = 0.1  # seconds


async def keep(
    session: Session, side: SourceSide, *, given_up: Callable[[], str]
) -> tuple[str, ...]:
    """Let the guest run here again, and have the directory keep what has landed in it.

    For the rules of the hand-over it is a migration that went back: nobody but this host may ever
    run the guest by it. Digests are made while the guest runs.

    Args:
        session: All that is open; memory has landed, and every device has gone through SYNC.
        side: The migration's source.
        given_up: Why the user has interrupted it; empty while he has not.

    Returns:
        What was not put back or not cleaned up, each a sentence.

    Raises:
        MigrationFailed: The guest goes on, and nothing was kept.
        GuestEnded: The guest has ended by itself.
        InDoubt: The guest could not be let run again; nobody else may.
    """
    failed: list[EntourageError] = []

    async def publish() -> None:
        asked = asyncio.create_task(session.link.call(messages.PUBLISH, None))
        try:
            while not (asked.done() or given_up()):
                await asyncio.wait({asked}, timeout=_LOOK_AGAIN)
            if asked.done():
                asked.result()
            else:
                failed.append(Interrupted(f"given up: {given_up()}"))
        except Exception as error:  # noqa: BLE001 - told below, once the guest runs
            failed.append(ours(error))
        finally:
            asked.cancel()

    session.note("writing the checkpoint down")
    problems = await come_back(session, side, hurries=lambda: bool(given_up()), before=publish)
    if side.has_ended:
        raise await guest_ended(session, problems)
    if failed:
        [error] = failed
        kind = Interrupted if isinstance(error, Interrupted) else MigrationFailed
        raise kind(
            error.message,
            device=error.device,
            host=error.host or session.target,
            remedy=error.remedy,
            recovery_errors=problems,
        ) from error
    return tuple(problems)
