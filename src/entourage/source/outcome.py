"""After GO: how the source finds out who runs the domain, also over new links."""

from __future__ import annotations

import asyncio
import contextlib

from entourage import messages
from entourage.errors import InDoubt, LinkError
from entourage.handover.values import TERMINAL, Connected, Input
from entourage.hosts.link import Link
from entourage.hosts.route import host_of
from entourage.settings.model import Settings
from entourage.source.doings import DOINGS
from entourage.source.opening import another_link
from entourage.source.role import SourceSide
from entourage.source.session import Session

_ASK_AFTER = 5.0  # seconds without an answer on a link that lives
_TRY_AGAIN = 1.0  # seconds between two attempts to reach the target


async def await_outcome(
    session: Session,
    side: SourceSide,
    decided: asyncio.Event,
    settings: Settings,
) -> bool:
    """Return once the migration is decided: the record is BACK or GONE.

    Args:
        session: All that the migration has open.
        side: Its source's half.
        decided: Is set when it is decided.
        settings: How long to ask.

    Returns:
        Whether the target is known to know it.

    Raises:
        InDoubt: The target could not be reached, or did not say, for ``doubt-timeout`` seconds.
    """
    try:
        async with asyncio.timeout(settings.migration.doubt_timeout):
            told = await _answered(session.link, side, decided)
            while not decided.is_set():
                with contextlib.suppress(LinkError):
                    async with another_link(session) as again:
                        await side.take(Connected(again.welcome.journal))
                        told = await _answered(again.link, side, decided)
                if not decided.is_set():
                    await asyncio.sleep(_TRY_AGAIN)
            return told
    except TimeoutError:
        await side.take(Input.UNREACHABLE)  # after what is being acted on, if anything is
        if decided.is_set() or side.state.record in TERMINAL:
            return False  # as where this process stood still, and time and answer came together
        raise _not_answered(session) from None


def _not_answered(session: Session) -> InDoubt:
    """What is told where the target has not said what it decided."""
    name, told = session.machine.domain.name, session.failures_there.last
    doing = DOINGS[session.kind]
    remedy = (
        f"once {session.target} can be reached: `entourage recover {name}`; if it is off"
        f" for good: `entourage recover {name} --target-is-fenced`"
    )
    if (far := host_of(session.target)) and not doing.moves:
        remedy = (
            f"once {far} can be reached: `entourage recover {name}`; if it is off for good, and"
            f" nobody has restored that directory, or ever will: `entourage recover {name}"
            " --target-is-fenced`"
        )
    elif not doing.moves:  # its other half is a process of this host
        remedy = f"see that the save's storage answers, then `entourage recover {name}`"
    return InDoubt(
        f"{session.target} was told {doing.asked} {name} and has not answered since"
        f"{f', but for this: {told.message}' if told else ''}; {doing.stays}",
        host=session.host,
        remedy=remedy,
    )


async def _answered(link: Link, side: SourceSide, decided: asyncio.Event) -> bool:
    """Wait for the answer while the link is up, and ask again at intervals.

    Returns:
        Whether the target has acted on it too.
    """
    lost = asyncio.create_task(link.lost())
    answer = asyncio.create_task(decided.wait())
    try:
        while link.alive and not decided.is_set():
            done, _ = await asyncio.wait(
                {lost, answer}, timeout=_ASK_AFTER, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                await side.take(Input.ABORT)  # in doubt: asks
        if side.state.record in TERMINAL and link.alive:
            with contextlib.suppress(LinkError):
                last = await link.call(messages.BYE, None)
                side.problems += last.problems
                return last.settled
        return False
    finally:
        lost.cancel()
        answer.cancel()
