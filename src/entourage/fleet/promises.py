"""How a campaign is added beside others that promise room: planned without a lock, added with one.

Planning may take a minute for a hundred thousand domains; while a transaction is open, SQLite lets
nobody else write, not even that a move has ended. So a plan is made with what was promised before
the hosts were asked, and added if nobody has promised more since; else it is made once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from entourage.fleet.store import Spec, Store
from entourage.fleet.values import Move

_ROUNDS: Final = 4
"""How often a plan is made without the lock; then with it, so that it comes to an end."""


class Made(Protocol):
    """What a plan comes with."""

    @property
    def spec(self) -> Spec | None:
        """The campaign that is to be added; None: none."""
        ...


Planned = TypeVar("Planned", bound=Made)


def add_planned(
    store: Store,
    name: str,
    before: Sequence[Move],
    make: Callable[[Sequence[Move]], Planned],
) -> Planned:
    """Plan a campaign and add it, so that no two promise the same room.

    What was promised before the hosts were asked stays promised in the plan, also where it has
    arrived meanwhile: the hosts' answers may not have it yet.

    Args:
        store: Where campaigns are.
        name: The new one's.
        before: What others had yet to move before the hosts were asked.
        make: Plans with what others have promised. It may be called several times, and raise.

    Returns:
        The plan that was added; or that has nothing to add.

    Raises:
        UsageError: There is a campaign of that name.
    """
    promised = {_key(move): move for move in before}
    for _ in range(_ROUNDS):
        promised.update((_key(move), move) for move in store.promised())
        made = make(list(promised.values()))
        if made.spec is None:
            return made
        with store.planning() as planning:
            if {_key(move) for move in planning.promised()} <= promised.keys():
                planning.add(name, made.spec)
                return made
    with store.planning() as planning:
        promised.update((_key(move), move) for move in planning.promised())
        made = make(list(promised.values()))
        if made.spec is not None:
            planning.add(name, made.spec)
        return made


def _key(move: Move) -> tuple[str, str]:
    return move.uuid, move.target
