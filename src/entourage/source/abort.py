"""Having the target undo what it made, after a migration has failed here or was given up."""

from __future__ import annotations

import asyncio

from entourage import messages
from entourage.errors import EntourageError, LinkError, plain_words
from entourage.hosts.link import SILENT
from entourage.source.session import Session

_UNDO_WITHIN = 60.0  # seconds for the target to undo what it made
_SILENT_OF_OLD = 3.0  # seconds: of an older Entourage something is heard once a second only
_LOOK_AGAIN = 0.1


async def abort_there(session: Session) -> list[str]:
    """Ask the target to undo what it made. Without an answer, its agent does so by itself.

    Returns:
        What was not undone, each a sentence.
    """
    try:
        async with asyncio.timeout(_UNDO_WITHIN):
            return await session.link.call(messages.ABORT, None)
    except (LinkError, TimeoutError) as error:
        return [_left_there(session, plain_words(error))]
    except EntourageError as error:
        return [str(error)]


async def undone_there(
    session: Session, undone: asyncio.Task[list[str]], *, hurry: bool
) -> list[str]:
    """Wait for the target to have undone what it made.

    Args:
        session: All that is open.
        undone: ``abort_there``.
        hurry: Somebody waits for the prompt: only as long as the target says anything at all. Else
            the link's own patience decides.

    Returns:
        What was not undone, each a sentence.
    """
    old = session.welcome.protocol < messages.PROVES_WAYS
    patience = (_SILENT_OF_OLD if old else SILENT) if hurry else float("inf")
    while not undone.done() and session.link.quiet < patience:
        await asyncio.wait([undone], timeout=_LOOK_AGAIN)
    if not undone.done():
        undone.cancel()
        await asyncio.wait([undone])
    if undone.cancelled():
        return [_left_there(session, f"nothing was heard for {session.link.quiet:.1f} s")]
    return undone.result()


def _left_there(session: Session, why: str) -> str:
    remedy = f"`entourage status` on {session.keeper} shows whether anything is left"
    return f"{session.target} undoes by itself what it made ({why}): {remedy}"
