"""The way back of a migration that has failed here or was given up, on both hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from entourage import messages
from entourage.errors import EntourageError, InDoubt, LinkError, ours, plain_words
from entourage.events import Warned
from entourage.handover.values import Finding, Guest, Input
from entourage.hosts.link import SILENT
from entourage.source.doings import DOINGS
from entourage.source.going_on import GOES_ON_WITHIN, not_known
from entourage.source.role import SourceSide
from entourage.source.session import Session

_UNDO_WITHIN = 60.0  # seconds for the target to undo what it made
_SILENT_OF_OLD = 3.0  # seconds: of an older Entourage something is heard once a second only
_LOOK_AGAIN = 0.1  # seconds
_TRY_AGAIN = 1.0  # seconds
_CAME_BACK = frozenset({Finding.CAME_BACK, Finding.CAME_BACK_DEAD})


async def at_fault(session: Session, *, hurries: Callable[[], bool]) -> EntourageError | None:
    """What is wrong with what was sent; None where nothing is, or somebody waits for the prompt.

    Args:
        session: All that is open.
        hurries: Whether somebody does.
    """
    if hurries():
        return None
    asking = asyncio.create_task(session.machine.at_fault())
    try:
        await asyncio.wait({asking}, timeout=_LOOK_AGAIN)
        if not asking.done():
            session.note("looking whether what was sent is damaged")
        while not (asking.done() or hurries()):
            await asyncio.wait({asking}, timeout=_LOOK_AGAIN)
        if not asking.done() or asking.cancelled():
            return None
        # What it fails by is no reason to leave anything as it is.
        return None if asking.exception() else asking.result()
    finally:
        asking.cancel()


async def go_on(session: Session, *, hurries: Callable[[], bool]) -> list[str]:
    """What was saved is removed: a guest goes on that full storage has stopped meanwhile.

    Args:
        session: All that is open; the target has undone what it made, as far as it will soon.
        hurries: Whether somebody waits for the prompt.

    Returns:
        What is in the way of that, a sentence; empty where nothing is.
    """
    if DOINGS[session.kind].moves:
        return []
    asking = asyncio.create_task(session.machine.go_on())
    began = session.clock.now()
    try:
        while not asking.done():
            # Also where somebody waits: it is a question or two, and the guest may stand still.
            if session.clock.now() - began > (SILENT if hurries() else GOES_ON_WITHIN):
                break
            await asyncio.wait({asking}, timeout=_LOOK_AGAIN)
        if not asking.done():
            why = "its hypervisor has not answered"
        elif error := asking.exception():
            why = plain_words(error)
        else:
            return []
        return [not_known(session.machine.domain.name, session.hypervisor, why)]
    finally:
        asking.cancel()


async def come_back(
    session: Session,
    side: SourceSide,
    *,
    hurries: Callable[[], bool],
    before: Callable[[], Awaitable[object]] | None = None,
) -> list[str]:
    """Let the guest run here again, put its devices back, and have the target undo what it made.

    Args:
        session: All that is open.
        side: The migration's source.
        hurries: See ``undone_there``.
        before: What is done first of what the target does, while the guest is let run; never
            raises.

    Returns:
        What was not put back, not written down or not undone, each a sentence.

    Raises:
        InDoubt: The guest could not be let run again; nobody else may.
    """

    async def over_there() -> list[str]:
        if before is not None:
            await before()
        return await abort_there(session)

    undone = asyncio.create_task(over_there())
    failed = await _failure(side)
    if failed is not None and side.state.live:
        # A hypervisor that has refused once may not do so again; its guest may stand still.
        await asyncio.wait({undone}, timeout=_TRY_AGAIN)
        failed = await _failure(side) or failed
    there = await undone_there(session, undone, hurries=hurries)
    await side.idle()  # where it was not written down, the target's NEVER is another occasion
    for note in side.notes:
        session.emit(Warned(at=session.clock.now(), message=note, host=session.source))
    problems = [*side.problems, *there]
    if failed is None or not _CAME_BACK.isdisjoint(side.findings):
        return problems
    name, source = session.machine.domain.name, session.source
    recover = f"mend that, then `entourage recover {name}` on {session.host}"
    if side.runs_again or side.state.guest is Guest.DEAD:
        return [*problems, f"{source} cannot finish going back: {plain_words(failed)} ({recover})"]
    said = DOINGS[session.kind].stuck.format(name=name, source=source)
    said += f": {plain_words(failed)}; {session.target} was not told to run it"
    raise InDoubt(
        "; ".join([said, *problems]),
        host=session.host,
        remedy=recover,
    ) from failed


async def _failure(side: SourceSide) -> Exception | None:
    """Bring the source back; what kept it from that, a bug perhaps."""
    try:
        await side.take(Input.ABORT)
    except Exception as error:  # noqa: BLE001 - told, a bug perhaps, once the target was waited for
        return ours(error)
    return None


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
    session: Session, undone: asyncio.Task[list[str]], *, hurries: Callable[[], bool]
) -> list[str]:
    """Wait for the target to have undone what it made.

    Args:
        session: All that is open.
        undone: ``abort_there``.
        hurries: Whether somebody waits for the prompt by now: then only as long as the target says
            anything at all. Else the link's own patience decides.

    Returns:
        What was not undone, each a sentence.
    """
    old = session.welcome.protocol < messages.PROVES_WAYS
    patience = _SILENT_OF_OLD if old else SILENT
    while not undone.done() and not (hurries() and session.link.quiet >= patience):
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
