"""Make sure that a domain runs on its target, whatever was begun before and by whom.

Both hosts are asked first. What is under way is found and waited for; what is in doubt is settled
by `entourage recover`; what has moved has moved. So this can be killed at any moment and done again
by another process, also beside one that was thought to be dead: of two `entourage migrate` of one
domain the second is refused by the domain's lock on its host.

Where nothing was ever begun with a domain, that is not asked beforehand: three questions, each by
a process here and one there, are more work than many a migration. They are asked where the
migration says that it was not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec

from entourage.errors import EntourageError
from entourage.fleet import whereabouts
from entourage.fleet.ensure_off import ensure_off
from entourage.fleet.remote import Ended, Remote, StandingThere
from entourage.fleet.values import Move, Result
from entourage.fleet.whereabouts import both, elsewhere, runs, unsettled

_LOOK_EVERY: Final = 1.0  # seconds
_OUTCOMES: Final[Mapping[str, str]] = {
    "moved": "moved",
    "clean-up-incomplete": "moved",
    "refused": "refused",
    "rolled-back": "back",
    "failed": "back",
    "guest-ended": "off",
}

_UUID: Final = 36  # characters
_NOT_BEGUN: Final = frozenset({"", "refused", "failed"})

Heard = Callable[[Move, Mapping[str, Any]], None]


class _Unknown(Exception):  # noqa: N818 - what became of a move then is
    """A host did not answer, after something was begun there."""

    def __init__(self, error: EntourageError) -> None:
        super().__init__(str(error))
        self.error = error


class Ensure:
    """Makes sure of one move after the other.

    Args:
        remote: The hosts.
        options: More of `entourage migrate`.
        heard: Is told what happens to a move, as `entourage migrate --json` does.
    """

    def __init__(
        self, remote: Remote, options: tuple[str, ...] = (), heard: Heard = lambda _, __: None
    ) -> None:
        self._remote = remote
        self._options = options
        self._heard = heard

    async def __call__(self, move: Move, *, first: bool = False) -> Result:
        """Do it; what came of it. Raises nothing of Entourage's own.

        Args:
            move: Which.
            first: Nobody can have begun anything with it in this campaign.
        """
        if move.off:
            result = await ensure_off(self._remote, move, self._heard)
            if result is not None:
                return result
            first = False  # it was started since
        begun, last = False, EntourageError("its hosts do not answer")
        for number in range(whereabouts.ROUNDS):
            try:
                return await self._make_sure(move, first=first and not number)
            except _Unknown as error:
                begun, last = True, error.error
                await asyncio.sleep(whereabouts.LOOK_AGAIN)
            except EntourageError as error:
                if not begun:
                    return Result(kind="back", message=error.what, remedy=error.remedy)
                last = error
                await asyncio.sleep(whereabouts.LOOK_AGAIN)
        return Result(
            kind="doubt",
            message=f"what became of it is not known: {last.what}",
            remedy="; ".join(
                one
                for one in (
                    last.remedy,
                    f"`entourage status` on {move.source} and {move.target}",
                )
                if one
            ),
        )

    async def _make_sure(self, move: Move, *, first: bool) -> Result:
        begun, refused = False, None
        try:
            for number in range(whereabouts.ROUNDS + first):
                asked = bool(number) or not first
                standing = await self._look(move) if asked else None
                if isinstance(standing, Result):
                    return _with(standing, refused)
                if standing is None:
                    if refused is not None and not await self._is_anothers(move, refused):
                        return refused
                    begun = asked
                    result, begun_there = await self._migrate(move)
                    if not (asked or begun_there):  # see why: it has moved, or another one moves it
                        refused = result
                        continue
                    begun = True
                    if result is not None and not await self._is_anothers(move, result):
                        return result
                else:
                    begun = True
                    await self._settle(move, standing)
                refused = None
        except EntourageError as error:
            if begun:
                raise _Unknown(error) from error
            raise
        return Result(
            kind="doubt",
            message="who runs it is in doubt",
            remedy=f"`entourage status` on {move.source} and {move.target}",
        )

    async def _migrate(self, move: Move) -> tuple[Result | None, bool]:
        """Have it move.

        Returns:
            What came of it, None where both hosts are to be asked; and whether it had started
            there: of a connection that was lost before it had said anything, that is asked later.
        """
        said = started = False
        stranger = ""
        ends: list[asyncio.Task[Any]] = []

        def heard(event: Mapping[str, Any]) -> None:
            nonlocal said, started, stranger
            said = said or bool(event)
            if event.get("event") == "migration-started" and not started:
                started, uuid = True, str(event.get("uuid", ""))[:_UUID]
                if uuid and uuid.casefold() != move.uuid.casefold():
                    stranger = uuid
                    ends.append(asyncio.create_task(self._remote.abort(move.name, move.source)))
            self._heard(move, event)

        try:
            ended = await self._remote.migrate(
                move.name, move.source, move.target, self._options, heard
            )
        finally:
            await asyncio.gather(*ends, return_exceptions=True)
        if stranger:
            return _stranger(move, stranger, ended), False
        outcome = str(ended.events.get("outcome", ""))
        if ended.is_lost or (started and not outcome):  # the latter was killed there
            return None, said
        return _result(ended), started or outcome not in _NOT_BEGUN

    async def _settle(self, move: Move, standing: StandingThere) -> None:
        """What was begun by somebody is waited for, or is settled."""
        if standing.doing:
            await self._until_it_has_ended(move)
        else:
            await self._remote.recover(move.name, move.source)

    async def _look(self, move: Move) -> Result | StandingThere | None:
        """How it ended already; or what is under way, or not settled; or None: it can begin."""
        standing = await unsettled(self._remote, move)
        if standing is not None:
            return standing
        here, there = await both(self._remote, move)
        if runs(there, move) and not runs(here, move):
            return Result(kind="moved")
        if not runs(here, move):
            return await self._find(move)
        return None

    async def _is_anothers(self, move: Move, result: Result) -> bool:
        """Whether it was refused because another process moves it, which is then waited for."""
        if result.kind not in {"back", "refused"}:
            return False
        standings = await self._remote.standing(move.source)
        return any(one.uuid == move.uuid and one.doing for one in standings)

    async def _find(self, move: Move) -> Result:
        """It is on neither: it has just arrived, is on another host of the fleet, or is off."""
        if runs(await self._remote.room(move.target), move):
            return Result(kind="moved")
        return await elsewhere(self._remote, move)

    async def _until_it_has_ended(self, move: Move) -> None:
        while True:
            standings = await self._remote.standing(move.source)
            if not any(one.uuid == move.uuid and one.doing for one in standings):
                return
            await asyncio.sleep(_LOOK_EVERY)


def _with(found: Result, refused: Result | None) -> Result:
    """What was found where a migration had not begun, with why it had not."""
    if refused is None or not found.message:
        return found
    return msgspec.structs.replace(found, message=f"{found.message}; {refused.message}")


def _stranger(move: Move, uuid: str, ended: Ended) -> Result:
    """Since it was planned, another domain was made by its name, which was to stay."""
    moved = _OUTCOMES.get(str(ended.events.get("outcome", ""))) == "moved"
    what = "and has moved in its place" if moved else "and was not to move"
    return Result(
        kind="back",
        message=f"another domain is called {move.name} on {move.source} now, {uuid}, {what}",
        remedy="make a new plan",
    )


def _result(ended: Ended) -> Result | None:
    """What a migration ended with; None: look at both hosts again."""
    message = str(ended.events.get("message", "")) or ended.said
    remedy = str(ended.events.get("remedy", ""))
    outcome = str(ended.events.get("outcome", ""))
    if ended.is_lost or outcome == "in-doubt":
        return None
    if not outcome:  # it was not begun: another command works on it, or it was typed wrongly
        return Result(kind="back", message=message or f"exit status {ended.status}", remedy=remedy)
    kind = _OUTCOMES.get(outcome)
    if kind is None:
        return None
    blackout = ended.events.get("blackout")
    told: Any = ended.events.get("problems")
    problems = cast("list[Any]", told) if isinstance(told, list) else []
    return Result(
        kind=kind,  # type: ignore[arg-type]
        message=message if kind != "moved" else "; ".join(str(one) for one in problems),
        remedy=remedy if kind != "moved" else "",
        blackout=blackout if kind == "moved" and isinstance(blackout, float) else None,
    )
