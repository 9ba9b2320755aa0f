"""What a user does to a campaign from the page; each is written down with the user's name."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol, TypeAlias

from entourage.errors import EntourageError, UsageError
from entourage.fleet.campaign import Phase, Wish
from entourage.fleet.records import DONE, RETRIED, Records
from entourage.fleet.store import Store
from entourage.hosts.threads import in_thread

Action: TypeAlias = Literal["pause", "resume", "abort", "take-back", "retry"]
WISHES: Final[Mapping[Action, Wish]] = {
    "pause": "pause", "resume": "run", "abort": "abort", "take-back": "take-back",
}  # fmt: skip
ACTIONS: Final = frozenset({*WISHES, "retry"})


class Runs(Protocol):
    """Runs campaigns: see ``engine.Engine``."""

    async def run(self, name: str) -> Phase:
        """Run one until it is over; one that somebody runs is waited for."""
        ...


class Actions:
    """They.

    Args:
        store: The campaigns.
        records: What is written down of them.
        engine: Runs what nobody runs.
        owner: What this controller is called.
        note: Is told what went wrong in a campaign afterwards.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        engine: Runs,
        owner: str,
        note: Callable[[str, str], None],
    ) -> None:
        self._store, self._records = store, records
        self._engine, self._owner, self._note = engine, owner, note
        self._going: dict[str, asyncio.Task[None]] = {}

    async def do(self, name: str, action: Action, who: str) -> None:
        """Do it.

        Args:
            name: The campaign's.
            action: What.
            who: The user.

        Raises:
            UsageError: There is no such campaign, or it is over, or it is not.
            EntourageError: The database cannot be reached.
        """
        goes_on = await in_thread(self._write, name, action, who)
        if goes_on:
            self.go_on(name)

    def _write(self, name: str, action: Action, who: str) -> bool:
        """Write it down; whether somebody has to see to it that it goes on."""
        if action == "retry":
            if not self._store.try_again(name):
                raise UsageError(f"nothing of {name} is left to be tried")
        else:
            self._store.wish(name, WISHES[action])
        self._records.say(name, who, RETRIED if action == "retry" else DONE[WISHES[action]])
        return action != "pause"

    def go_on(self, name: str) -> None:
        """Have a campaign run on: here, unless somebody runs it."""
        task = self._going.get(name)
        if task is None or task.done():
            self._going[name] = asyncio.create_task(self._run(name))

    async def _run(self, name: str) -> None:
        try:
            await self._engine.run(name)
        except EntourageError as error:
            self._note(name, str(error))
            with contextlib.suppress(EntourageError):
                await in_thread(self._records.say, name, f"controller {self._owner}", str(error))

    async def close(self) -> None:
        """Wait for nothing more; what runs goes on when this controller, or another one, does."""
        for task in self._going.values():
            task.cancel()
        await asyncio.gather(*self._going.values(), return_exceptions=True)
