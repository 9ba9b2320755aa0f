"""Where a domain is, as the hosts of a fleet say: what is asked before it moves, and after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from entourage.errors import EntourageError
from entourage.fleet.remote import Remote, RoomThere, StandingThere
from entourage.fleet.values import Move, Result

LOOK_AGAIN: Final = 5.0  # seconds, where a host did not answer, or nothing has come of it
ROUNDS: Final = 4
"""How often what is not settled is settled before it is called in doubt."""


async def both(remote: Remote, move: Move) -> tuple[RoomThere, RoomThere]:
    """What a move's source and its target have; raises EntourageError where one does not say."""
    return await asyncio.gather(remote.room(move.source), remote.room(move.target))


def runs(room: RoomThere, move: Move) -> bool:
    """Whether the domain runs on a host."""
    return any(one.uuid == move.uuid for one in room.domains)


def is_off(room: RoomThere, move: Move) -> bool:
    """Whether a host has the domain, and it does not run there."""
    return any(one.uuid == move.uuid for one in room.off_domains)


async def unsettled(remote: Remote, move: Move) -> StandingThere | None:
    """What is under way with the domain on its source, or not settled there; EntourageError."""
    for one in await remote.standing(move.source):
        if one.uuid == move.uuid and one.role == "source" and not one.settled:
            return one
    return None


async def elsewhere(remote: Remote, move: Move) -> Result:
    """What has become of a domain that neither host has: on which other one of the fleet it is.

    Args:
        remote: The hosts.
        move: Which. Of one that was off it counts too where another host has it, off; or a claim
            of it: a move to there was cut, perhaps once its source had let go.
    """
    silent: list[str] = []
    claimed: list[str] = []
    for host in (one.name for one in remote.fleet.host):
        if host in {move.source, move.target}:
            continue
        try:
            room = await remote.room(host)
        except EntourageError:
            silent.append(host)
            continue
        if runs(room, move):
            return Result(kind="elsewhere", message=f"it runs on {host}")
        if move.off and is_off(room, move):
            return Result(kind="elsewhere", message=f"it is on {host}, off")
        if move.off and move.uuid.lower() in room.claimed:
            claimed.append(host)
    if claimed:
        return _is_claimed(move, claimed, silent)
    is_there = "it is" if move.off else "it runs"
    if silent:
        return Result(
            kind="doubt",
            message=f"{is_there} on no host that answers; {', '.join(silent)} does not",
            remedy="`entourage room` on each host",
        )
    return Result(
        kind="off",
        message=(
            f"{move.source} does not have it any more, nor has any host that answers"
            if move.off
            else f"it does not run on {move.source} any more, nor anywhere that answers"
        ),
        remedy=f"`entourage list --all` on {move.source}",
    )


def _is_claimed(move: Move, claimed: Sequence[str], silent: Sequence[str]) -> Result:
    """No host that answers has it, and some keep its definition for a move that was cut."""
    hosts = " and ".join(claimed)
    others = f"; {', '.join(silent)} does not answer" if silent else ""
    commands = " or ".join(f"`entourage migrate --offline {move.name} {host}`" for host in claimed)
    return Result(
        kind="doubt",
        message=f"{hosts} took it on in a move that was cut, and no host that answers has it"
        f"{others}",
        remedy=f"{commands} on {move.source}",
    )
