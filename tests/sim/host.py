"""One simulated host: what is on it, what its hypervisor and tools do, its processes, its power."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entourage import recovery
from entourage.errors import EntourageError, HypervisorError
from entourage.hosts.link import Link
from entourage.journal.journal import Journal
from entourage.settings.model import Settings
from entourage.steps import Step
from entourage.target.agent import Agent
from entourage.target.caller import Caller
from tests.sim.disk import Disk
from tests.sim.guest import At, Copy
from tests.sim.loop import Process
from tests.sim.net import Pipe

if TYPE_CHECKING:
    from tests.sim.world import World

_SELDOM, _LONGER = 0.02, 30


class Host:
    """One host, and what is on it."""

    def __init__(self, world: World, name: str, settings: Settings, image: bytes) -> None:
        self.world = world
        self.name = name
        self.settings = settings
        self.journal = Disk(image)
        self.booted = world.rng.random() * 1e5
        self.on = True
        self.vouched_off = False
        self.processes: list[Process] = []
        self.deadmen: list[Any] = []
        self.copy: Copy | None = None
        self.disk: int | None = None
        self.tpm: str | None = None
        self.locked_tpm = False
        self.thing = ""
        self.busy: set[str] = set()
        self.finished: dict[str, Step] = {}
        self.unanswered = ""
        self.defined = self.lost_incoming = False
        self.kept = False
        """Of a checkpoint: all of it is on the disk, under its name."""
        self.excused_tpm = self.excused_thing = self.must_tell = False
        self.other: Host = self

    def has(self, process: Process) -> bool:
        return process.host is self

    def has_written(self, record: str) -> bool:
        """Whether its journal has such a record."""
        asked = "SELECT 1 FROM decisions WHERE record=?"
        return self.journal.database.execute(asked, (record,)).fetchone() is not None

    @property
    def copy_alive(self) -> Copy | None:
        return self.copy if self.copy is not None and self.copy.alive else None

    # What a hypervisor or a device's tool does

    async def takes(self, seconds: float) -> None:
        """Something takes about as long; now and then much longer, unless it is long already."""
        rng = self.world.loop.rng
        longer = _LONGER if seconds < 1 and rng.random() < _SELDOM else 1
        await asyncio.sleep(seconds * longer * (0.5 + rng.random()))

    async def ends(self, work: Callable[[], None]) -> None:
        """A program is ended in the middle of its work: until it has ended, it goes on with it."""
        done = asyncio.get_running_loop().create_future()

        def work_on() -> None:
            if self.on and not self.world.loop.over:
                work()
            if not done.done():
                done.set_result(None)

        self.world.loop.after(0.02 + 0.04 * self.world.loop.rng.random(), work_on)
        await done

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
        if wrong == "late":
            self.unanswered = what
        elif wrong:
            world.trace("hangs", self.name, what)
            await asyncio.sleep(float(wrong))
        await self.takes(0.002)
        world.check_alive(world.loop.current)
        world.point(f"does.{what}")

    async def answers(self, what: str, lost: type[EntourageError] = HypervisorError) -> None:
        """What was asked for is done, and the answer is on its way, or lost.

        Args:
            what: As it was asked for.
            lost: What is raised where nobody can know whether it is done.
        """
        self.world.point(f"done.{what}")
        if self.unanswered == what:
            self.unanswered = ""
            self.world.trace("unanswered", self.name, what)
            raise lost(f"{what} is not answered")
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

    def end_mirror(self) -> None:
        """The mirror from here, if there is one, is given up."""
        mirror = self.world.guest.mirror
        if mirror is not None and mirror.source is self:
            mirror.end()

    def check_may_erase(self, what: str) -> None:
        if self.copy_alive is not None:
            self.world.violated(f"{what} on {self.name} is erased under the machine that has it")
        if not self.world.released_there(self):
            self.world.violated(f"{what} on {self.name} is erased, and the other never ran")
        if what == "tpm" and self.other.tpm != "safe":
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
            elif self.copy_alive:
                self.world.violated(f"a disk on {self.name} is deleted before its machine is ended")
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
                process.agent = Agent(link, settings, journal, Caller(local=self.world.checkpoint))
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
        # What is done about RAN comes later: so the source hears of it before it ends.
        self.must_tell = copy.released and self.other.journal.says("source", "armed")
        copy.die(why)

    def power_on(self) -> None:
        self.on = not self.vouched_off
