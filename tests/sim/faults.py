"""What goes wrong in a simulation: which faults, where, and what each of them does."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

KINDS = {
    "kill-source": 10,
    "kill-agent": 10,
    "kill-deadman": 3,
    "power-a": 8,
    "power-b": 8,
    "freeze-source": 6,
    "freeze-agent": 6,
    "freeze-deadman": 2,
    "cut": 6,
    "silent": 8,
    "slow": 4,
    "fails-a": 9,
    "fails-b": 9,
    "hangs-a": 5,
    "hangs-b": 5,
    "disk-a": 2,
    "disk-b": 2,
    "guest-ends": 5,
    "crash-a": 5,
    "crash-b": 5,
    "unheard-a": 4,
    "full-a": 3,
    "full-b": 3,
    "readonly-a": 2,
    "readonly-b": 2,
    "io-a": 4,
    "io-b": 4,
    "torn-a": 5,
    "torn-b": 5,
    "sigint": 6,
    "sigterm-agent": 3,
    "recover-a": 3,
    "recover-b": 3,
}
TOGETHER = (
    ("torn-b", "power-b"),
    ("torn-a", "power-a"),
    ("kill-agent", "power-a"),
    ("kill-source", "recover-a"),
    ("kill-source", "recover-b"),
    ("kill-agent", "recover-b"),
    ("cut", "fails-a"),
    ("cut", "recover-b"),
    ("fails-b", "fails-a"),
    ("fails-a", "fails-a"),
    ("freeze-agent", "recover-a"),
    ("freeze-source", "recover-b"),
    ("sigterm-agent", "hangs-a"),
    ("silent", "hangs-b"),
    ("power-a", "power-b"),
)
"""Faults that are worse together: a part of all seeds has such a pair, one soon after the other."""
NAMES = (
    *(
        f"source.{when}.{what}"
        for when in ("before", "after")
        for what in (
            "flush-armed",
            "disarm-deadman",
            "send-go",
            "resume-source",
            "flush-back",
            "flush-gone",
            "send-gone",
            "destroy-source",
            "undo-resources",
            "clean",
        )
    ),
    *(
        f"target.{when}.{what}"
        for when in ("before", "after")
        for what in (
            "flush-open",
            "send-landed",
            "sync-devices",
            "flush-go",
            "let-run",
            "flush-ran",
            "send-ran",
            "flush-never",
            "send-never",
            "kill-target",
            "undo-resources",
            "flush-owns",
            "clean",
        )
    ),
    *("ask.abort", "does.abort", "ask.run", "does.run", "done.run", "ask.release", "does.release"),
    *("ask.landed", "does.landed", "GoSent", "MemoryLanded", "GuestStopped", "GuestResumed"),
)
"""Points at which much is decided: a part of all faults come there."""
SCENES = (
    (("fails-a", "ask.disarm-deadman"), ("fails-a", "ask.abort"), ("fails-a", "ask.abort")),
    (("cut", "GuestStopped"), ("full-a", "does.abort")),
    (("freeze-source", "source.after.send-go"), ("crash-b", "target.before.flush-go")),
    (("freeze-agent", "target.after.send-landed"), ("recover-a", "GoSent")),
    (("freeze-agent", "target.before.flush-go"), ("kill-source", "GoSent")),
    (("kill-source", "source.after.send-go"), ("torn-b", "target.before.flush-go")),
    (("kill-agent", "target.after.let-run"), ("power-a", "GoSent")),
    (("io-b", "target.before.flush-go"), ("kill-source", "GoSent")),
    (("sigint", "make.machine"),),
    (("sigint", "make.disk"),),
    (("sigint", "GuestStopped"), ("fails-b", "ask.undo.disk")),
    (("kill-agent", "GuestStopped"), ("fails-b", "ask.undo.disk")),
    (("cut", "source.before.flush-gone"), ("fails-a", "ask.release")),
    (("fails-a", "ask.thing.put-back"), ("cut", "MemoryLanded")),
    (("sigterm-agent", "ask.tpm.lock"), ("hangs-a", "ask.tpm.lock")),
    (("kill-agent", "target.after.flush-ran"), ("crash-b", "target.after.send-ran")),
)
"""Faults at named points that are known to be worse together: a part of all seeds has one."""
LATE = (
    "kill-recover",
    "torn-recover",
    "power-a",
    "power-b",
    "kill-agent",
    "cut",
    "fails-a",
    "fails-b",
)
_LATE = 0.15
"""How often something goes wrong while ``recover`` runs, and what."""
USUAL_POINTS, USUAL_STEPS = 170, 900


@dataclasses.dataclass
class Fault:
    """One fault.

    Attributes:
        kind: One of ``KINDS``.
        by, at: It comes at this point or callback of the simulation, or at this second.
        lasts: Seconds, where it ends by itself.
        name: It comes at the first point of this name, wherever that is.
    """

    kind: str
    by: str
    at: float
    lasts: float
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} at {self.by} {self.name or f'{self.at:g}'} for {self.lasts:.2f} s"


def planned(seed: int) -> list[Fault]:
    """The faults of a seed."""
    rng = random.Random(f"faults {seed}")  # noqa: S311 - it must repeat
    if rng.random() < 0.1:
        scene, lasts = rng.choice(SCENES), rng.choice((0.5, 12.0, 40.0))
        return [Fault(kind, "name", 0, lasts * (0.5 + rng.random()), at) for kind, at in scene]
    count = rng.choices((0, 1, 2, 3), (2, 50, 36, 12))[0]
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=count)
    if rng.random() < 0.25:
        kinds = [*rng.choice(TOGETHER), *kinds[2:]]
    found: list[Fault] = []
    for number, kind in enumerate(kinds):
        by = rng.choices(("point", "name", "step", "time"), (55, 25, 12, 8))[0]
        most = {"point": USUAL_POINTS, "step": USUAL_STEPS, "time": 8, "name": 1}[by]
        name = rng.choice(NAMES) if by == "name" else ""
        at = rng.uniform(0, most)
        if number and rng.random() < 0.5:  # soon after the one before
            before = found[-1]
            by, name, near = before.by, before.name, rng.choice((0, 2, 10, most / 20))
            at = before.at + rng.uniform(0, near)
        lasts = rng.choice((0.05, 0.5, 3.0, 12.0, 40.0)) * (0.5 + rng.random())
        found.append(Fault(kind, by, at if by == "time" else int(at), lasts, name))
    return found


class Faults:
    """The faults of one simulation, and those that are under way."""

    def __init__(self, world: Any, faults: list[Fault]) -> None:
        self.world = world
        self.came: list[str] = []
        self.calls: dict[str, list[str]] = {"a": [], "b": []}
        self._spoilt: set[str] = set()
        self._points = sorted((f for f in faults if f.by == "point"), key=lambda f: -f.at)
        self._steps = sorted((f for f in faults if f.by == "step"), key=lambda f: -f.at)
        for fault in faults:
            if fault.by == "time":
                world.loop.after(fault.at, self._happen, fault)
        self._kinds: dict[str, Callable[[Fault, Any, str], None]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "power": self._power,
            "cut": self._cut,
            "silent": self._silent,
            "slow": self._slow,
            "fails": self._fails,
            "disk": self._disk,
            "hangs": self._hangs,
            "guest": self._guest,
            "crash": self._crash,
            "unheard": self._unheard,
            "full": self._full,
            "readonly": self._readonly,
            "io": self._io,
            "torn": self._torn,
            "sigint": self._sigint,
            "sigterm": self._sigterm,
            "recover": self._recover,
        }
        self.over = False
        self._named: dict[str, list[Fault]] = {}
        for fault in faults:
            if fault.by == "name":
                self._named.setdefault(fault.name, []).append(fault)
        if self._steps:
            world.loop.on_step = self._step

    def at_point(self, number: int, name: str) -> None:
        """A point was reached."""
        named = self._named.pop(name, None) if self._named else None
        for fault in named or ():
            self._happen(fault)
        while self._points and self._points[-1].at <= number:
            self._happen(self._points.pop())

    def _step(self) -> None:
        while self._steps and self._steps[-1].at <= self.world.loop.steps:
            self._happen(self._steps.pop())

    def for_call(self, host: Any, what: str) -> str:
        """What is wrong with this call: ``fails``, ``disk``, or how long it hangs."""
        pending = self.calls[host.name]
        if not pending:
            return ""
        wrong = pending.pop()
        device, is_device, _ = what.partition(".")
        self._spoilt.add(device)
        files = is_device or what in {"persist-definition", "finish-arrival"}
        return "fails" if wrong == "disk" and not files else wrong

    def spoilt(self, device: str) -> bool:
        """Whether a call of this device failed on purpose."""
        return device in self._spoilt

    def once_more(self) -> None:
        """In some simulations something goes wrong while ``recover`` runs, too."""
        rng = self.world.rng
        if rng.random() < _LATE:
            self.over = False
            at = self.world.points + rng.randrange(40)
            self._points = [Fault(rng.choice(LATE), "point", at, rng.random() * 10)]

    def end(self) -> None:
        """No fault comes any more, and those that last are over."""
        world = self.world
        self.over = True
        self._points.clear()
        self._steps.clear()
        self._named.clear()
        world.net.heal()
        for host in world.hosts:
            self.calls[host.name].clear()
            host.journal.full = host.journal.readonly = False
            host.journal.fails.clear()
            host.journal.torn = None
            host.power_on()
            for process in host.living():
                world.loop.thaw(process)

    def _happen(self, fault: Fault) -> None:
        if self.over:
            return
        self.came.append(fault.kind)
        self.world.trace("FAULT", str(fault))
        word, _, rest = fault.kind.partition("-")
        host = {"a": self.world.a, "b": self.world.b}.get(rest)
        self._kinds[word](fault, host, rest)

    def _later(self, fault: Fault, what: Callable[[], None]) -> None:
        self.world.loop.after(fault.lasts, what)

    def _process(self, rest: str) -> Any:
        world = self.world
        if rest == "recover":
            living = [*world.a.living("recover"), *world.b.living("recover")]
        elif rest == "agent":
            living = world.b.living("agent")
        else:
            living = world.a.living("source")
        return living[-1] if living else None

    def _kill(self, fault: Fault, host: Any, rest: str) -> None:
        if rest == "deadman":
            for hand in list(self.world.a.deadmen):
                hand.die()
            return
        if process := self._process(rest):
            self.world.loop.kill(process)

    def _freeze(self, fault: Fault, host: Any, rest: str) -> None:
        loop = self.world.loop
        if rest == "deadman":
            for hand in self.world.a.deadmen:
                hand.silent = True
                self._later(fault, hand.speak)
        elif process := self._process(rest):
            loop.freeze(process)
            self._later(fault, lambda: loop.thaw(process))

    def _power(self, fault: Fault, host: Any, rest: str) -> None:
        self._later(fault, host.power_on)
        host.power_cut()

    def _cut(self, fault: Fault, host: Any, rest: str) -> None:
        self.world.net.cut()

    def _silent(self, fault: Fault, host: Any, rest: str) -> None:
        self.world.net.fall_silent()
        self._later(fault, self.world.net.heal)

    def _slow(self, fault: Fault, host: Any, rest: str) -> None:
        self.world.net.latency = min(fault.lasts, 4.0)
        self.world.loop.after(10.0, self.world.net.heal)

    def _fails(self, fault: Fault, host: Any, rest: str) -> None:
        self.calls[host.name].append("fails")

    def _disk(self, fault: Fault, host: Any, rest: str) -> None:
        self.calls[host.name].append("disk")

    def _hangs(self, fault: Fault, host: Any, rest: str) -> None:
        self.calls[host.name].append(str(fault.lasts))

    def _guest(self, fault: Fault, host: Any, rest: str) -> None:
        for copy in self.world.guest.running():
            self.world.guest.ended = True
            copy.die("QEMU has ended (guest-shutdown)")

    def _crash(self, fault: Fault, host: Any, rest: str) -> None:
        host.crash("QEMU has ended")

    def _unheard(self, fault: Fault, host: Any, rest: str) -> None:
        """Its daemon goes away with it, and comes back: nobody is told."""
        if host.copy is not None:
            host.copy.unheard = True
        host.crash("QEMU has ended")

    def _full(self, fault: Fault, host: Any, rest: str) -> None:
        host.journal.full = True
        self._later(fault, lambda: setattr(host.journal, "full", False))

    def _readonly(self, fault: Fault, host: Any, rest: str) -> None:
        host.journal.readonly = True
        self._later(fault, lambda: setattr(host.journal, "readonly", False))

    def _io(self, fault: Fault, host: Any, rest: str) -> None:
        host.journal.fails.append(fault.lasts < 2.0)
        if fault.lasts < 2.0:
            self._spoilt.add("record")

    def _torn(self, fault: Fault, host: Any, rest: str) -> None:
        process = self._process({"a": "source", "b": "agent"}.get(rest, rest))
        if process is not None:
            process.host.journal.torn = process

    def _sigint(self, fault: Fault, host: Any, rest: str) -> None:
        migration, process = self.world.migration, self._process("source")
        world = self.world

        def interrupt() -> None:
            if migration.interrupt("interrupted with Ctrl-C"):
                world.said_back = True

        if migration is not None and process is not None:
            process.context.run(world.loop.call_soon, interrupt)

    def _sigterm(self, fault: Fault, host: Any, rest: str) -> None:
        process = self._process("agent")
        agent = getattr(process, "agent", None)
        if agent is not None:
            process.context.run(self.world.loop.call_soon, agent.end)

    def _recover(self, fault: Fault, host: Any, rest: str) -> None:
        if host.on:
            host.recover()
