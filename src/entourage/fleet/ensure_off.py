"""Make sure that a domain that is off is its target's, whatever was begun before and by whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from entourage.errors import DomainBusy, EntourageError
from entourage.fleet.remote import Ended, Remote, RoomThere
from entourage.fleet.values import Move, Result

OFFLINE: Final = ("--offline",)
_LOOK_AGAIN: Final = 5.0  # seconds
_ROUNDS: Final = 4


async def ensure_off(
    remote: Remote, move: Move, heard: Callable[[Move, Mapping[str, Any]], None]
) -> Result | None:
    """Do it; what came of it. Raises nothing of Entourage's own.

    Args:
        remote: The hosts.
        move: Which.
        heard: Is told what happens to it.

    Returns:
        None where it runs on its source by now: then it moves as others do.
    """
    problem: EntourageError | None = None
    begun = busy = False
    for number in range(_ROUNDS):
        if number:
            await asyncio.sleep(_LOOK_AGAIN)
        try:
            found = await _found(remote, move)
            if found is not _GOES:
                return found
            begun = True
            ended = await remote.migrate(
                move.name, move.source, move.target, OFFLINE, lambda event: heard(move, event)
            )
            if (result := _result(ended)) is not None:
                return result
            problem = EntourageError(_message(ended), remedy=_remedy(ended))
            busy = _is_busy(ended)  # somebody else's command moves it: what becomes of that?
            if not (ended.is_lost or busy) and _is_off(await remote.room(move.source), move):
                return _back(problem)
        except EntourageError as error:
            if not begun:
                return _back(error)
            problem = error
    if busy and problem is not None:
        return _back(problem)
    return Result(
        kind="doubt",
        message=f"which host has it is not known: {problem}",
        remedy=f"`entourage migrate --offline {move.name} {move.target}` on {move.source}",
    )


_GOES: Final = Result(kind="back")
"""It is to be moved now, as far as both hosts say."""


async def _found(remote: Remote, move: Move) -> Result | None:
    """What both hosts say."""
    here, there = await asyncio.gather(remote.room(move.source), remote.room(move.target))
    if any(one.uuid == move.uuid for one in here.domains):
        return None
    if not _is_off(here, move):
        if _is_off(there, move) or any(one.uuid == move.uuid for one in there.domains):
            return Result(kind="moved")
        others = [*here.domains, *here.off_domains]
        if any(one.name == move.name for one in others):
            return Result(
                kind="back",
                message=f"another domain is called {move.name} on {move.source} now",
                remedy="make a new plan",
            )
    for one in await remote.standing(move.source):
        if one.uuid == move.uuid and one.role == "source" and not one.settled and not one.doing:
            await remote.recover(move.name, move.source)
    return _GOES


def _result(ended: Ended) -> Result | None:
    """What it ended with; None: both hosts are to be looked at."""
    outcome = ended.events.get("outcome")
    if ended.is_lost or outcome not in {"moved", "refused"}:
        return None
    return Result(kind="moved") if outcome == "moved" else _refused(ended)


def _is_busy(ended: Ended) -> bool:
    return ended.status == DomainBusy.exit_code and ended.events.get("outcome") == "failed"


def _refused(ended: Ended) -> Result:
    return Result(kind="refused", message=_message(ended), remedy=_remedy(ended))


def _message(ended: Ended) -> str:
    said = str(ended.events.get("message", "")) or ended.said
    return said or f"exit status {ended.status}"


def _remedy(ended: Ended) -> str:
    return str(ended.events.get("remedy", ""))


def _back(error: EntourageError) -> Result:
    return Result(kind="back", message=error.what, remedy=error.remedy)


def _is_off(room: RoomThere, move: Move) -> bool:
    return any(one.uuid == move.uuid for one in room.off_domains)
