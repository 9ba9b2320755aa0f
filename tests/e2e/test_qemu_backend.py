"""Two QEMUs on one machine, two hosts by their directories: the QEMU backend without the engine.

The guest is a boot sector. It counts in memory at 0x500, writes each count to the disk with the
BIOS, and notes at 0x504 what the disk has acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from entourage.domain import Block, Boot, Domain, Pci, Tpm, Usb
from entourage.errors import DomainBusy, HypervisorError, UsageError
from entourage.hosts.resources import MARKER, MemoryLedger, end_processes
from entourage.hypervisors.base import DataPlane, Secret
from entourage.hypervisors.qemu import QemuHypervisor
from entourage.hypervisors.qemu.incoming import QemuIncoming
from entourage.hypervisors.qemu.machine import QemuMachine
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.qemu.record import read_running
from entourage.protocol import Guest
from entourage.settings.model import PathSettings, Settings

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(60),
]

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
        paths = PathSettings(state=f"{root}/state", run=f"{root}/run", log=f"{root}/log")
        settings = Settings(paths=paths)
        return cls(root, settings, QemuHypervisor(settings))

    def disk(self, name: str = "disk0") -> Path:
        return self.root / f"{name}.img"

    def incoming(self, domain: Domain, ledger: MemoryLedger | None = None) -> QemuIncoming:
        where = places(self.settings, str(domain.uuid), domain.name)
        return QemuIncoming(domain, where, ledger or MemoryLedger())

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


@pytest.fixture
async def hosts() -> AsyncGenerator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="qb-") as root:
        both = Hosts(Host.make(Path(root, "a")), Host.make(Path(root, "b")))
        yield both
        for move in both.moves:
            await move.let_go()
        for host in (both.a, both.b):
            for record in host.root.glob("run/q/*/running.json"):
                await end_processes(msgspec.json.decode(record.read_bytes())["marker"])
        left = [*both.a.processes(), *both.b.processes()]
        assert not left, left


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
        for disk in self.there.block:
            path = Path(disk.path)
            if not path.exists():
                path.touch()
                os.truncate(path, SIZE)
        await self.incoming.build(self.there, self.plane)

    async def mirror(self) -> None:
        async def one(disk: Block) -> None:
            export = await self.incoming.export(disk)
            await self.machine.mirror(disk, export, top_only=False)

        await asyncio.gather(*map(one, self.domain.block))

    async def start(self) -> None:
        await self.machine.start(await self.incoming.listen(), live=True)
        await self.machine.tune(downtime_limit=0.3, throttle=True)
        assert (await self.machine.progress()).total > 0

    async def stop(self) -> None:
        self.stopped_at = await self.machine.stopped()

    async def settle(self) -> None:
        await asyncio.gather(*map(self.machine.settle, self.domain.block))

    async def proceed(self) -> None:
        await self.machine.proceed()

    async def land(self) -> None:
        await asyncio.gather(self.machine.landed(), self.incoming.landed())

    async def disarm(self) -> None:
        await self.machine.disarm_dead_hand()

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
            await self.incoming.sync_tpm(tpm)
        await self.incoming.own()
        await self.incoming.settle_in()
        await self.machine.release()
        for tpm in self.domain.tpm:
            await self.machine.erase_tpm(tpm)
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
            await self.machine.unmirror(disk)
        await self.machine.close()
        return took


def written(path: Path) -> int:
    """The highest count on a disk."""
    with path.open("rb") as file:
        file.seek(FIRST_SECTOR * 512)
        return max(int.from_bytes(file.read(512)[:4], "little") for _ in range(SECTORS))


async def leftovers_in_qemu(host: Host, domain: Domain) -> list[str]:
    """Mirrors, jobs and keys that a migration has left in a machine."""
    where = places(host.settings, str(domain.uuid), domain.name)
    monitor = await Monitor.connect(where.info)
    try:
        nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
        jobs = await monitor.execute("query-jobs")
        objects = await monitor.execute("qom-list", {"path": "/objects"})
        return [
            *(n["node-name"] for n in nodes if n["node-name"].startswith(("m", "x"))),
            *(job["id"] for job in jobs),
            *(o["name"] for o in objects if "tls" in o["name"]),
        ]
    finally:
        await monitor.close()


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear-ipv6"])
async def test_a_guest_moves_with_disk_and_tpm(
    hosts: Hosts,
    tls: bool,  # noqa: FBT001 - a parameter of pytest's
    record_property: Callable[[str, object], None],
) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    before = await hosts.a.runs(domain)
    move = Move(hosts, domain, tls=tls)
    if not tls:
        move.plane = msgspec.structs.replace(move.plane, address="::1")
    await move.up_to("disarm")
    acknowledged = (await hosts.a.counts(domain))[1]
    assert acknowledged >= before
    await move.finish()
    blackout = (move.resumed_at - move.stopped_at) / 1e6
    record_property("blackout_ms", blackout)
    LOG.info("blackout %.1f ms", blackout)

    await hosts.b.runs(domain, acknowledged + 20)
    assert await hosts.b.status(domain) == "running"
    assert written(hosts.b.disk()) > acknowledged
    assert written(hosts.a.disk()) <= acknowledged + 1  # the source's disk has parted
    # Holes have stayed holes.
    assert hosts.b.disk().stat().st_blocks * 512 < DATA + (2 << 20)
    assert await leftovers_in_qemu(hosts.b, domain) == []
    assert hosts.a.processes() == []
    assert hosts.a.files() == []
    assert not any("psk" in name for name in hosts.b.files())
    assert await hosts.a.hypervisor.domains() == []


async def test_there_and_back_again(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    count = 0
    for _ in range(3):
        move = Move(hosts, domain)
        await move.up_to("disarm")
        await move.finish()
        count = await hosts.b.runs(domain, count)
        hosts.a, hosts.b = hosts.b, hosts.a
        domain = await hosts.a.hypervisor.find(domain.name)
        hosts.b.disk().unlink()


STAGES = ["arm", "build", "mirror", "start", "stop", "settle", "proceed", "land", "disarm"]


@pytest.mark.parametrize("stage", STAGES)
async def test_abort_brings_the_guest_back(
    hosts: Hosts, stage: str, record_property: Callable[[str, object], None]
) -> None:
    domain = await hosts.start(a_domain(hosts.a, disks=2, tpm=stage in {"stop", "land"}))
    move = Move(hosts, domain)
    await move.up_to(stage)
    count = (await hosts.a.counts(domain))[1]
    took, _ = await asyncio.gather(move.abort(), move.undo_target())
    record_property("abort_ms", took * 1000)
    LOG.info("abort after %s took %.1f ms", stage, took * 1000)
    await hosts.a.runs(domain, count + 10)
    assert await hosts.a.status(domain) == "running"
    assert await leftovers_in_qemu(hosts.a, domain) == []
    assert hosts.b.processes() == []
    assert hosts.b.files() == []

    if stage not in {"stop", "land"}:
        return
    # … and a second try succeeds.
    again = Move(hosts, domain)
    await again.up_to("disarm")
    await again.finish()
    await hosts.b.runs(domain, count)


@pytest.mark.parametrize("stage", ["mirror", "start", "stop", "settle", "land"])
async def test_the_target_dies(hosts: Hosts, stage: str) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    move = Move(hosts, domain)
    await move.up_to(stage)
    count = (await hosts.a.counts(domain))[1]
    where = places(hosts.b.settings, str(domain.uuid), domain.name)
    running = read_running(where)
    assert running
    died = asyncio.create_task(move.incoming.died())
    os.kill(running.pid, signal.SIGKILL)
    assert await died
    await move.abort()
    await hosts.a.runs(domain, count + 10)
    await move.undo_target()
    assert await leftovers_in_qemu(hosts.a, domain) == []
    assert hosts.b.processes() == []
    assert hosts.b.files() == []


async def test_the_source_dies_before_it_has_landed(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    move = Move(hosts, domain)
    await move.up_to("stop")
    running = read_running(places(hosts.a.settings, str(domain.uuid), domain.name))
    assert running
    os.kill(running.pid, signal.SIGKILL)
    assert "QEMU has ended" in await move.machine.died()
    with pytest.raises(HypervisorError, match="QEMU has ended"):
        await move.abort()
    await move.machine.close()
    await move.undo_target()
    assert hosts.a.processes() == []
    assert await hosts.a.status(domain) == "shut off"  # the domain is still this host's
    await hosts.a.hypervisor.start(await hosts.a.hypervisor.find(domain.name))
    await hosts.a.runs(domain)


async def test_the_source_dies_after_it_has_landed(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    move = Move(hosts, domain)
    await move.up_to("land")
    count = (await hosts.a.counts(domain))[1]
    running = read_running(places(hosts.a.settings, str(domain.uuid), domain.name))
    assert running
    os.kill(running.pid, signal.SIGKILL)
    await move.machine.died()
    await move.disarm()
    await move.finish()
    await hosts.b.runs(domain, count)
    assert hosts.a.files() == []
    assert hosts.a.processes() == []


@pytest.mark.parametrize("stage", ["mirror", "start", "stop", "settle"])
async def test_the_target_falls_silent(hosts: Hosts, stage: str) -> None:
    """Its connections stand, and nobody answers: the guest's writes wait for the mirror's."""
    domain = await hosts.start(a_domain(hosts.a, disks=2))
    move = Move(hosts, domain)
    await move.up_to(stage)
    where = places(hosts.b.settings, str(domain.uuid), domain.name)
    running = read_running(where)
    assert running
    before, count = -1, (await hosts.a.counts(domain))[1]
    os.kill(running.pid, signal.SIGSTOP)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.5):  # once it is to stop, QEMU itself hangs
            while count != before:
                before = count
                await asyncio.sleep(0.3)  # until the guest hangs in a write
                count = (await hosts.a.counts(domain))[1]
    took = await move.abort()
    LOG.info("abort after %s with a silent target took %.0f ms", stage, took * 1000)
    assert took < 3
    await hosts.a.runs(domain, count + 10)
    assert await leftovers_in_qemu(hosts.a, domain) == []
    await move.undo_target()


@pytest.mark.parametrize("disks", [1, 0])
async def test_a_wrong_key_moves_nothing(hosts: Hosts, disks: int) -> None:
    domain = a_domain(hosts.a, disks=1, tpm=False)
    if not disks:
        # The boot sector as a read-only disk that both hosts see, so that there is no mirror.
        domain = msgspec.structs.replace(domain, block=())
    await hosts.a.hypervisor.start(domain)
    domain = await hosts.a.hypervisor.find(domain.name)
    move = Move(hosts, domain)
    await move.up_to("build")
    await move.machine.abort()
    wrong = Secret("entourage", secrets.token_bytes(32))
    await move.machine.arm(msgspec.structs.replace(move.plane, secret=wrong))
    with pytest.raises(HypervisorError) as caught:
        await (move.mirror() if disks else move.start())
    assert caught.value.device == ("block/disk0" if disks else "")
    await move.abort()
    await move.undo_target()
    assert await hosts.a.status(domain) == "running"


async def test_a_paused_guest_stays_paused(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    await hosts.a.ask(domain, "stop")
    move = Move(hosts, domain)
    await move.up_to("stop")
    assert not move.machine.was_running
    assert move.stopped_at
    await asyncio.gather(move.abort(), move.undo_target())
    assert await hosts.a.status(domain) == "postmigrate"
    await move.open()
    assert "resume" in (await move.machine.blockers())[0].remedy  # QEMU would say so too late
    await move.machine.close()

    await hosts.a.ask(domain, "cont")
    await hosts.a.ask(domain, "stop")
    again = Move(hosts, domain)
    await again.up_to("disarm")
    await again.finish()
    assert await hosts.b.status(domain) == "paused"
    await hosts.b.ask(domain, "cont")
    await hosts.b.runs(domain, (await hosts.b.counts(domain))[1])


async def test_not_live(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    for abort in (True, False):
        move = Move(hosts, domain)
        await move.up_to("mirror")
        await move.machine.start(await move.incoming.listen(), live=False)
        await move.stop()
        assert move.stopped_at
        await move.settle()
        await move.proceed()
        await move.land()
        count = (await hosts.a.counts(domain))[1]
        if abort:
            await move.abort()
            await move.undo_target()
            await hosts.a.runs(domain, count)
        else:
            await move.finish()
            await hosts.b.runs(domain, count)


async def test_shared_disk(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    move = Move(hosts, domain)
    move.there = domain  # the same file on both hosts
    for stage in (move.open, move.arm, move.build, move.start, move.stop, move.proceed, move.land):
        await stage()
    count = (await hosts.a.counts(domain))[1]
    await move.abort()  # although the target stands, complete and paused
    await hosts.a.runs(domain, count)
    await move.undo_target()

    again = Move(hosts, domain)
    again.there = domain
    for stage in (again.open, again.arm, again.build, again.start, again.stop, again.proceed):
        await stage()
    await again.land()
    await again.disarm()
    await again.finish()
    await hosts.b.runs(domain, count)


async def test_a_read_only_disk_is_mirrored(hosts: Hosts) -> None:
    domain = a_domain(hosts.a, disks=3, tpm=False)
    domain = msgspec.structs.replace(domain, machine="pc")
    disk, cd = domain.block[1:]
    domain = domain.with_device(msgspec.structs.replace(disk, readonly=True))
    domain = domain.with_device(msgspec.structs.replace(cd, readonly=True, model="ide-cd"))
    domain = await hosts.start(domain)
    move = Move(hosts, domain)
    await move.up_to("disarm")
    await move.finish()
    await hosts.b.runs(domain)
    for name in ("disk1", "disk2"):
        assert hosts.b.disk(name).read_bytes() == hosts.a.disk(name).read_bytes()
    assert await leftovers_in_qemu(hosts.b, domain) == []


async def test_a_qcow2_chain_is_copied_on_top_of_its_base(hosts: Hosts) -> None:
    domain = a_domain(hosts.a, tpm=False)
    base = hosts.a.root / "base.img"
    hosts.a.disk().rename(base)
    for host in (hosts.a, hosts.b):  # both see the base
        await run(
            *("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"),
            *("-b", str(base), str(host.disk())),
        )
    disk = msgspec.structs.replace(domain.block[0], format="qcow2")
    domain = await hosts.start(domain.with_device(disk))
    move = Move(hosts, domain)
    for stage in (move.open, move.arm, move.build):
        await stage()
    export = await move.incoming.export(move.there.block[0])
    await move.machine.mirror(domain.block[0], export, top_only=True)
    for stage in (move.start, move.stop, move.settle, move.proceed, move.land, move.disarm):
        await stage()
    count = (await hosts.a.counts(domain))[1]
    await move.finish()
    await hosts.b.runs(domain, count)
    assert hosts.b.disk().stat().st_size < DATA  # the base's data stayed there


async def run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0


NETWORK = """
    import asyncio, socket, subprocess, sys, tempfile
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from entourage.domain import Net
    from test_qemu_backend import Host, Hosts, Move, a_domain, msgspec

    def taps():
        return sorted(name for _, name in socket.if_nameindex() if name not in ("lo", "br0"))

    async def main(root):
        for command in ("link add br0 type bridge", "link set br0 mtu 1400 up", "link set lo up"):
            subprocess.run(["ip", *command.split()], check=True)
        hosts = Hosts(Host.make(Path(root, "a")), Host.make(Path(root, "b")))
        domain = a_domain(hosts.a, tpm=False)
        nets = (Net(id="net0", bridge="br0"), Net(id="net1", bridge="br0", model="e1000e"))
        domain = await hosts.start(msgspec.structs.replace(domain, net=nets))
        here = taps()
        assert here == sorted(net.tap for net in domain.net), here
        for name in here:
            assert Path("/sys/class/net", name, "master").resolve().name == "br0"
            assert Path("/sys/class/net", name, "mtu").read_text() == "1400\\n"
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035))
        wire.bind(("br0", 0))
        wire.settimeout(5)
        move = Move(hosts, domain)
        await move.up_to("disarm")
        # Two hosts in one namespace: the target's taps have other names.
        assert len(taps()) == 4 and set(here) < set(taps()), taps()
        wire.setblocking(False)
        try:
            raise AssertionError(f"announced before it runs: {{wire.recv(2000)}}")
        except BlockingIOError:
            pass
        there = [net for net in (await hosts.b.hypervisor.find(domain.name)).net]
        move.resumed_at = await move.incoming.run(paused=False)
        await move.incoming.announce(there[1:])
        wire.settimeout(5)
        frame = await asyncio.to_thread(wire.recv, 2000)
        assert frame[6:12].hex(":") == domain.net[1].mac, frame
        await move.incoming.own()
        await move.incoming.settle_in()
        await move.machine.release()
        assert taps() == sorted(net.tap for net in there), taps()
        assert not set(taps()) & set(here)
        await move.machine.close()
        await hosts.b.hypervisor.stop(domain.name, force=True, patience=5)
        assert taps() == [], taps()

    with tempfile.TemporaryDirectory(prefix="qb-") as root:
        asyncio.run(main(root))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="taps and namespaces need root")
async def test_taps_come_and_go_with_their_machine() -> None:
    script = textwrap.dedent(NETWORK).format(tests=str(Path(__file__).parent))
    argv = ("unshare", "--net", "--mount", "sh", "-c")
    mounted = 'mount -t sysfs sysfs /sys && exec "$0" -c "$1"'
    await run(*argv, mounted, sys.executable, script)


async def test_taken_up_after_a_crash(hosts: Hosts) -> None:
    """Both halves are left where they stand, and others take them up."""
    domain = await hosts.start(a_domain(hosts.a))
    for back in (True, False):
        move = Move(hosts, domain)
        await move.up_to("disarm")
        await move.machine.close()
        machine = await hosts.a.hypervisor.taken_up(domain)
        assert await machine.reattach(was_running=True) is Guest.STOPPED
        count = (await hosts.a.counts(domain))[1]
        # The agent's monitor is another process's in reality, and dies with it.
        await move.incoming.close()
        incoming = hosts.b.incoming(domain)
        assert await incoming.attach() is Guest.STOPPED
        if back:
            await incoming.kill()
            assert await incoming.attach() is Guest.DEAD
            await move.ledger.undo()
            await machine.abort()
            await hosts.a.runs(domain, count)
            await machine.close()
        else:
            await incoming.run(paused=False)
            await hosts.b.runs(domain, count)
            assert await incoming.attach() is Guest.RUNNING
            await incoming.own()
            await incoming.settle_in()
            await machine.release()
            for tpm in domain.tpm:
                await machine.erase_tpm(tpm)
            await machine.close()
    assert hosts.a.files() == []
    gone = await hosts.a.hypervisor.taken_up(domain)
    assert await gone.reattach(was_running=True) is Guest.DEAD
    await gone.abort()
    await gone.release()
    for tpm in domain.tpm:
        await gone.erase_tpm(tpm)


HOLDER = """
    import asyncio, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_qemu_backend import Host, Hosts, Move, QemuHypervisor, Settings, PathSettings

    def host(root):
        paths = PathSettings(state=f"{{root}}/state", run=f"{{root}}/run", log=f"{{root}}/log")
        return Host(Path(root), Settings(paths=paths), QemuHypervisor(Settings(paths=paths)))

    async def main():
        hosts = Hosts(host({a!r}), host({b!r}))
        domain = await hosts.a.hypervisor.find("web")
        move = Move(hosts, domain)
        await move.up_to({stage!r})
        print("there", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.mark.parametrize("stage", ["mirror", "stop", "settle", "land", "disarm"])
async def test_the_dead_hand(hosts: Hosts, stage: str) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    script = textwrap.dedent(HOLDER).format(
        tests=str(Path(__file__).parent), a=str(hosts.a.root), b=str(hosts.b.root), stage=stage
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    assert await process.stdout.readline() == b"there\n"
    count = (await hosts.a.counts(domain))[1]
    start = time.monotonic()
    process.kill()
    await process.wait()
    if stage == "disarm":
        await asyncio.sleep(0.5)
        assert (await hosts.a.counts(domain))[1] == count
        assert await hosts.a.status(domain) == "postmigrate"
    else:
        await hosts.a.runs(domain, count + (200 if stage == "mirror" else 0))
        LOG.info("the dead hand after %s: %.0f ms", stage, (time.monotonic() - start) * 1000)
        assert await hosts.a.status(domain) == "running"
    incoming = hosts.b.incoming(domain)
    await incoming.kill()
    machine = await hosts.a.hypervisor.taken_up(domain)
    await machine.reattach(was_running=True)
    await machine.abort()
    for disk in domain.block:
        await machine.unmirror(disk)
    await machine.close()
    await hosts.a.runs(domain, count)
    assert await leftovers_in_qemu(hosts.a, domain) == []


async def test_start_says_what_is_wrong(hosts: Hosts) -> None:
    domain = a_domain(hosts.a, tpm=False)
    lost = domain.with_device(Block(id="disk0", path="/nowhere/at all"))
    with pytest.raises(UsageError, match="there is no /nowhere/at all"):
        await hosts.a.hypervisor.start(lost)
    qcow2 = domain.with_device(msgspec.structs.replace(domain.block[0], format="qcow2"))
    with pytest.raises(UsageError, match="no qcow2 image"):
        await hosts.a.hypervisor.start(qcow2)
    with pytest.raises(UsageError, match="/nowhere"):
        await hosts.a.hypervisor.start(
            msgspec.structs.replace(domain, boot=Boot(kernel="/nowhere"))
        )
    bad = domain.with_device(Pci(id="rng", model="no-such-device"))
    with pytest.raises(HypervisorError) as caught:
        await hosts.a.hypervisor.start(bad)
    assert caught.value.device == "pci/rng"
    assert hosts.a.files() == []
    assert hosts.a.processes() == []

    await hosts.start(domain)
    with pytest.raises(DomainBusy):
        await hosts.a.hypervisor.start(domain)
    other = msgspec.structs.replace(domain, name="another")
    with pytest.raises(HypervisorError, match="lock") as caught:
        await hosts.a.hypervisor.start(other)
    assert caught.value.device == "block/disk0"
    assert "uses the image" in caught.value.remedy


async def test_what_cannot_move_is_named(hosts: Hosts) -> None:
    domain = a_domain(hosts.a, tpm=False)
    make_disk(hosts.a.disk("nvme0"), boot=False)
    domain = msgspec.structs.replace(
        domain,
        block=(*domain.block, Block(id="nvme0", path=str(hosts.a.disk("nvme0")), model="nvme")),
        pci=(*domain.pci, Pci(id="edu0", model="edu")),
    )
    domain = await hosts.start(domain)
    machine = await hosts.a.hypervisor.machine(domain.name)
    refusals = await machine.blockers()
    assert {refusal.device for refusal in refusals} == {"block/nvme0", "pci/edu0"}
    assert all(refusal.no_way and refusal.remedy for refusal in refusals)
    await machine.close()


async def test_the_target_refuses(hosts: Hosts) -> None:
    kernel = hosts.a.root / "kernel"
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    machine = await hosts.a.hypervisor.machine(domain.name)
    facts = await machine.facts()
    await machine.close()

    async def refused(domain: Domain, facts: dict[str, str]) -> str:
        found = await hosts.b.hypervisor.test_incoming(domain, "b", facts)
        assert all(refusal.host == "b" for refusal in found)
        return json.dumps([str(refusal) for refusal in found])

    assert await refused(domain, dict(facts)) == "[]"
    huge = msgspec.structs.replace(domain, memory=1 << 50)
    assert "not enough memory" in await refused(huge, dict(facts))
    old = msgspec.structs.replace(domain, machine="pc-q35-99.0")
    assert "no machine type pc-q35-99.0" in await refused(old, dict(facts))
    assert "older than the 99.0.0" in await refused(domain, {"qemu": "99.0.0"})
    booted = msgspec.structs.replace(domain, boot=Boot(kernel=str(kernel)))
    assert "there is no" in await refused(booted, dict(facts))
    kernel.write_text("one")
    assert "not the file" in await refused(booted, {f"sha256:{kernel}": "another"})
    same = await hosts.a.hypervisor.test_incoming(domain, "a", facts)
    assert ["it runs" in refusal.reason for refusal in same] == [True]


async def test_usb_is_unplugged_and_plugged(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    machine = await hosts.a.hypervisor.machine(domain.name)
    tablet = domain.usb[0]
    await machine.unplug(tablet)
    assert "QEMU USB Tablet" not in await hosts.a.ask(domain, "info usb")
    with pytest.raises(HypervisorError) as caught:
        await machine.unplug(tablet)
    assert caught.value.device == tablet.label
    await machine.plug(tablet)
    assert "QEMU USB Tablet" in await hosts.a.ask(domain, "info usb")
    await machine.close()


async def test_stop_waits_for_the_guest(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    with pytest.raises(HypervisorError, match="has not shut down"):  # a boot sector has no ACPI
        await hosts.a.hypervisor.stop(domain.name, force=False, patience=0.3)
    await hosts.a.hypervisor.stop(domain.name, force=True, patience=5)
    assert await hosts.a.status(domain) == "shut off"
    assert hosts.a.processes() == []
    with pytest.raises(UsageError, match="does not run"):
        await hosts.a.hypervisor.machine(domain.name)
    await hosts.a.hypervisor.start(await hosts.a.hypervisor.find(domain.name))
    again = await hosts.a.hypervisor.find(domain.name)
    assert again == domain


async def test_qemu_dies_and_nothing_is_left(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    machine = await hosts.a.hypervisor.machine(domain.name)
    where = places(hosts.a.settings, str(domain.uuid), domain.name)
    running = read_running(where)
    assert running
    died = asyncio.create_task(machine.died())
    await asyncio.sleep(0)
    os.kill(running.pid, signal.SIGKILL)
    assert "QEMU has ended" in await died
    await machine.close()
    while hosts.a.processes():  # noqa: ASYNC110 - swtpm ends with QEMU's connection
        await asyncio.sleep(0.01)
    assert await hosts.a.status(domain) == "shut off"
