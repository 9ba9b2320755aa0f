"""How many domains move at once, of all campaigns of a database, whoever runs them."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from entourage.fleet.database import MOVES
from entourage.fleet.store import Store
from entourage.fleet.values import Limits, Move
from entourage.hosts.threads import InOrder


class StoreSlots:
    """Those of all campaigns of a database; see ``campaign.Slots``.

    Args:
        store: The database.
        name: The campaign that takes them.
        owner: The controller that runs it.
        order: In which what is written of the campaign is: this asks a database that may be silent.
        arrivals: By target, how many it lets arrive at once itself.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        owner: str,
        order: InOrder,
        arrivals: Mapping[str, int] | None = None,
    ) -> None:
        self._store, self._name, self._owner = store, name, owner
        self._order = order
        self._arrivals = arrivals or {}

    async def take(self, move: Move, limits: Limits) -> bool:
        """See ``campaign.Slots``; raises FencedError where another controller runs the campaign."""
        return await self._order(self._take, move, limits)

    def _take(self, move: Move, limits: Limits) -> bool:
        most = min(limits.per_target, self._arrivals.get(move.target, limits.per_target))
        moving = sa.select(sa.func.count()).where(MOVES.c.status == "moves")
        with self._store.alone() as connection:
            if self._store.owned(connection, self._name, self._owner) != "run":
                return False
            leaving = connection.execute(moving.where(MOVES.c.source == move.source)).scalar_one()
            arriving = connection.execute(moving.where(MOVES.c.target == move.target)).scalar_one()
            if leaving >= limits.at_once or arriving >= most:
                return False
            connection.execute(
                sa.update(MOVES)
                .where(MOVES.c.campaign == self._name, MOVES.c.uuid == move.uuid)
                .values(status="moves", target=move.target)
            )
        return True

    def give_back(self, move: Move) -> None:
        """Nothing: ``Store.save`` says that it has ended."""

    async def put_back(self, move: Move) -> None:
        """See ``campaign.Slots``; raises FencedError where another controller runs the campaign."""
        await self._order(self._put_back, move)

    def _put_back(self, move: Move) -> None:
        with self._store.alone() as connection:
            self._store.owned(connection, self._name, self._owner)
            connection.execute(
                sa.update(MOVES)
                .where(MOVES.c.campaign == self._name, MOVES.c.uuid == move.uuid)
                .values(status="waits")
            )
