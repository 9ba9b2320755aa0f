"""Machines of one host: what they need, what cannot move, what they leave."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import msgspec
import pytest

from entourage.cli.console import taken
from entourage.domain import Block, Boot, Domain, Pci
from entourage.errors import DomainBusy, HypervisorError, UsageError
from entourage.hypervisors.qemu import binary
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.record import read_running
from tests.e2e.qemu.hosts import (
    Hosts,
    a_domain,
    make_disk,
    run,
)

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(60),
]


NETWORK = """
    import asyncio, socket, subprocess, sys, tempfile
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from entourage.domain import Net
    import msgspec
    from tests.e2e.qemu.hosts import Host, Hosts, Move, a_domain

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
        await move.incoming.announcing.announce(there[1:])
        wire.settimeout(5)
        frame = await asyncio.to_thread(wire.recv, 2000)
        assert frame[6:12].hex(":") == domain.net[1].mac, frame
        await move.incoming.persist_definition()
        await move.incoming.finish_arrival()
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
    script = textwrap.dedent(NETWORK).format(tests=str(Path(__file__).parents[3]))
    argv = ("unshare", "--net", "--mount", "sh", "-c")
    mounted = 'mount -t sysfs sysfs /sys && exec "$0" -c "$1"'
    await run(*argv, mounted, sys.executable, script)


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


async def test_the_target_refuses(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
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

    async def version() -> tuple[int, int, int]:
        return 11, 1, 3

    monkeypatch.setattr(binary, "version", version)
    queues = {"virtio-queues": "1024", "qemu": "10.0.13"}
    assert "no virtio queues of 1024 entries" in await refused(domain, queues)


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
    while hosts.a.processes():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert await hosts.a.status(domain) == "shut off"


async def test_the_console_on_a_terminal(hosts: Hosts, tmp_path: Path) -> None:
    """The guest's dots are seen; ^] leaves it as it was; it takes one at a time."""
    domain = await hosts.start(a_domain(hosts.a, tpm=False))
    paths = hosts.a.settings.paths
    (tmp_path / "settings.toml").write_text(
        f'[paths]\nstate = "{paths.state}"\nrun = "{paths.run}"\nlog = "{paths.log}"\n'
    )
    await asyncio.to_thread(has_its_console, domain.name, tmp_path / "settings.toml")
    # Another program has it: QEMU lets who comes next wait.
    [state] = await hosts.a.hypervisor.domains()
    reader, writer = await asyncio.open_unix_connection(state.console)
    assert b"." in await reader.read(100)
    assert taken(state.console, Path("/proc/net/unix").read_text())
    writer.close()
    await writer.wait_closed()


def has_its_console(name: str, settings: Path) -> None:
    """A user has a console on a terminal, and leaves it."""
    argv = [sys.executable, "-m", "entourage", "console", name, "--config", str(settings)]
    user, program = os.openpty()
    before = termios.tcgetattr(program)
    console = subprocess.Popen(argv, stdin=program, stdout=program)
    try:
        while b"." not in os.read(user, 100):
            pass
        assert not termios.tcgetattr(program)[3] & termios.ECHO
        second = subprocess.run(argv, stdin=program, capture_output=True, text=True, check=False)
        assert second.returncode == 3
        assert "another process has the console" in second.stderr
        os.write(user, b"\x1d")
        assert console.wait(10) == 0
        assert termios.tcgetattr(program) == before
    finally:
        console.kill()
        console.wait()
        os.close(user)
        os.close(program)
