"""The simulated world: two hosts with their disks, the network, the guest, the engine on both."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from entourage import recovery
from entourage.domain import Domain
from entourage.errors import EntourageError, HypervisorError
from entourage.hosts.link import Link
from entourage.hosts.route import Route
from entourage.journal.journal import Journal
from entourage.settings.model import AgentSettings, MigrationSettings, PathSettings, Settings
from entourage.source.migration import Migration, Request
from entourage.target.agent import Agent
from entourage.target.caller import Caller
from tests.sim.disk import Connection, Disk
from tests.sim.guest import At, Copy, Guest
from tests.sim.hypervisor import NAME
from tests.sim.loop import Killed, Loop, Process
from tests.sim.net import Network, Pipe, Ssh
from tests.sim.seams import Here, Locks

UUID = "5b6e6d0e-0000-4000-8000-000000000001"


class Violation(Exception):  # noqa: N818 - what was found
    """Something that must never be."""


class Host:
    """One host, and what is on it."""

    def __init__(self, world: World, name: str, settings: Settings, image: bytes) -> None:
        self.world = world
        self.name = name
        self.settings = settings
        self.journal = Disk(image)
        self.booted = world.rng.random() * 1e5
        self.on = True
        self.processes: list[Process] = []
        self.deadmen: list[Any] = []
        self.copy: Copy | None = None
        self.disk: int | None = None
        self.tpm: str | None = None
        self.locked_tpm = False
        self.thing = ""
        self.busy: set[str] = set()
        self.defined = self.lost_incoming = False
        self.excused_tpm = self.excused_thing = False
        self.other: Host = self

    def has(self, process: Process) -> bool:
        return process.host is self

    @property
    def copy_alive(self) -> Copy | None:
        return self.copy if self.copy is not None and self.copy.alive else None

    # What a hypervisor or a device's tool does

    async def takes(self, seconds: float) -> None:
        """Something takes about as long."""
        await asyncio.sleep(seconds * (0.5 + self.world.loop.rng.random()))

    async def asked(self, what: str) -> None:
        """The hypervisor, or a tool, is asked: it may refuse, hang, or take a while."""
        world = self.world
        world.check_alive(world.loop.current)
        world.point(f"ask.{what}")
        wrong = world.faults.for_call(self, what)
        if wrong == "fails":
            world.trace("fails", self.name, what)
            raise HypervisorError(f"{what} is refused")
        if wrong == "disk":
            raise OSError(errno.EIO, "Input/output error", what)
        if wrong:
            world.trace("hangs", self.name, what)
            await asyncio.sleep(float(wrong))
        await self.takes(0.002)
        world.check_alive(world.loop.current)
        world.point(f"does.{what}")

    async def answers(self, what: str) -> None:
        """What was asked for is done, and the answer is on its way."""
        self.world.point(f"done.{what}")
        await self.takes(0.001)

    def tpm_arrived(self) -> None:
        self.tpm = "cached"

    def disown(self) -> None:
        if not self.other.defined:
            self.world.violated(f"{self.name} forgets the domain, and the other host has none")
        self.defined = False

    def check_may_end(self, copy: Copy) -> None:
        """The newest copy is ended here: only where the other host has the guest."""
        if not self.world.released_there(self):
            self.world.violated(f"the copy on {self.name} is ended, and the other never ran")

    def check_may_erase(self, what: str) -> None:
        if not self.world.released_there(self):
            self.world.violated(f"{what} on {self.name} is erased, and the other never ran")
        if what == "tpm" and self.other.tpm != "safe" and not self.world.faults.spoilt("tpm"):
            self.world.violated(f"the TPM on {self.name} is erased: the other is not on the disk")

    def end_incoming(self) -> None:
        """End a machine that was being built; one that was released is no such thing."""
        copy = self.copy
        if copy is not None and copy.alive:
            if copy.released and copy.at is not At.HELD:
                self.world.violated(f"the copy on {self.name} is ended as a half-built one")
            copy.die("ended: it never ran")
        self.copy = None

    def undo(self, kind: str, spec: Any) -> None:
        """Undo a row of the ledger."""
        if kind == "disk":
            if self.copy_alive and self.copy_alive.released:
                self.world.violated(f"the disk of the guest that runs on {self.name} is deleted")
            self.disk = None
        elif kind == "machine" and self.copy is not None and self.copy.marker == spec["marker"]:
            self.end_incoming()

    # Its processes

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Process:
        process = Process(name, self, self.world.loop, self.booted)
        process.on_end.append(self.busy.clear)
        self.processes.append(process)
        self.world.loop.spawn(process, work)
        return process

    def living(self, name: str = "") -> list[Process]:
        return [p for p in self.processes if not p.over() and name in ("", p.name)]

    async def agent(
        self, reader: asyncio.StreamReader, writer: Pipe, stderr: asyncio.StreamReader
    ) -> None:
        """``entourage agent``."""
        process = self.world.loop.current
        settings = self.settings
        try:
            with Journal.open(Path(settings.paths.state, "journal.db")) as journal:
                link = Link(
                    reader,
                    writer,  # type: ignore[arg-type]
                    peer="the source",
                    silence=settings.migration.link_silence,
                )
                process.agent = Agent(link, settings, journal, Caller())
                await process.agent.run()
        except EntourageError as error:
            process.status = error.exit_code
            if not stderr.at_eof():
                stderr.feed_data(f"{error}\n".encode())

    def recover(self, *, fenced: bool = False) -> Process:
        """``entourage recover``."""
        name = self.world.domain.name if fenced else None
        return self.start(
            "recover", lambda: recovery.recover(self.settings, name, target_is_fenced=fenced)
        )

    # What may happen to it

    def power_cut(self) -> None:
        """Everything on it stops, and what was not on a disk is gone."""
        world = self.world
        if not self.on:
            return
        self.on = False
        world.guest.write()
        world.net.lose(self)
        for hand in list(self.deadmen):
            hand.armed = False
            hand.die()
        current = None
        for process in self.living():
            if process is world.loop.current:
                current = process
            else:
                world.loop.kill(process)
        self.journal.power_cut()
        if self.copy is not None:
            self.crash("ended: the host lost power")
            self.copy = None
        self.locked_tpm = False
        if self.tpm == "cached":
            self.tpm = None
        if current is not None:
            world.loop.kill(current)

    def crash(self, why: str) -> None:
        """Its copy of the guest ends, by no will of anybody's."""
        copy, guest = self.copy_alive, self.world.guest
        if copy is None:
            return
        # Where GO is on the disk, or comes there, later processes cannot tell that it never ran.
        self.lost_incoming = self.lost_incoming or not copy.released
        guest.killed = guest.killed or copy.released
        copy.die(why)

    def power_on(self) -> None:
        self.on = True


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
        self.said_back = False
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
        self.faults.at_point(self.points, name)

    def logged(self, text: str) -> None:
        self.log.append(text)
        self.trace("log", str(self.loop.current), text)
        if "internal error" in text:
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
            live=self.rng.random() > 0.1,
        )
        self.migration = Migration(request, self.listen)
        return await self.migration.run()

    def listen(self, event: Any) -> None:
        self.events.append(event)
        self.point(type(event).__name__)


def _settings(place: str) -> Settings:
    return Settings(
        migration=MigrationSettings(data_address="10.0.0.2", max_blackout=10.0),
        agent=AgentSettings(allowed_hypervisors=(NAME,)),
        paths=PathSettings(state=f"{place}/state", run=f"{place}/run", log=f"{place}/log"),
    )
