"""A libvirt domain is saved into a directory and restored: here, there, and in one place only."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from lab.guest import Disk
from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.world import OF_STAND_INS, STALE, LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.shared import SHARED, loop, shared_storage
from tests.e2e.world import other_bridge

DIR = f"{SHARED}/saved"
OTHER = f"{SHARED}/again"
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

    def _start(self, what: str) -> None:
        super()._start(what)
        Libvirtd(self.here).virsh("autostart", self.name)

    def end(self) -> None:
        """Pull the guest's plug, forget it on both hosts, and see that this leaves nothing."""
        daemon = Libvirtd(self.here)
        daemon.virsh("destroy", self.name)
        for host in (self.here, self.there):
            forget(self, host)
        self.here.path(DISK.path).unlink()
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


def test_twice_in_a_row(ready: LibvirtWorld) -> None:
    world = ready
    saved = save(world)
    assert saved.status == 0, str(saved)
    assert not saved.of("warned"), str(saved)
    is_gone(world)
    refused = world.here.run(["entourage", "start", world.name], check=False)
    assert refused.returncode == 3
    assert f"entourage restore {DIR}" in refused.stderr
    went_on(world, restore(world))
    again = restore(world)
    assert again.status == 3, str(again)
    assert f"it was restored on {world.here.name}" in reasons(again), str(again)
    assert save(world, OTHER).status == 0
    is_gone(world, OTHER)
    went_on(world, restore(world, OTHER))


@pytest.mark.matrix
def test_on_the_other_host(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world).status == 0
    shown = json.loads(world.there.run(["entourage", "saved", "--json", SHARED]).stdout)
    assert [(one["domain"], one["host"], one["against"]) for one in shown] == [
        (world.name, world.here.name, [])
    ]
    done = restore(world, host=world.there)
    assert done.status == 0, str(done)
    world.here, world.there = world.there, world.here
    forget(world, world.there)
    lives(world)
    lost = restore(world, host=world.there)
    assert lost.status == 3, str(lost)
    assert f"it was restored on {world.here.name}" in reasons(lost), str(lost)


@pytest.mark.matrix
def test_on_a_host_with_another_bridge(ready: LibvirtWorld) -> None:
    """The definition that is written down there has it too; and it moves on as any domain."""
    world = ready
    assert save(world).status == 0
    with other_bridge(world.there):
        refused = restore(world, host=world.there)
        assert "there is no bridge br0" in refused.refusals["net/net0"], str(refused)
        done = restore(world, DIR, "--net", "br0=br7", host=world.there)
        assert done.status == 0, str(done)
        world.here, world.there = world.there, world.here
        forget(world, world.there)
        lives(world)
        shown = Libvirtd(world.here).virsh("dumpxml", "--inactive", world.name).stdout
        assert "bridge='br7'" in shown, shown
        done = world.migrate("--tool", str(world.tool()), "--net", "br7=br0")
        assert done.status == 0, str(done)
    world.arrived()


@pytest.mark.matrix
@pytest.mark.skipif(not Path(CODE).exists(), reason="OVMF is not installed")
def test_uefis_variables_are_in_the_save(ready: LibvirtWorld) -> None:
    """They come back where their file was lost, or is older than memory."""
    host = ready.here
    variables = f"{SHARED}/uefi-vars.fd"
    template = Path(TEMPLATE).read_bytes()[:PART]
    daemon = Libvirtd(host)
    host.path("/root/uefi.xml").write_text(UEFI.format(variables=variables))
    daemon.virsh("define", "/root/uefi.xml")
    daemon.virsh("start", "uefi")
    try:
        deadline = time.monotonic() + PATIENCE
        while host.path(variables).read_bytes()[:PART] == template:
            assert time.monotonic() < deadline, "the firmware has written nothing"
            time.sleep(0.1)  # nothing tells that a firmware has come so far
        host.run(["entourage", "save", "uefi", DIR], timeout=PATIENCE)
        host.run(["cp", TEMPLATE, variables])
        host.run(["entourage", "restore", DIR], timeout=PATIENCE)
        assert host.path(variables).read_bytes()[:PART] != template
    finally:
        daemon.virsh("destroy", "uefi", check=False)
        daemon.virsh("undefine", "--nvram", "uefi")
        host.run(["rm", "-f", "/root/uefi.xml"])


@pytest.mark.matrix
def test_a_transient_domain(ready: LibvirtWorld) -> None:
    """It is transient wherever it is restored; what it was defined with is nobody's business."""
    world = ready
    daemon = Libvirtd(world.here)
    kept = daemon.virsh("dumpxml", "--inactive", "--security-info", world.name).stdout
    daemon.virsh("undefine", "--keep-tpm", world.name)
    assert save(world).status == 0
    assert world.domains(world.here) == {}
    done = restore(world)
    assert done.status == 0, str(done)
    assert daemon.virsh("dominfo", world.name).stdout.count("Persistent:     no") == 1
    world.lives()
    world.here.path("/root/kept.xml").write_text(kept)
    daemon.virsh("define", "/root/kept.xml")
    world.here.path("/root/kept.xml").unlink()
    daemon.virsh("autostart", world.name)


@pytest.mark.matrix
def test_a_paused_guest_stays_paused(ready: LibvirtWorld) -> None:
    world = ready
    assert save(world).status == 0
    done = restore(world, DIR, "--paused")
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    done = save(world, OTHER)
    assert done.status == 0, str(done)
    done = restore(world, OTHER)
    assert done.status == 0, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    lives(world)


@pytest.mark.matrix
def test_a_paused_guest_that_is_not_saved_stays_paused(ready: LibvirtWorld) -> None:
    world = ready
    Libvirtd(world.here).virsh("suspend", world.name)
    done = save_without_room(world)
    assert done.status == 4, str(done)
    assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    lives(world)


def test_what_has_changed_is_refused(ready: LibvirtWorld) -> None:
    """A disk that was written to; a definition that was started meanwhile."""
    world = ready
    assert save(world).status == 0
    disk = world.here.path(DISK.path)
    was = disk.stat()
    world.here.run(["touch", DISK.path])
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "was written to" in refused.refusals["block/vda"], str(refused)
    os.utime(disk, ns=(was.st_mtime_ns, was.st_mtime_ns))
    went_on(world, restore(world))


@pytest.mark.matrix
def test_what_cannot_be_saved(ready: LibvirtWorld) -> None:
    world = ready
    daemon = Libvirtd(world.here)
    daemon.virsh("checkpoint-create-as", world.name, "before")
    refused = save(world)
    daemon.virsh("checkpoint-delete", world.name, "before")
    assert refused.status == 3, str(refused)
    assert "checkpoints of it (before)" in refused.refusals["domain"], str(refused)
    assert "virsh checkpoint-delete" in refused.refusals["domain"], str(refused)
    lives(world)
    assert not partial(world)


@pytest.mark.matrix
def test_no_room(ready: LibvirtWorld) -> None:
    """A disk that fills up while memory is written: the guest goes on, and nothing is left."""
    world = ready
    done = save_without_room(world)
    assert done.status == 4, str(done)
    assert "libvirt cannot save it" in done.finished["message"], str(done)
    assert not partial(world)
    assert not world.here.path(DIR).exists()
    lives(world)


def save_without_room(world: LibvirtWorld) -> Run:
    """Let a save begin, and have too little room for memory from then on."""
    here, filler, point = world.here, f"{SHARED}/filler", "target.after.flush-open"
    with Points(here, point) as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        space = os.statvfs(here.path(SHARED))
        most = space.f_bavail * space.f_frsize - (16 << 20)
        here.run(["fallocate", "-l", str(most), filler])
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
        here.run(["rm", filler])
    return Run(process.returncode, stdout, stderr)


@pytest.mark.matrix
def test_a_directory_that_is_taken_in_the_last_moment(ready: LibvirtWorld) -> None:
    """The rename fails when GO stands: the domain, which is still there, goes on."""
    world, point = ready, "target.after.flush-go"
    with Points(world.here, point) as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        world.here.run(["mkdir", DIR])
        world.here.run(["touch", f"{DIR}/mine"])
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    assert names(world.here, DIR) == ["mine"]
    assert not partial(world)
    lives(world)


@pytest.mark.matrix
def test_what_would_be_done(ready: LibvirtWorld) -> None:
    """Both commands say so, and touch nothing."""
    world = ready
    would = save(world, DIR, "--dry-run")
    assert would.status == 0, str(would)
    [planned] = would.of("planned")
    erased = {one["device"]: one["erased"] for one in planned["devices"] if one["erased"]}
    assert not erased, planned
    assert not world.here.path(DIR).exists()
    lives(world)
    assert save(world).status == 0
    would = restore(world, DIR, "--dry-run")
    assert would.status == 0, str(would)
    is_gone(world)
    went_on(world, restore(world))


@pytest.mark.matrix
def test_interrupted_while_memory_is_written(ready: LibvirtWorld) -> None:
    """Ctrl-C: libvirt's job is ended, and the guest goes on."""
    world = ready
    point = "source.step-started.2"
    with Points(world.here, point) as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    assert not partial(world)
    lives(world)


@pytest.mark.matrix
def test_a_guest_that_somebody_resumes_is_not_saved(ready: LibvirtWorld) -> None:
    world, point = ready, "source.before.disarm-deadman"
    with Points(world.here, point) as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        Libvirtd(world.here).virsh("resume", world.name)
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
    done = Run(process.returncode, stdout, stderr)
    assert done.finished["outcome"] == "rolled-back", str(done)
    assert "somebody has let the guest run on" in done.finished["message"], str(done)
    assert not partial(world)
    lives(world)


@pytest.mark.matrix
def test_a_definition_that_is_started_spends_the_save(ready: LibvirtWorld) -> None:
    """It boots from its disks, as with ``virsh save``; its memory is not let loose on them."""
    world = ready
    assert save(world).status == 0
    world.start_again()
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "here already, running" in refused.refusals["domain"], str(refused)
    Libvirtd(world.here).virsh("destroy", world.name)
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "was written to" in refused.refusals["block/vda"], str(refused)
    world.start_again()
    lives(world)


@pytest.mark.matrix
def test_killed_while_its_storage_hangs(ready: LibvirtWorld) -> None:
    """libvirt waits for storage: once that answers, the guest goes on, and nothing is left."""
    world, here, slow = ready, ready.here, "/mnt/slow"
    with loop(here, "/srv/slow.img", "512M") as device:
        here.run(["mkfs.ext4", "-q", device])
        here.run(["mkdir", slow])
        here.run(["mount", device, slow])
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name]
        with Points(here, "source.step-done.1", "source.guest-stopped") as points:
            process = here.popen([*argv, f"{slow}/saved"], env=points.env)
            points.wait("source.step-done.1", lambda: process.poll() is None)
            here.run(["fsfreeze", "--freeze", slow])
            try:
                points.pass_on("source.step-done.1")
                points.wait("source.guest-stopped", lambda: process.poll() is None)
                process.kill()
            finally:
                here.run(["fsfreeze", "--unfreeze", slow])
            points.open()
            process.communicate(timeout=PATIENCE)
        # The deadman has to wait for libvirt, and holds the domain until it has spoken.
        deadline = time.monotonic() + PATIENCE
        while (recovered := here.run(["entourage", "recover"], check=False)).returncode == 6:
            assert time.monotonic() < deadline, recovered
            time.sleep(0.1)  # it tells nobody
        assert recovered.returncode == 0, recovered
        assert names(here, slow) == ["lost+found"]
        here.run(["umount", slow])
        here.run(["rmdir", slow])
    lives(world)


KILLED = [
    # Who is killed where, and what there is then: a save, or a guest that runs.
    ("entourage", "source.step-started.2", "guest"),
    pytest.param("agent", "target.after.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.step-started.2", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.after.flush-armed", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "save", marks=pytest.mark.matrix),
    pytest.param("both", "source.step-started.2", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), KILLED)
def test_killed_while_it_is_saved(ready: LibvirtWorld, victim: str, point: str, left: str) -> None:
    world = ready
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
    killed_at(world, argv, victim, point)
    recovered = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert recovered.returncode == 0, recovered
    assert world.here.path(DIR).exists() == (left == "save"), recovered
    assert not partial(world)
    if left == "save":
        is_gone(world)
        went_on(world, restore(world))
    lives(world)


RESTORED = [
    pytest.param("entourage", "source.after.disarm-deadman", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.after.flush-armed", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "guest", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "target.after.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("libvirtd", "source.after.disarm-deadman", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), RESTORED)
def test_killed_while_it_is_restored(
    ready: LibvirtWorld, victim: str, point: str, left: str
) -> None:
    world = ready
    assert save(world).status == 0
    argv = ["entourage", "restore", "--json", "--tool", str(world.tool()), "--", DIR]
    killed_at(world, argv, victim, point)
    if (victim, point) == ("entourage", "source.after.disarm-deadman"):
        lost = restore(world, host=world.there)
        assert f"is being restored on {world.here.name}" in reasons(lost), str(lost)
    recovered = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert recovered.returncode == 0, recovered
    if left == "save":
        assert names(world.here, DIR) == ["manifest.json", "memory"]
        is_gone(world)
        went_on(world, restore(world))
    lives(world)
    assert json.loads(world.here.path(f"{DIR}/claim.json").read_text())["restored"]


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
