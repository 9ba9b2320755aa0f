"""Two QEMUs on one machine, two hosts by their directories: the QEMU backend without the engine.

The guest is a boot sector. It counts in memory at 0x500, writes each count to the disk with the
BIOS, and notes at 0x504 what the disk has acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from entourage.domain import Block, Domain, Pci, Tpm, Usb
from entourage.hosts.resources import MARKER, MemoryLedger
from entourage.hypervisors.base import DataPlane, Plan, Secret, Ticket
from entourage.hypervisors.qemu.hypervisor import QemuHypervisor
from entourage.hypervisors.qemu.incoming import QemuIncoming
from entourage.hypervisors.qemu.machine import QemuMachine
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.qemu.record import read_running
from entourage.settings.model import AgentSettings, PathSettings, QemuSettings, Settings

# again: inc dword [0x500]; [0x8000] = [0x500]; int 13h (write sector 2048 + [0x500] % 1024);
#        [0x504] = [0x500]; jmp again
BOOT_SECTOR = (
    bytes.fromhex(
        "31c08ed88ec08ed0bc007cfbfc66c7060005000000008816100566ff06000566"
        "a1000566a300806625ff03000066050008000066a3080666c7060c0600000000"
        "66c70600061000010066c706040600800000be00068a161005b80043cd137210"
        "66a1000566a30405baf803b02eeeebaabaf803b021eef4ebf7"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
FIRST_SECTOR, SECTORS = 2048, 1024
SIZE = 32 << 20
DATA = 3 << 20
PORTS = (49300, 49400)
NO_PLAN = Plan(msgspec.msgpack.encode({}))
_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_ANY_CHILD = 0x40000000  # __WALL
LOG = logging.getLogger(__name__)
has_swtpm = shutil.which("swtpm") is not None


@dataclass
class Host:
    root: Path
    settings: Settings
    hypervisor: QemuHypervisor

    @classmethod
    def make(cls, root: Path) -> Host:
        root.mkdir()
        root.parent.chmod(0o755)  # QEMU's user must pass through,
        root.chmod(0o1777)  # and makes an overlay there when it is told to
        paths = PathSettings(state=f"{root}/state", run=f"{root}/run", log=f"{root}/log")
        user = "nobody" if os.geteuid() == 0 else None  # there on every host
        # Every file of the test's is an image that may be given, and nothing is encrypted unasked.
        agent = AgentSettings(image_directories=("/",), allow_unencrypted=True)
        settings = Settings(paths=paths, qemu=QemuSettings(user=user), agent=agent)
        return cls(root, settings, QemuHypervisor(settings))

    def disk(self, name: str = "disk0") -> Path:
        return self.root / f"{name}.img"

    def incoming(self, domain: Domain, ledger: MemoryLedger | None = None) -> QemuIncoming:
        where = places(self.settings, str(domain.uuid), domain.name)
        return QemuIncoming(domain, where, ledger or MemoryLedger(), settings=self.settings)

    async def ask(self, domain: Domain, command: str) -> str:
        where = places(self.settings, str(domain.uuid), domain.name)
        monitor = await Monitor.connect(where.info)
        try:
            arguments = {"command-line": command}
            return str(await monitor.execute("human-monitor-command", arguments))
        finally:
            await monitor.close()

    async def counts(self, domain: Domain) -> tuple[int, int]:
        """What the guest has counted, and what its disk has acknowledged."""
        words = (await self.ask(domain, "xp /2wx 0x500")).split(":")[1].split()
        return int(words[0], 16), int(words[1], 16)

    async def runs(self, domain: Domain, beyond: int = 0) -> int:
        """Wait until the guest has written something more than ``beyond``; what it then had."""
        # A boot sector has no way to tell; that it counts can only be looked at.
        while (now := (await self.counts(domain))[1]) <= beyond:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return now

    async def status(self, domain: Domain) -> str:
        for state in await self.hypervisor.domains():
            if state.name == domain.name:
                return state.state
        return ""

    def main_thread(self, domain: Domain) -> int:
        """The number of the main thread of a domain's QEMU."""
        running = read_running(places(self.settings, str(domain.uuid), domain.name))
        assert running is not None
        return running.pid

    def processes(self) -> list[str]:
        """Command lines of what runs for this host."""
        found: list[str] = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes()
                if MARKER.encode() in environment and f"{self.root}/" in command:
                    found.append(command)
        return found

    def files(self) -> list[str]:
        """What is left of sockets, keys, records and TPMs."""
        return sorted(
            str(path.relative_to(self.root))
            for top in ("run", "state")
            for path in (self.root / top).rglob("*")
            if not path.is_dir()
        )


def make_disk(path: Path, *, boot: bool) -> None:
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.write(BOOT_SECTOR if boot else b"")
        file.seek(8 << 20)
        file.write(os.urandom(DATA))


def a_domain(host: Host, *, disks: int = 1, tpm: bool = True, name: str = "web") -> Domain:
    for index in range(disks):
        make_disk(host.disk(f"disk{index}"), boot=index == 0)
    return Domain(
        name=name,
        memory=64 << 20,
        accel="tcg",
        block=tuple(Block(id=f"disk{i}", path=str(host.disk(f"disk{i}"))) for i in range(disks)),
        tpm=(Tpm(id="tpm0"),) if tpm and has_swtpm else (),
        usb=(Usb(id="tablet", model="usb-tablet"),),
        pci=(Pci(id="rng", model="virtio-rng-pci"),),
    )


@dataclass
class Hosts:
    a: Host
    b: Host
    moves: list[Move] = field(default_factory=list["Move"])

    async def start(self, domain: Domain) -> Domain:
        await self.a.hypervisor.start(domain)
        resolved = await self.a.hypervisor.find(domain.name)
        await self.a.runs(resolved)
        return resolved


class Move:
    """A migration in stages; each can be the last."""

    def __init__(self, hosts: Hosts, domain: Domain, *, tls: bool = True) -> None:
        hosts.moves.append(self)
        self.hosts = hosts
        self.domain = domain
        secret = Secret("entourage", secrets.token_bytes(32)) if tls else None
        self.plane = DataPlane(address="127.0.0.1", ports=PORTS, secret=secret)
        self.ledger = MemoryLedger()
        there = domain
        for disk in domain.block:
            path = str(hosts.b.disk(disk.id))
            there = there.with_device(msgspec.structs.replace(disk, path=path))
        self.there = there
        self.incoming = hosts.b.incoming(there, self.ledger)
        self.machine: QemuMachine = None  # type: ignore[assignment]
        self.ticket = Ticket(uri="")
        self.stopped_at = 0
        self.resumed_at = 0

    async def let_go(self) -> None:
        """Let go of what a failed test still holds."""
        if self.machine is not None:  # pyright: ignore[reportUnnecessaryComparison]
            await self.machine.close()
        await self.incoming.close()

    async def open(self) -> None:
        machine = await self.hosts.a.hypervisor.machine(self.domain.name)
        assert isinstance(machine, QemuMachine)
        self.machine = machine

    async def test(self) -> None:
        facts = await self.machine.facts()
        refusals = await self.hosts.b.hypervisor.test_incoming(self.there, "b", facts)
        assert not refusals
        assert not await self.machine.blockers()

    async def arm(self) -> None:
        await self.machine.arm(self.plane, throttle=True)

    async def build(self) -> None:
        for here, disk in zip(self.domain.block, self.there.block, strict=True):
            path = Path(disk.path)
            if not path.exists():
                path.touch()
                os.truncate(path, Path(here.path).stat().st_size)
        await self.incoming.build(self.there, self.plane, NO_PLAN)

    async def mirror(self) -> None:
        async def one(disk: Block) -> None:
            export = await self.incoming.exports.export(disk)
            await self.machine.mirroring.mirror(disk, export, top_only=False)

        await asyncio.gather(*map(one, self.domain.block))

    async def start(self) -> None:
        self.ticket = await self.incoming.listen()
        await self.machine.start(self.ticket, live=True)
        await self.machine.tune(downtime_limit=0.3, throttle=True)
        assert (await self.machine.progress()).total > 0

    async def stop(self) -> None:
        self.stopped_at = await self.machine.stopped()

    async def settle(self) -> None:
        await asyncio.gather(*map(self.machine.mirroring.complete, self.domain.block))

    async def proceed(self) -> None:
        await self.machine.continue_switchover()

    async def land(self) -> None:
        await asyncio.gather(self.machine.landed(), self.incoming.landed())

    async def disarm(self) -> None:
        await self.machine.disarm_deadman()

    @property
    def stages(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.open,
            self.test,
            self.arm,
            self.build,
            self.mirror,
            self.start,
            self.stop,
            self.settle,
            self.proceed,
            self.land,
            self.disarm,
        ]

    async def up_to(self, last: str) -> None:
        for stage in self.stages:
            await stage()
            if stage.__name__ == last:
                return
        pytest.fail(f"no stage {last}")

    async def finish(self) -> None:
        self.resumed_at = await self.incoming.run(paused=not self.machine.was_running)
        for tpm in self.there.tpm:
            await self.incoming.tpm.sync(tpm)
        await self.incoming.persist_definition()
        await self.incoming.finish_arrival()
        await self.machine.release()
        for tpm in self.domain.tpm:
            await self.machine.tpm.erase(tpm)
        await self.machine.close()

    async def undo_target(self) -> None:
        await self.incoming.kill()
        assert await self.ledger.undo() == []

    async def abort(self) -> float:
        """Back to the source; seconds until its guest ran."""
        start = time.monotonic()
        await self.machine.abort()
        took = time.monotonic() - start
        for disk in self.domain.block:
            await self.machine.mirroring.cancel(disk)
        await self.machine.close()
        return took


def written(path: Path) -> int:
    """The highest count on a disk."""
    with path.open("rb") as file:
        file.seek(FIRST_SECTOR * 512)
        return max(int.from_bytes(file.read(512)[:4], "little") for _ in range(SECTORS))


async def leftovers_in_qemu(host: Host, domain: Domain) -> list[str]:
    """Mirrors, jobs, keys and threads that a migration has left in a machine."""
    where = places(host.settings, str(domain.uuid), domain.name)
    monitor = await Monitor.connect(where.info)
    try:
        nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
        jobs = await monitor.execute("query-jobs")
        objects = await monitor.execute("qom-list", {"path": "/objects"})
        threads = await monitor.execute("query-iothreads")
        return [
            *(n["node-name"] for n in nodes if n["node-name"].startswith(("m", "x"))),
            *(job["id"] for job in jobs),
            *(o["name"] for o in objects if "tls" in o["name"]),
            *(thread["id"] for thread in threads),
        ]
    finally:
        await monitor.close()


@contextlib.contextmanager
def held(thread: int) -> Generator[None]:
    """One thread stands still, and the others of its process go on; see ptrace(2)."""
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request: int) -> None:
        if library.ptrace(request, thread, None, None):
            raise OSError(ctypes.get_errno(), "ptrace")

    ptrace(_SEIZE)
    try:
        ptrace(_INTERRUPT)
        os.waitpid(thread, _ANY_CHILD)
        yield
    finally:
        ptrace(_DETACH)


async def run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0
