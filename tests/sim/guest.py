"""The truth: the guest, its copies, what it has written, and what each host has of it.

Nothing here believes a record. Whoever lets a copy run is checked at that moment: no other copy
may run, its memory must be the newest, its disk must have every write that was acknowledged, its
TPM must be there, and a guest that its user had paused must not run.
"""

from __future__ import annotations

import enum
from typing import Any


class At(enum.Enum):
    """What a copy of the guest is doing."""

    RUN = "run"
    PAUSED = "paused"
    """Not held by any migration, and paused by its user."""
    HELD = "held"
    """Stopped for the switchover."""
    BUILD = "build"
    """Built on the target, with less than all of memory."""
    LANDED = "landed"
    DEAD = "dead"


BUDGET = 10.0
"""Seconds that a blackout may take before everything goes back."""
_STANDS = BUDGET + 2.5
_HELD_UP = frozenset(
    {"fails-a", "disk-a", "late-a", "hangs-a", "kill-deadman", "freeze-deadman", "freeze-source"}
)
"""What may keep a guest from being let run again in time, or who would do so.

A source that is frozen again and again is one of them: each time its deadman begins anew.
"""
FREE = frozenset({At.RUN, At.PAUSED})
INCOMING = frozenset({At.BUILD, At.LANDED})


class Copy:
    """A machine: the process that a hypervisor has for the guest."""

    def __init__(self, guest: Guest, host: Any, at: At, marker: str = "") -> None:
        self.guest = guest
        self.host = host
        self.at = at
        self.marker = marker
        self.memory = -1
        self.why = ""
        self.unheard = False
        self.died_at, self.died_held = 0.0, False
        self.released = at in FREE
        self.stream: Any = None
        self.on_change: list[Any] = []

    @property
    def alive(self) -> bool:
        return self.at is not At.DEAD

    def become(self, at: At) -> None:
        """Change what it does; whoever waits for that is told."""
        self.at = at
        self.guest.world.trace("copy", self.host.name, at.value)
        waiting, self.on_change = self.on_change, []
        for tell in waiting:
            tell()

    def stop(self) -> None:
        """Hold it for a switchover, or because it has no right to run."""
        if self.at in FREE:
            self.guest.write()
            self.become(At.HELD)

    def run(self) -> None:
        """Let it go on as its user had it; checked."""
        if not self.alive or self.at in FREE:
            return
        guest = self.guest
        guest.check_may_run(self)
        guest.check_stood(self)
        guest.let_run.add(self.host.name)
        self.released = True
        self.become(At.PAUSED if guest.paused else At.RUN)
        guest.write()

    def die(self, why: str) -> None:
        """It ends."""
        if self.alive:
            if self.at is At.RUN:
                self.guest.write()
            self.died_at, self.died_held = self.guest.world.loop.now, self.at is At.HELD
            self.why = why
            if self.stream is not None:
                self.stream.fail()
            self.become(At.DEAD)


class Guest:
    """The guest: one, whatever copies there are.

    Attributes:
        paused: Its user has paused it.
        writes: How many writes were acknowledged to it so far.
        ended: It has ended by itself.
        killed: A fault has ended the copy that had the right to run.
    """

    def __init__(self, world: Any, *, paused: bool) -> None:
        self.world = world
        self.paused = paused
        self.writes = 0
        self.ended = False
        self.killed = False
        self.stands_since = 0.0
        self.mirror: Any = None
        self.let_run: set[str] = set()

    def running(self) -> list[Copy]:
        """The copies that nothing holds."""
        return [host.copy for host in self.world.hosts if host.copy and host.copy.at in FREE]

    def write(self) -> None:
        """Whoever runs writes, and its disk has it; so has the mirror, where there is one."""
        for copy in self.running():
            if copy.at is At.RUN:
                self.writes += 1
            copy.memory = self.writes
            copy.host.disk = self.writes
            if self.mirror is not None and self.mirror.source is copy.host:
                self.mirror.wrote()

    def check_may_run(self, copy: Copy) -> None:
        """What must be true as a copy is let run."""
        say = self.world.violated
        host = copy.host
        others = [each for each in self.running() if each is not copy]
        if others:
            say(f"two copies run: {host.name} beside {others[0].host.name}")
        if self.ended:
            say(f"the copy on {host.name} runs, and the guest has ended")
        if copy.memory != self.writes:
            say(f"{host.name} runs with old memory: {copy.memory} of {self.writes}")
        if host.disk != self.writes:
            say(f"{host.name} runs with a disk that lacks writes: {host.disk} of {self.writes}")
        if host.tpm is None:
            say(f"{host.name} runs without its TPM")

    def check_stood(self, copy: Copy) -> None:
        """See that it has not stood still for longer than it may, where GO was never near."""
        world = self.world
        since, self.stands_since = self.stands_since, 0.0
        stood = world.loop.now - since
        bounded = since and world.live and not world.near_go and copy.host is world.a
        if bounded and stood > _STANDS and _HELD_UP.isdisjoint(world.faults.came):
            world.violated(f"the guest stood still for {stood:.1f} s, and may for {BUDGET:g}")
