"""What runs campaigns: three methods, so that the simulation has another one than a user's fleet.

``InProcess`` runs them in this process and forgets them with it. What outlives the process is
``entourage.fleet.durable``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from entourage.fleet.campaign import Campaign, Phase, Wish
from entourage.fleet.values import Move, MoveState, Result


class Engine(Protocol):
    """Runs campaigns by their names."""

    async def run(self, name: str) -> Phase:
        """Have one run, from where it is, until it is over; how it ended."""
        ...

    async def signal(self, name: str, wish: Wish) -> None:
        """Say what is wanted of one that runs, wherever it does."""
        ...

    def watch(self, name: str) -> AsyncIterator[MoveState]:
        """Each change of one of its moves, until it is over."""
        ...


class World(Protocol):
    """What a campaign does to hosts."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for so long."""
        ...

    async def ensure(self, move: Move) -> Result:
        """Make sure that a domain runs on its target; what came of it. Raises nothing."""
        ...

    def elsewhere(self, state: MoveState) -> str | None:
        """Find another target for a domain; None where there is none."""
        ...


class RealTime:
    """The clock of a ``World`` that is real."""

    def now(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait for so long."""
        await asyncio.sleep(seconds)


class Driver:
    """Runs one campaign: begins what is due, and takes what comes of it.

    Args:
        campaign: Its rules, as far as it has come.
        world: The hosts.
        told: Is told each change of a move, before anything follows from it.
        ended: Is told that a move has ended; other campaigns may have waited for that.
    """

    def __init__(
        self,
        campaign: Campaign,
        world: World,
        told: Callable[[MoveState], Awaitable[None]],
        ended: Callable[[Move], None] = lambda _: None,
    ) -> None:
        self.campaign = campaign
        self._world = world
        self._told = told
        self._ended = ended
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None

    def wake(self, ended: Move | None = None) -> None:
        """Something has changed.

        Args:
            ended: A move of another campaign, for whose slots moves of this one may have waited;
                None: a wish, or it is not known what.
        """
        self.campaign.look_again(ended)
        self._woken.set()

    async def run(self) -> Phase:
        """Run it until it is over; what moves when this is cancelled moves on, on its host."""
        try:
            for move in self.campaign.under_way:  # begun by a process that is no more
                self._begin(move)
            while not self.campaign.is_over:
                if self._bug is not None:
                    raise self._bug
                for move in await self.campaign.due(self._world.now()):
                    if self.campaign.begins:
                        await self._told(self.campaign.moves[move.uuid])
                    if self.campaign.begins:  # to be told takes a while
                        self._begin(move)
                    else:
                        await self.campaign.withdraw(move)
                        await self._told(self.campaign.moves[move.uuid])
                await self._wait()
            if self._tasks:  # they have ended, and that is being told
                await asyncio.wait(self._tasks)
            if self._bug is not None:
                raise self._bug
            return self.campaign.phase
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, move: Move) -> None:
        task = asyncio.create_task(self._move(move))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """Nothing waits for a task that fails: ``run`` raises it."""
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._bug = bug
            self._woken.set()

    async def _move(self, move: Move) -> None:
        result = await self._world.ensure(move)
        now = self._world.now()
        state = self.campaign.ended(move, result, now, self._world.elsewhere)
        await self._told(state)
        self._woken.set()
        self._ended(move)

    async def _wait(self) -> None:
        """Until something has ended, was wished for, or is due."""
        now = self._world.now()
        at = self.campaign.next_at(now)
        if self.campaign.is_over:
            return
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._woken.wait())}
        if at is not None:
            waits.add(asyncio.ensure_future(self._world.sleep(max(0.0, at - now))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._woken.clear()


class InProcess:
    """Campaigns of this process.

    Args:
        world: The hosts.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._drivers: dict[str, Driver] = {}
        self._watching: dict[str, list[asyncio.Queue[MoveState | None]]] = {}

    def add(self, campaign: Campaign) -> None:
        """Take one on."""
        name = campaign.name

        async def told(state: MoveState) -> None:
            for queue in self._watching.get(name, ()):
                queue.put_nowait(state)

        def ended(move: Move) -> None:
            for other, driver in self._drivers.items():
                if other != name:
                    driver.wake(move)

        self._drivers[name] = Driver(campaign, self._world, told, ended)

    async def run(self, name: str) -> Phase:
        """See ``Engine``."""
        try:
            return await self._drivers[name].run()
        finally:
            for queue in self._watching.get(name, ()):
                queue.put_nowait(None)

    async def signal(self, name: str, wish: Wish) -> None:
        """See ``Engine``."""
        self._drivers[name].campaign.wish = wish
        self._drivers[name].wake()

    async def watch(self, name: str) -> AsyncIterator[MoveState]:
        """See ``Engine``."""
        if self._drivers[name].campaign.is_over:
            return
        queue: asyncio.Queue[MoveState | None] = asyncio.Queue()
        self._watching.setdefault(name, []).append(queue)
        try:
            while (state := await queue.get()) is not None:
                yield state
        finally:
            with contextlib.suppress(ValueError):
                self._watching[name].remove(queue)
