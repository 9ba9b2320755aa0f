"""The end of a checkpoint: the guest goes on here, and what was saved of it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from entourage import messages
from entourage.errors import (
    EntourageError,
    HypervisorError,
    Interrupted,
    LinkError,
    MigrationFailed,
    ours,
)
from entourage.events import Warned
from entourage.source.abort import abort_there, come_back, go_on
from entourage.source.endings import guest_ended
from entourage.source.role import SourceSide
from entourage.source.session import Session

_LOOK_AGAIN = 0.1  # seconds
_ANSWERS_WITHIN = 10.0  # seconds for a target that was told to give it up
_NOT_KNOWN = "whether the checkpoint is kept shows in its directory: `entourage saved` there"


class Keeping:
    """Has the target keep what has landed, while the guest goes on.

    Args:
        session: All that is open.
        given_up: Why the user has interrupted it; empty while he has not.

    Attributes:
        done: It is kept, whatever the user wants now.
        failed: Why it is not, once that is known.
    """

    def __init__(self, session: Session, given_up: Callable[[], str]) -> None:
        self.done = False
        self.failed: EntourageError | None = None
        self._session = session
        self._given_up = given_up

    def hurries(self) -> bool:
        """Whether somebody waits for the prompt."""
        return bool(self._given_up())

    async def ask(self) -> None:
        """Ask for it, and take back what was asked where the user gives it up meanwhile.

        What the target answers then is the truth: it may have been as good as done.
        """
        asked = asyncio.create_task(self._session.link.call(messages.PUBLISH, None))
        try:
            while not (asked.done() or self._given_up()):
                await asyncio.wait({asked}, timeout=_LOOK_AGAIN)
            if not asked.done():
                await abort_there(self._session)
                await asyncio.wait({asked}, timeout=_ANSWERS_WITHIN)
            if asked.done():
                asked.result()
                self.done = True
        except LinkError as error:
            error.message += f"; {_NOT_KNOWN}"
            self.failed = error
        except Exception as error:  # noqa: BLE001 - told once the guest runs
            why = self._given_up()
            self.failed = Interrupted(f"given up: {why}") if why else ours(error)
        finally:
            asked.cancel()


async def keep(session: Session, side: SourceSide, keeping: Keeping) -> tuple[str, ...]:
    """Let the guest run here again, and have the directory keep what has landed in it.

    For the rules of the hand-over it is a migration that went back: nobody but this host may ever
    run the guest by it. Digests are made while the guest runs.

    Args:
        session: All that is open; memory has landed, and every device has gone through SYNC.
        side: The migration's source.
        keeping: Asks the target.

    Returns:
        What was not put back or not cleaned up, each a sentence.

    Raises:
        MigrationFailed: The guest goes on, and nothing was kept.
        GuestEnded: The guest has ended by itself.
        InDoubt: The guest could not be let run again; nobody else may.
    """
    session.note("writing the checkpoint down")
    before: Callable[[], Awaitable[None]] | None = keeping.ask
    try:
        await session.machine.check_stood_still(session.synced_at)
    except EntourageError as error:
        keeping.failed, before = error, None
    if before is not None and session.options.stays_paused:
        await keeping.ask()  # where it fails, the guest goes on
        before = None
        if keeping.done:
            session.machine.stay_paused()
    problems = await come_back(session, side, hurries=keeping.hurries, before=before)
    if side.has_ended:
        raise await guest_ended(session, problems)
    if keeping.done and (mirroring := session.machine.mirroring) is not None:
        try:
            await mirroring.kept()
        except HypervisorError as error:
            text = (
                "what is written from now on is not recorded, and a save `--since` this checkpoint"
                f" will be refused: {error.message}"
            )
            warning = Warned(
                at=session.clock.now(), message=text, device=error.device, host=session.source
            )
            session.emit(warning)
    if not keeping.done:
        problems += await go_on(session, hurries=keeping.hurries)
        error = keeping.failed or Interrupted(_NOT_KNOWN, host=session.target)
        kind = Interrupted if isinstance(error, Interrupted) else MigrationFailed
        raise kind(
            error.message,
            device=error.device,
            host=error.host or session.target,
            remedy=error.remedy,
            recovery_errors=problems,
        ) from error
    return tuple(problems)
