"""The memory's way from one simulated copy of the guest to the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.sim.guest import At, Copy


class Bell:
    """Somebody who waits for the next change; the list is of those who do."""

    def __init__(self, waiting: list[Callable[[], None]]) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(self._ring)

    def _ring(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def rung(self) -> None:
        await self._future


async def changed(copy: Copy) -> None:
    """Wait until a copy does something else."""
    await Bell(copy.on_change).rung()


class Stream:
    """The memory's way from one copy to the other; the network and the hypervisors drive it."""

    def __init__(self, world: Any, source: Copy, target: Copy | None, *, live: bool) -> None:
        self.world, self.source, self.target = world, source, target
        self.state = "active"
        self.stopped_at = 0
        self.accepted = 0.0
        self.waiting: list[Callable[[], None]] = []
        source.stream = self
        if target is not None:
            target.stream = self
        world.net.on_change.append(self._network)
        if not live:
            self._hold()
        world.loop.after(0.2 + 2.0 * world.loop.rng.random(), self._converged)

    def _tell(self, state: str) -> None:
        self.state = state
        self.world.trace("stream", state)
        waiting, self.waiting = self.waiting, []
        for tell in waiting:
            tell()

    async def until(self, *states: str) -> str:
        """Wait for one of these states, or a failure."""
        while self.state not in (*states, "failed"):
            await Bell(self.waiting).rung()
        return self.state

    def _hold(self) -> None:
        if self.source.at is At.RUN:
            self.world.guest.stands_since = self.world.loop.now
        self.source.stop()
        for hand in self.source.host.deadmen:
            hand.stopped()
        self.stopped_at = int((self.world.loop.now + self.source.host.booted) * 1e9)

    def _converged(self) -> None:
        if self.state != "active":
            return
        if self.world.net.silent:
            self.world.loop.after(0.5, self._converged)
            return
        self._hold()
        self._tell("pre-switchover")

    def go_on(self) -> None:
        """The disks are settled: the last pages go."""
        if self.state != "pre-switchover":
            return
        if self.world.guest.mirror is not None:
            self.world.violated("the last memory is sent before a disk is settled")
        self._tell("device")
        loop = self.world.loop
        loop.after(0.001 + 0.05 * loop.rng.random(), self._land)
        loop.after(0.001 + 0.05 * loop.rng.random(), self._complete)

    def _land(self) -> None:
        target = self.target
        if self.state not in {"device", "completed"} or target is None or not target.alive:
            return
        if self.world.net.silent:
            self.world.loop.after(0.2, self._land)
            return
        target.memory = self.source.memory
        target.host.tpm_arrived()
        target.become(At.LANDED)

    def _complete(self) -> None:
        if self.state == "device" and not self.world.net.silent:
            self._tell("completed")
        elif self.state == "device":
            self.world.loop.after(0.2, self._complete)

    def _network(self) -> None:
        if self.state in {"active", "pre-switchover", "device"} and not self.world.net.silent:
            self.fail()
        elif self.state in {"active", "pre-switchover", "device"}:
            # TCP gives up late, if at all.
            self.world.loop.after(5 + 30 * self.world.loop.rng.random(), self._still_silent)

    def _still_silent(self) -> None:
        if self.world.net.silent and self.state in {"active", "pre-switchover", "device"}:
            self.fail()

    def fail(self) -> None:
        """It breaks: the source goes on by itself, unless all was sent; the target cannot land."""
        if self.state in {"completed", "failed"}:
            if self.target is not None and self.target.at is At.BUILD:
                self._tell_target()
            return
        self._tell("failed")
        self._tell_target()
        if self.source.at is At.HELD:
            self.source.run()

    def _tell_target(self) -> None:
        target = self.target
        if target is not None:
            waiting, target.on_change = target.on_change, []
            for tell in waiting:
                tell()
