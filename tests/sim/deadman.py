"""The simulated deadman: a process of its own that lets the guest run when its parent dies."""

from __future__ import annotations

from typing import Any

from entourage.errors import HypervisorError
from tests.sim.guest import At, Copy
from tests.sim.loop import Process
from tests.sim.seams import Here


class Deadman:
    """It holds the domain's lock as long as it may act.

    Args:
        host: It runs there.
        copy: The machine that it lets run again.
        parent: The process that it watches.
        lock: That one's descriptor of the domain's lock.
        budget: Seconds that a parent that is frozen may hold the guest; None: without a limit.
    """

    def __init__(
        self, host: Any, copy: Copy, parent: Process, *, lock: int | None, budget: float | None
    ) -> None:
        self.host, self.copy, self.parent, self.budget = host, copy, parent, budget
        self.held = host.world.locks.dup(lock) if lock is not None else None
        self.armed = self.alive = True
        self.silent = False
        host.deadmen.append(self)
        parent.on_end.append(self.parent_died)

    async def disarm(self) -> None:
        """GO may be said: it never acts from when this returns."""
        await self.host.takes(0.0005)
        if not self.alive:
            raise HypervisorError("the process that would resume the guest is gone")
        if self.silent:
            # It hears the word when it goes on, and then it is what it was told last.
            raise HypervisorError("the process that would resume the guest does not answer")
        self.armed = False
        self.host.world.near_go = True

    def speak(self) -> None:
        """It goes on."""
        self.silent = False

    def dismiss(self) -> None:
        """All is over."""
        self.armed = False
        self.die()

    def die(self) -> None:
        """It ends, and gives up the lock."""
        if self.alive:
            self.alive = False
            self.host.deadmen.remove(self)
            if self.held is not None:
                self.host.world.locks.let_go(self.held)

    def parent_died(self) -> None:
        """Its parent has ended: unless it was disarmed, it acts."""
        if self.alive:
            loop = Here.loop
            loop.after(0.001 + 0.01 * loop.rng.random(), self._act)

    def stopped(self) -> None:
        """The guest stands still: its parent may not hold it for ever."""
        if self.budget is not None and not self.host.world.guest.paused:
            Here.loop.after(self.budget, self._look)

    def _look(self) -> None:
        if not (self.alive and self.armed and self.copy.at is At.HELD):
            return
        if self.parent.frozen and not self.silent:
            Here.loop.after(0.8, self._act_for_frozen)
        else:
            Here.loop.after(0.5, self._look)

    def _act_for_frozen(self) -> None:
        if self.parent.frozen and not self.silent:
            self._act()
        else:
            self._look()

    def _act(self) -> None:
        if not self.alive:
            return
        if self.armed:
            self.host.world.trace("deadman", self.host.name)
            copy = self.copy
            self.host.end_mirror()
            if copy.alive:
                if copy.stream is not None and copy.stream.source is copy:
                    copy.stream.fail()
                    copy.stream = None
                copy.run()
        self.die()
