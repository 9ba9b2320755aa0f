"""A machine is carried over by the backend alone, with all that it may have."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.hypervisors.qemu import binary
from entourage.hypervisors.qemu.cmdline import export_name
from entourage.hypervisors.qemu.keys import cipher_order
from entourage.hypervisors.qemu.qmp import Monitor
from tests.e2e.buffers import SS, one_is_bounded
from tests.e2e.qemu.hosts import (
    DATA,
    LOG,
    SIZE,
    Hosts,
    Move,
    a_domain,
    held,
    leftovers_in_qemu,
    run,
    written,
)

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(60),
]
TLS_AES_128_GCM_SHA256 = 0x1301
_IPV4 = 0x0800
_ETHERNET = 14
_RCVBUFFORCE = 33  # of Linux, for which Python has no name


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


async def test_a_guest_s_writes_do_not_wait_for_the_memory_that_arrives(hosts: Hosts) -> None:
    """The target's main thread is busy with it; the mirror's writes are taken all the same."""
    if not binary.tls_in_threads(await binary.version()):
        pytest.skip("this QEMU takes encrypted mirrors in its main thread")
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    move = Move(hosts, domain)
    await move.up_to("mirror")
    with held(hosts.b.main_thread(domain)):
        await hosts.a.runs(domain, (await hosts.a.counts(domain))[1] + 50)
    await asyncio.gather(move.abort(), move.undo_target())


def dumps_memory(pid: int) -> bool:
    """Whether a core of the process would hold its memory; see core(5)."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    [limit] = [line.split()[4] for line in limits if line.startswith("Max core file size")]
    kinds = int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16)
    return limit != "0" and kinds != 0


async def test_no_core_is_dumped_of_a_machine_that_takes_mirrors(hosts: Hosts) -> None:
    """QEMU aborts there when the source cuts them off, which need not fill a disk with memory."""
    soft, most = resource.getrlimit(resource.RLIMIT_CORE)
    if not most:
        pytest.skip("no core may be dumped here")
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    try:
        domain = await hosts.start(a_domain(hosts.a, tpm=False))
        move = Move(hosts, domain)
        await move.up_to("mirror")
        qemu = hosts.b.main_thread(domain)
        assert not dumps_memory(qemu)
        await move.abort()
        await move.undo_target()
        again = Move(hosts, domain)
        await again.up_to("land")
        assert dumps_memory(hosts.b.main_thread(domain))
        await asyncio.gather(again.abort(), again.undo_target())
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, most))


async def test_little_memory_waits_to_be_taken_in(hosts: Hosts) -> None:
    """What waits on the target when the guest stops is loaded within the blackout."""
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    move = Move(hosts, domain)
    await move.up_to("start")
    port = move.ticket.uri.rpartition(":")[2]
    # Nobody tells when it has been done, soon after memory began to arrive.
    while not bounded(port):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.gather(move.abort(), move.undo_target())


def bounded(port: str) -> bool:
    """Whether the connection that came in there has the buffer that is meant for so short a way."""
    argv = [*SS, "=", f":{port}"]
    return one_is_bounded(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


async def test_aes_is_chosen_where_the_processor_has_it(hosts: Hosts) -> None:
    """For memory and for disks, as their first handshakes on the wire show."""
    if not cipher_order():
        pytest.skip("this processor has no instructions for AES")
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    move = Move(hosts, domain)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IPV4)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 256 << 20)
        wire.bind(("lo", 0))
        wire.settimeout(0)
        await move.up_to("start")
        chosen: list[int] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                chosen += suites(wire.recv(1 << 17))
    assert chosen == [TLS_AES_128_GCM_SHA256] * 2
    await asyncio.gather(move.abort(), move.undo_target())


def suites(frame: bytes) -> Iterator[int]:
    """The cipher suite that a ServerHello in a frame chooses (RFC 8446, 4.1.3)."""
    tcp = _ETHERNET + (frame[_ETHERNET] & 15) * 4
    said = frame[tcp + (frame[tcp + 12] >> 4) * 4 :]
    if said[:2] == b"\x16\x03" and said[5:6] == b"\x02":
        session = 5 + 4 + 2 + 32
        at = session + 1 + said[session]
        yield int.from_bytes(said[at : at + 2], "big")


async def test_the_first_limit_is_known_before_migration_begins(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    move = Move(hosts, domain)
    await move.up_to("test")
    await move.machine.arm(move.plane, downtime_limit=0.007)
    assert "downtime-limit: 7 ms" in await hosts.a.ask(domain, "info migrate_parameters")
    await move.abort()


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


async def test_a_paused_guest_stays_paused(hosts: Hosts) -> None:
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    await hosts.a.ask(domain, "stop")
    move = Move(hosts, domain)
    await move.up_to("stop")
    assert not move.machine.was_running
    assert move.stopped_at
    await asyncio.gather(move.abort(), move.undo_target())
    status = await hosts.a.status(domain)
    await move.open()
    blockers = await move.machine.blockers()
    await move.machine.close()
    if status == "postmigrate":  # QEMU 7.2; 10.0 can be moved again as it is
        assert "resume" in blockers[0].remedy  # QEMU would say so too late
        await hosts.a.ask(domain, "cont")
        await hosts.a.ask(domain, "stop")
    else:
        assert status == "paused"
        assert not blockers

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


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
async def test_exports_end_one_after_the_other(
    hosts: Hosts,
    tls: bool,  # noqa: FBT001 - a parameter of pytest's
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU 11.1.3 aborts where a second export ends while one of a qcow2 image does."""
    domain = a_domain(hosts.a, disks=3, tpm=False)
    for disk in domain.block[1:]:
        raw = hosts.a.disk(f"{disk.id}.raw")
        hosts.a.disk(disk.id).rename(raw)
        await run("qemu-img", "convert", "-O", "qcow2", str(raw), str(hosts.a.disk(disk.id)))
        await run("qemu-img", "create", "-q", "-f", "qcow2", str(hosts.b.disk(disk.id)), str(SIZE))
        domain = domain.with_device(msgspec.structs.replace(disk, format="qcow2"))
    domain = await hosts.start(domain)
    move = Move(hosts, domain, tls=tls)
    await move.up_to("proceed")
    execute, begun, most = Monitor.execute, set[str](), [0]

    async def watched(
        monitor: Monitor, command: str, arguments: Mapping[str, Any] | None = None, **more: Any
    ) -> Any:
        if command == "block-export-del":
            begun.add((arguments or {})["id"])
        elif command == "nbd-server-stop":
            begun.update(export_name(domain, disk) for disk in domain.block)
        most[0] = max(most[0], len(begun - monitor.known.exports_gone))
        return await execute(monitor, command, arguments, **more)

    monkeypatch.setattr(Monitor, "execute", watched)
    await move.land()
    assert len(begun) == len(domain.block)
    assert most == [1]
    await move.disarm()
    count = (await hosts.a.counts(domain))[1]
    await move.finish()
    await hosts.b.runs(domain, count)
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
    export = await move.incoming.exports.export(move.there.block[0])
    await move.machine.mirroring.mirror(domain.block[0], export, top_only=True)
    for stage in (move.start, move.stop, move.settle, move.proceed, move.land, move.disarm):
        await stage()
    count = (await hosts.a.counts(domain))[1]
    await move.finish()
    await hosts.b.runs(domain, count)
    assert hosts.b.disk().stat().st_size < DATA  # the base's data stayed there
