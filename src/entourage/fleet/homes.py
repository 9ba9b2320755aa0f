"""Where domains were at home, before evacuations moved them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from entourage.fleet.database import CAMPAIGNS, MOVES, reads
from entourage.fleet.decoded import json_of
from entourage.fleet.store import Store


class _Emptied(msgspec.Struct):
    """Of a campaign's plan, which hosts it emptied."""

    hosts: Sequence[str] = ()


class _Made(msgspec.Struct):
    """Of what a campaign was made of, its plan."""

    plan: _Emptied


class _Moved(msgspec.Struct):
    """Of a move, its domain's name."""

    name: str


class _State(msgspec.Struct):
    """Of how far a move has come, the move."""

    move: _Moved


def at_home(store: Store, host: str) -> Mapping[str, str]:
    """The domains whose home is a host, and that evacuations have moved away: UUIDs, and names.

    A domain's home is where it ran before the first evacuation that moved it. A campaign that moved
    it by its name (``migrate``, ``evacuate --only``, ``restore-home``) ends that: its user wanted
    it there.

    Args:
        store: The campaigns.
        host: Its name in the fleet.
    """
    moved = (
        sa.select(CAMPAIGNS.c.spec, MOVES.c.campaign, MOVES.c.uuid, MOVES.c.source, MOVES.c.state)
        .join(CAMPAIGNS, CAMPAIGNS.c.name == MOVES.c.campaign)
        .where(MOVES.c.status == "moved")
        .order_by(CAMPAIGNS.c.created)
    )
    emptied: dict[str, bool] = {}
    homes: dict[str, tuple[str, str]] = {}
    with reads(store.engine) as connection:
        for row in connection.execute(moved):
            if row.campaign not in emptied:
                made = json_of(row.spec, _Made)
                emptied[row.campaign] = bool(made.plan.hosts)
            if emptied[row.campaign]:
                homes.setdefault(row.uuid, (row.source, _name(row)))
            else:
                homes.pop(row.uuid, None)
    return {uuid: name for uuid, (home, name) in homes.items() if home == host}


def _name(row: Any) -> str:
    return json_of(row.state, _State).move.name
