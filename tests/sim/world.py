"""The simulated world: two hosts with their disks, the network, the guest, the engine on both."""

from __future__ import annotations

import errno
import random
from typing import Any

from entourage.devices.base import Options
from entourage.domain import Domain
from entourage.events import MemoryLanded, RollbackStarted
from entourage.hosts.route import Route
from entourage.settings.model import AgentSettings, MigrationSettings, PathSettings, Settings
from entourage.source.migration import Migration
from entourage.source.request import Request
from tests.sim.disk import Connection
from tests.sim.guest import BUDGET, FREE, At, Copy, Guest
from tests.sim.host import Host
from tests.sim.hypervisor import NAME
from tests.sim.loop import Killed, Loop, Process
from tests.sim.net import Network, Ssh
from tests.sim.seams import Here, Locks

UUID = "5b6e6d0e-0000-4000-8000-000000000001"


class Violation(Exception):  # noqa: N818 - what was found
    """Something that must never be."""


_CHECKPOINTS = 0.1  # of all seeds


class World:
    """All of it.

    Args:
        seed: Decides everything.
        places: Where the journals' stand-ins lie, by host.
        images: The journals as they are at first, by host.
        faults: What goes wrong, and when.
    """

    def __init__(self, seed: int, places: dict[str, str], images: dict[str, bytes]) -> None:
        self.seed = seed
        self.rng = random.Random(f"world {seed}")  # noqa: S311 - it must repeat
        self.loop = Loop(random.Random(f"order {seed}"))  # noqa: S311
        self.net = Network(self.loop)
        self.locks = Locks()
        self.guest = Guest(self, paused=self.rng.random() < 0.07)
        self.listening: dict[str, Copy] = {}
        self.points = 0
        self.tracing = False
        self.lines: list[str] = []
        self.violations: list[str] = []
        self.log: list[str] = []
        self.events: list[Any] = []
        self.faults: Any = None
        self.ending = ""
        self.said_back = 0.0
        """When Ctrl-C was told that it goes back."""
        self.hurries = False
        """Whether it did not go back before: then nobody who is silent is waited for."""
        self.near_go = False
        """The deadman was disarmed: GO may be said."""
        self.went_back = self.landed = 0.0
        """When it began to go back, and when all of memory had landed."""
        self.live = self.rng.random() > 0.1
        drawn = random.Random(f"kind {seed}").random()  # noqa: S311 - it must repeat
        self.checkpoint = drawn < _CHECKPOINTS
        """Whether the guest goes on where it is, and what has landed is kept."""
        self.copying = 1.0 if self.rng.random() > 0.03 else self.rng.uniform(25, 45)
        """Seconds that the disk's copy takes."""
        self._counted = 0
        self.migration: Migration | None = None
        Here.world, Here.loop = self, self.loop
        self.domain = Domain(
            name="web1",
            uuid=UUID,
            memory=1 << 30,
            added={"vdisk": ({"id": "d0"},), "vtpm": ({"id": "t0"},), "thing": ({"id": "x0"},)},
        )
        self.a, self.b = (
            Host(self, name, _settings(places[name]), images[name]) for name in ("a", "b")
        )
        self.hosts = (self.a, self.b)
        self.a.other, self.b.other = self.b, self.a
        self.a.copy = Copy(self.guest, self.a, At.PAUSED if self.guest.paused else At.RUN)
        self.a.disk, self.a.tpm, self.a.thing, self.a.defined = 0, "safe", "in", True
        self.a.copy.memory = 0

    # What the seams ask

    def connect(self, name: str) -> Connection:
        process = self.loop.current
        return Connection(process.host.journal, process, readonly="mode=ro" in name)

    def host(self, name: str) -> Host:
        return self.a if name == "a" else self.b

    async def subprocess(self, *argv: str, **options: Any) -> Ssh:
        """A program is run: ssh, which starts the agent on another host; it is not configured."""
        if "-G" in argv:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "ssh_config")
        return Ssh(self, argv[argv.index("--") + 1])

    async def undo(self, kind: str, spec: Any) -> None:
        host = self.loop.current.host
        await host.asked(f"undo.{kind}")
        host.undo(kind, spec)
        await host.answers(f"undo.{kind}")

    def check_alive(self, process: Process) -> None:
        """A process that was killed does nothing any more, however far it is unwound."""
        if not process.alive:
            raise Killed

    def count(self) -> int:
        self._counted += 1
        return self._counted

    def point(self, name: str) -> None:
        """Something has just been done, or is about to be: a fault may come here."""
        self.points += 1
        self.trace("point", str(self.loop.current), name)
        if name == "target.after.flush-go" and self.b.tpm != "safe" and self.b.has_written("go"):
            self.violated("GO is on the disk, and the TPM is not")
        self.faults.at_point(self.points, name)

    def logged(self, text: str) -> None:
        self.log.append(text)
        self.trace("log", str(self.loop.current), text)
        if any(words in text for words in ("internal error", "not something that this host is")):
            self.violated(f"logged: {text}")

    def trace(self, *words: str) -> None:
        if self.tracing:
            self.lines.append(f"{self.loop.now - 1000:10.4f} {self.loop.steps:6} {' '.join(words)}")

    def violated(self, what: str) -> None:
        """Write down what must never be; the simulation goes on: it may be the first of many."""
        if self.loop.over:
            return
        self.violations.append(what)
        self.trace("VIOLATED", what)

    def vouch(self) -> None:
        """The user says that the target is off for good: what was written there is given up."""
        self.b.vouched_off = True
        source, guest = self.a.copy_alive, self.guest
        guest.let_run.discard("b")
        if source is None or source.at not in FREE:
            guest.writes = self.a.disk or 0
            guest.ended = guest.ended and source is None

    def released_there(self, host: Host) -> bool:
        """Whether the guest was let run on the other host, or nobody can tell that it was not."""
        other = host.other
        unclear = other.lost_incoming and any(
            other.journal.says("target", record) for record in ("go", "ran", "owns")
        )
        return other.name in self.guest.let_run or unclear

    # The command

    async def migrate(self) -> Any:
        """``entourage migrate web1 b``."""
        request = Request(
            domain=self.domain.name,
            route=Route(host="b"),
            settings=self.a.settings,
            live=self.live,
            options=Options(checkpoint=self.checkpoint),
        )
        self.migration = Migration(request, self.listen)
        return await self.migration.run()

    def listen(self, event: Any) -> None:
        self.events.append(event)
        if isinstance(event, RollbackStarted):
            self.went_back = self.loop.now
            ended = self.a.copy
            given_up = self.landed and "machine is gone" in event.reason
            if given_up and ended is not None and ended.died_at > self.landed:
                self.violated("all of memory had landed, and it goes back as the source's ends")
        elif isinstance(event, MemoryLanded):
            self.landed = self.loop.now
        self.point(type(event).__name__)


def _settings(place: str) -> Settings:
    return Settings(
        migration=MigrationSettings(
            data_address="10.0.0.2",
            max_blackout=BUDGET,
            test_timeout=12.0,
            prepare_timeout=90.0,
        ),
        agent=AgentSettings(allowed_hypervisors=(NAME,)),
        paths=PathSettings(state=f"{place}/state", run=f"{place}/run", log=f"{place}/log"),
    )
