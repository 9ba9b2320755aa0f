"""A libvirt domain that is saved and restored, and what the tests of that do with it."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from typing import ClassVar

import pytest

from lab.guest import Disk
from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.world import OF_STAND_INS, STALE, LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.shared import SHARED, shared_storage

DIR = f"{SHARED}/saved"
OTHER = f"{SHARED}/again"
SOCKETS = "/run/entourage-copies"
IN_DOUBT = 6  # an exit status
DISK = Disk(f"{SHARED}/d0.qcow2", "qcow2")
CODE, TEMPLATE = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
PART = 64 << 10  # of the variables' file, in which the firmware writes
UEFI = f"""
<domain type="qemu">
  <name>uefi</name><memory unit="MiB">192</memory>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
    <loader readonly="yes" type="pflash">{CODE}</loader>
    <nvram template="{TEMPLATE}">{{variables}}</nvram>
  </os>
  <features><acpi/></features>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices>
</domain>
"""
FPGA = """
[[external]]
id = "fpga0"
type = "fpga"
"""


class SavedWorld(LibvirtWorld):
    """The domain has all that it needs on storage that both hosts see, and an external device."""

    kept: ClassVar = (*LibvirtWorld.kept, SOCKETS)

    def _start(self, what: str) -> None:
        super()._start(what)
        Libvirtd(self.here).virsh("autostart", self.name)

    def end(self) -> None:
        """Pull the guest's plug, forget it on both hosts, and see that this leaves nothing."""
        daemon = Libvirtd(self.here)
        daemon.virsh("destroy", self.name)
        for host in (self.here, self.there):
            forget(self, host)
        for disk in self.disks:
            self.here.path(disk.path).unlink()
        for host in (self.here, self.there):
            self.is_clean(host)
            # Other modules have the same hosts, and know nothing of these.
            host.run(["sh", "-c", f"rm -rf {' '.join(OF_STAND_INS)}"])


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with shared_storage(libvirt_lab, "1G"), Observer.start(libvirt_lab) as seen:
        world = SavedWorld.begin(libvirt_lab, seen, "saved1", disks=(DISK,), extra=FPGA)
        yield world
        world.end()


@pytest.fixture
def ready(world: LibvirtWorld) -> Generator[LibvirtWorld]:
    """The same, with nothing saved, before and after."""
    world.lives()
    yield world
    for host in (world.here, world.there):
        host.run(["rm", "-rf", DIR, OTHER])


def forget(world: LibvirtWorld, host: Host) -> None:
    """Forget the definition on a host that the domain was saved on."""
    if world.name in Libvirtd(host).domains():
        Libvirtd(host).virsh("undefine", world.name)


def entourage(world: LibvirtWorld, *words: str, host: Host | None = None) -> Run:
    """Run a command that prints events to its end."""
    argv = ["entourage", words[0], "--json", "--tool", str(world.tool()), *words[1:]]
    done = (host or world.here).run(argv, check=False, timeout=PATIENCE)
    return Run(done.returncode, done.stdout, done.stderr)


def save(world: LibvirtWorld, directory: str = DIR, *options: str) -> Run:
    return entourage(world, "save", *options, "--", world.name, directory)


def restore(
    world: LibvirtWorld, directory: str = DIR, *options: str, host: Host | None = None
) -> Run:
    return entourage(world, "restore", *options, "--", directory, host=host)


def reasons(done: Run) -> str:
    """All that speaks against it."""
    return "; ".join(one["reason"] for one in done.of("device-refused"))


def is_gone(world: LibvirtWorld, directory: str = DIR) -> None:
    """The guest has ended and is in that directory; its definition is left, and its TPM's state."""
    assert not world.answers()
    assert world.domains(world.here) == {world.name: "shut off"}
    assert not starts_with_its_host(world)
    left = world.here.leftovers(
        world.clean[world.here.name], ignore=(*world.kept, *STALE, f"{directory}*")
    )
    assert not left.processes, str(left)
    assert not left.interfaces, str(left)
    assert names(world.here, directory) == ["manifest.json", "memory"]
    assert world.here.path(f"{directory}/memory").stat().st_mode & 0o777 == 0o600
    assert not partial(world)


def starts_with_its_host(world: LibvirtWorld) -> bool:
    """Whether libvirtd starts it as it starts itself."""
    listed = Libvirtd(world.here).virsh("list", "--all", "--autostart", "--name").stdout
    return world.name in listed.split()


def partial(world: LibvirtWorld) -> list[str]:
    """What is left of saves that were not whole."""
    return [name for name in names(world.here, SHARED) if name.endswith(".partial")]


def names(host: Host, directory: str) -> list[str]:
    return sorted(path.name for path in host.path(directory).iterdir())


def went_on(world: LibvirtWorld, done: Run) -> None:
    """The guest goes on as if nothing had been, TCP connection and TPM included."""
    assert done.status == 0, str(done)
    assert done.finished["outcome"] == "moved", str(done)
    lives(world)


def lives(world: LibvirtWorld) -> None:
    """It runs as before, and libvirt keeps nothing of a save: no snapshot, no job."""
    world.lives()
    daemon = Libvirtd(world.here)
    assert daemon.virsh("snapshot-list", "--name", world.name).stdout.split() == []
    assert "None" in daemon.virsh("domjobinfo", world.name).stdout
    assert daemon.virsh("dominfo", world.name).stdout.count("Persistent:     yes") == 1
    assert starts_with_its_host(world)
    assert not list(world.here.path("/var/lib/entourage").glob("*.restoring"))


def killed_at(world: LibvirtWorld, argv: list[str], victim: str, point: str) -> None:
    """Run a command; kill it, its agent or libvirtd, which is started again, at a point of it."""
    with Points(world.here, point) as points:
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        if victim == "agent":
            world.here.run(["pkill", "-KILL", "-f", "entourage agent"])
        elif victim == "libvirtd":
            world.kill_daemon(world.here)
            world.start_daemon(world.here)
        else:
            process.kill()
        if victim == "both":
            world.kill_daemon(world.here)
            world.start_daemon(world.here)
        points.open()
        process.communicate(timeout=PATIENCE)


def recovered(world: LibvirtWorld) -> None:
    """Recover what was killed: everything is settled by that, once the deadman lets go of it.

    It has to wait for libvirt, and holds the domain until it has spoken. An agent that has lost its
    link undoes by itself what it has made, and is not to be found in the middle of that.
    """
    deadline = time.monotonic() + PATIENCE
    while world.here.run(["pgrep", "-f", "entourage agent"], check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # it tells nobody
    while (done := world.here.run(["entourage", "recover"], check=False)).returncode == IN_DOUBT:
        assert time.monotonic() < deadline, done
        time.sleep(0.1)  # it tells nobody
    assert done.returncode == 0, done


def killed_while_saved(
    world: LibvirtWorld, victim: str, point: str, left: str, *options: str
) -> None:
    """Kill who saves it at a point; what is left is a save, or a guest, and never both."""
    argv = ["entourage", "save", "--json", *options, "--tool", str(world.tool())]
    killed_at(world, [*argv, "--", world.name, DIR], victim, point)
    recovered(world)
    assert world.here.path(DIR).exists() == (left == "save")
    assert not partial(world)
    assert not [name for name in names(world.here, "/run/entourage") if ".sock" in name]
    if left == "save":
        is_gone(world)
        went_on(world, restore(world))
    lives(world)


def killed_while_restored(
    world: LibvirtWorld, victim: str, point: str, left: str, *options: str
) -> None:
    """Save it; kill who restores it at a point: a save is left that can be restored, or a guest."""
    assert save(world, DIR, *options).status == 0
    argv = ["entourage", "restore", "--json", "--tool", str(world.tool()), "--", DIR]
    killed_at(world, argv, victim, point)
    if (victim, point) == ("entourage", "source.after.disarm-deadman"):
        lost = restore(world, host=world.there)
        assert f"is being restored on {world.here.name}" in reasons(lost), str(lost)
    recovered(world)
    if left == "save":
        assert names(world.here, DIR) == ["manifest.json", "memory"]
        is_gone(world)
        went_on(world, restore(world))
    lives(world)
    assert json.loads(world.here.path(f"{DIR}/claim.json").read_text())["restored"]
