"""Something dies, hangs or is given up at each stage of the backend's work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hypervisors.base import Secret, Ticket
from entourage.hypervisors.qemu import binary
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.record import read_running
from tests.e2e.qemu.hosts import (
    LOG,
    PORTS,
    Hosts,
    Move,
    a_domain,
    leftovers_in_qemu,
)

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(60),
]


STAGES = ["arm", "build", "mirror", "start", "stop", "settle", "proceed", "land", "disarm"]


def some(stages: Sequence[str], *, but: Container[str]) -> list[Any]:
    """Stages of a move; `make test` does without those that are much like others."""
    return [
        pytest.param(stage, marks=pytest.mark.matrix if stage in but else ()) for stage in stages
    ]


@pytest.mark.parametrize(
    "stage", some(STAGES, but={"arm", "build", "start", "settle", "stop", "land"})
)
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


async def test_a_mirror_is_given_up_while_it_holds_up_a_write(hosts: Hosts) -> None:
    """QEMU writes into freed memory then, unless the guest stands still; it rarely survives."""
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    for _ in range(5):
        move = Move(hosts, domain)
        await move.up_to("mirror")
        running = read_running(places(hosts.b.settings, str(domain.uuid), domain.name))
        assert running
        os.kill(running.pid, signal.SIGSTOP)
        counts = await hosts.a.counts(domain)
        # A boot sector cannot tell that it waits for its disk.
        while counts != (counts := await hosts.a.counts(domain)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await move.abort()
        os.kill(running.pid, signal.SIGCONT)
        await move.undo_target()
        await hosts.a.runs(domain, counts[1] + 200)
    assert await leftovers_in_qemu(hosts.a, domain) == []


@pytest.mark.matrix
async def test_given_up_as_the_last_memory_goes(hosts: Hosts) -> None:
    """Cancelled in that moment, QEMU may let the guest run with no disks, and dies of a write."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while await reader.read(1 << 20):
                pass

    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    port = PORTS[1]  # of those that were asked for
    async with await asyncio.start_server(take, "127.0.0.1", port):
        for attempt in range(60):  # QEMU can be stopped nowhere in it
            move = Move(hosts, domain, tls=False)
            await move.open()
            await move.arm()
            await move.machine.start(Ticket(uri=f"tcp:127.0.0.1:{port}"), live=True)
            await move.stop()
            sending = asyncio.create_task(move.proceed())
            await asyncio.sleep(attempt % 4 * 0.0002)
            await move.abort()
            await asyncio.gather(sending, return_exceptions=True)
            await hosts.a.runs(domain, (await hosts.a.counts(domain))[1])


@pytest.mark.parametrize(
    "stage",
    some(["mirror", "start", "stop", "settle", "land"], but={"mirror", "start", "stop", "settle"}),
)
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


@pytest.mark.parametrize(
    "stage", some(["mirror", "start", "stop", "settle"], but={"mirror", "start", "stop"})
)
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


@pytest.mark.parametrize("disks", [1, pytest.param(0, marks=pytest.mark.matrix)])
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


async def test_taken_up_after_a_crash(hosts: Hosts) -> None:
    """Both halves are left where they stand, and others take them up."""
    domain = await hosts.start(a_domain(hosts.a))
    for back in (True, False):
        move = Move(hosts, domain)
        await move.up_to("disarm")
        await move.machine.close()
        machine = await hosts.a.hypervisor.reattach_machine(domain)
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
            await incoming.persist_definition()
            await incoming.finish_arrival()
            await machine.release()
            for tpm in domain.tpm:
                assert machine.tpm
                await machine.tpm.erase(tpm)
            await machine.close()
    assert hosts.a.files() == []
    gone = await hosts.a.hypervisor.reattach_machine(domain)
    assert await gone.reattach(was_running=True) is Guest.DEAD
    await gone.abort()
    await gone.release()
    for tpm in domain.tpm:
        assert gone.tpm
        await gone.tpm.erase(tpm)


HOLDER = """
    import asyncio, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from entourage.hypervisors.qemu.hypervisor import QemuHypervisor
    from entourage.settings.model import PathSettings, Settings
    from tests.e2e.qemu.hosts import Host, Hosts, Move

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


@pytest.mark.parametrize(
    "stage", some(["mirror", "stop", "settle", "land", "disarm"], but={"mirror", "stop", "settle"})
)
async def test_the_deadman(hosts: Hosts, stage: str) -> None:
    domain = await hosts.start(a_domain(hosts.a))
    script = textwrap.dedent(HOLDER).format(
        tests=str(Path(__file__).parents[3]), a=str(hosts.a.root), b=str(hosts.b.root), stage=stage
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
        while any("deadman" in command for command in hosts.a.processes()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # a process that is not ours tells nobody that it ends
        assert (await hosts.a.counts(domain))[1] == count
        assert await hosts.a.status(domain) == "postmigrate"
    else:
        await hosts.a.runs(domain, count + (200 if stage == "mirror" else 0))
        LOG.info("the deadman after %s: %.0f ms", stage, (time.monotonic() - start) * 1000)
        assert await hosts.a.status(domain) == "running"
    incoming = hosts.b.incoming(domain)
    await incoming.kill()
    machine = await hosts.a.hypervisor.reattach_machine(domain)
    await machine.reattach(was_running=True)
    await machine.abort()
    for disk in domain.block:
        assert machine.mirroring
        await machine.mirroring.cancel(disk)
    await machine.close()
    await hosts.a.runs(domain, count)
    assert await leftovers_in_qemu(hosts.a, domain) == []


async def test_the_log_says_why_a_target_that_was_cut_off_aborts(hosts: Hosts) -> None:
    """It looks like a crash, and is none: the machine was to be ended."""
    version = await binary.version()
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    move = Move(hosts, domain)
    await move.up_to("mirror")
    await move.abort()
    if (7, 2, 14) <= version < (7, 3, 0):
        assert "cut its mirrors off" in await move.incoming.died()
    await move.undo_target()
    await move.incoming.kill()  # again, as `recover` may: it is told once
    lines = (hosts.b.root / "log/web.log").read_text().splitlines()
    aborted = [line for line in lines if "Assertion" in line]
    assert len(aborted) == ((7, 2, 14) <= version < (7, 3, 0)), lines
    if aborted:
        assert lines[-2:-1] == aborted
        assert lines[-1].startswith("entourage: its source has given the migration up"), lines
