"""What goes wrong in a simulation, and what each fault does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.plans import ANSWERED, LATE, LATE_NAMES, OFTEN_LATE, Fault

LONG, FOR_EVER = 40.0, 1e6
BLACKOUT = frozenset({"disk.complete", "tpm.lock", "thing.sync"})
BOUNDED = {
    "a": BLACKOUT
    | {f"{device}.test" for device in ("disk", "tpm", "thing")}
    | {"disk.mirror", "disk.cancel", "disk.delete", "tpm.unlock", "tpm.erase"}
    | {"thing.take-out", "thing.put-back"},
    "b": {"disk.fit", "disk.make", "disk.export", "thing.sync"},
}
"""What the source waits for no longer than it is set to: one that hangs long may do so for ever."""


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
            "late": self._late,
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
        """What is wrong with this call: ``fails``, ``disk``, ``late``, or how long it hangs."""
        pending = self.calls[host.name]
        if not pending:
            return ""
        if pending[-1] == "late" and what not in ANSWERED:
            return ""  # it is for another call
        wrong = pending.pop()
        device, is_device, _ = what.partition(".")
        self._spoilt.add(device)
        files = is_device or what in {"persist-definition", "finish-arrival"}
        if wrong == "disk" and not files:
            return "fails"
        live = self.world.live or what not in BLACKOUT
        if wrong not in {"fails", "disk", "late"} and float(wrong) > LONG:
            return str(FOR_EVER) if what in BOUNDED[host.name] and live else wrong
        return wrong

    def spoilt(self, device: str) -> bool:
        """Whether a call of this device failed on purpose."""
        return device in self._spoilt

    def once_more(self) -> None:
        """In some simulations something goes wrong while ``recover`` runs, too."""
        rng = self.world.rng
        if rng.random() < OFTEN_LATE:
            self.over = False
            at = self.world.points + rng.randrange(40)
            fault = Fault(rng.choice(LATE), "point", at, rng.random() * 10)
            if rng.random() < 0.4:
                fault.by, fault.name = "name", rng.choice(LATE_NAMES)
                fault.kind = rng.choice(("fails-a", "fails-b", "late-a", "late-b", "kill-recover"))
                self._named = {fault.name: [fault]}
            else:
                self._points = [fault]

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
            host.unanswered = ""
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

    def _late(self, fault: Fault, host: Any, rest: str) -> None:
        """A call is done, and its answer is lost."""
        self.calls[host.name].append("late")

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
                if not world.said_back:
                    world.said_back = world.loop.now
                    world.hurries = not world.went_back
            elif not world.a.journal.has_any("source"):
                world.violated("Ctrl-C is told that it is handed over, and nothing was begun")

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
