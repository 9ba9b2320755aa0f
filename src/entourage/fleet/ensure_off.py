"""Make sure that a domain that is off is its target's, whatever was begun before and by whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from entourage.errors import DomainBusy, EntourageError, UsageError
from entourage.fleet import whereabouts
from entourage.fleet.remote import Ended, Remote, RoomThere
from entourage.fleet.values import Move, Result
from entourage.fleet.whereabouts import both, elsewhere, is_off, runs, unsettled

OFFLINE: Final = ("--offline",)


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
    kept: bool | None = None  # whether its source had it, off, when that last answered
    begun = busy = wrong = False
    for number in range(whereabouts.ROUNDS):
        if number:
            await asyncio.sleep(whereabouts.LOOK_AGAIN)
        busy = wrong = False
        try:
            here, there = await both(remote, move)
            kept = is_off(here, move)
            if runs(here, move):
                return None
            if (result := await _ended_before(remote, move, here, there)) is not None:
                return result
            await _settle(remote, move)
            begun = True
            ended = await remote.migrate(
                move.name, move.source, move.target, OFFLINE, lambda event: heard(move, event)
            )
            if (result := _result(ended)) is not None:
                return result
            problem = EntourageError(_message(ended), remedy=_remedy(ended))
            busy = ended.status == DomainBusy.exit_code  # what becomes of another one's command?
            wrong = ended.status == UsageError.exit_code  # it was given to another host, perhaps
            if not (ended.is_lost or busy) and is_off(await remote.room(move.source), move):
                return _back(problem)
        except EntourageError as error:
            if not begun and kept is not False:
                return _back(error)
            problem = error
    problem = problem or EntourageError("its hosts do not answer")
    if busy and kept:  # another command has its lock; it says so of its target's as well
        return _back(problem)
    return Result(
        kind="doubt",
        message=f"which host has it is not known: {problem.what}",
        remedy=_goes_on(move, problem.remedy, wrong=wrong),
    )


async def _ended_before(
    remote: Remote, move: Move, here: RoomThere, there: RoomThere
) -> Result | None:
    """How it has ended already, as far as hosts say; None: it can move, or go on."""
    if is_off(here, move):
        return None
    if is_off(there, move) or runs(there, move):
        return Result(kind="moved")
    if any(one.name == move.name for one in (*here.domains, *here.off_domains)):
        return Result(
            kind="back",
            message=f"another domain is called {move.name} on {move.source} now",
            remedy="make a new plan",
        )
    found = await elsewhere(remote, move)
    # The source may have let go of what the target has yet to define: to begin again is safe.
    goes_on = move.uuid.lower() in there.claimed and found.kind != "elsewhere"
    return None if goes_on else found


async def _settle(remote: Remote, move: Move) -> None:
    """Have what is in doubt be settled first."""
    one = await unsettled(remote, move)
    if one is not None and not one.doing:
        await remote.recover(move.name, move.source)


def _result(ended: Ended) -> Result | None:
    """What it ended with; None: both hosts are to be looked at."""
    outcome = ended.events.get("outcome")
    if ended.is_lost:
        return None
    if outcome == "in-doubt":  # only its user can know where it is
        return Result(kind="doubt", message=_message(ended), remedy=_remedy(ended))
    if outcome == "refused":
        return Result(kind="refused", message=_message(ended), remedy=_remedy(ended))
    return Result(kind="moved") if outcome == "moved" else None


def _goes_on(move: Move, remedy: str, *, wrong: bool) -> str:
    """What to do first, where that is known, and what to type then.

    Args:
        move: Which.
        remedy: What the command said.
        wrong: To type that command again is of no use.
    """
    command = f"`entourage migrate --offline {move.name} "
    if command in remedy:  # it has said itself what goes on, perhaps to another host
        return f"{remedy}, on {move.source}"
    if wrong and remedy:
        return remedy
    command += f"{move.target}`"
    return "; ".join(one for one in (remedy, f"{command} on {move.source}") if one)


def _message(ended: Ended) -> str:
    said = str(ended.events.get("message", "")) or ended.said
    return said or f"exit status {ended.status}"


def _remedy(ended: Ended) -> str:
    return str(ended.events.get("remedy", ""))


def _back(error: EntourageError) -> Result:
    return Result(kind="back", message=error.what, remedy=error.remedy)
