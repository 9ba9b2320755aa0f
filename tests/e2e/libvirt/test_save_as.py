"""Another machine is made of a libvirt domain's save, while the first one goes on."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from lab.guest import Disk, disk_sequences
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.saved import CODE, SOCKETS, TEMPLATE, UEFI
from tests.e2e.libvirt.world import MADE_ONCE, OF_STAND_INS, STALE, LibvirtWorld
from tests.e2e.run import PATIENCE, Run
from tests.e2e.saves import flip, killed_at, run

DIR = "/srv/as"
OTHER = "other"
COPY = "/srv/other.qcow2"
BRIDGE = "apart"
WHERE = ("--net", f"br0={BRIDGE}", "--disk", f"vda={COPY}")
NVRAM = "/var/lib/libvirt/qemu/nvram"
LOGS = "/var/log/libvirt"
LOGGED = """<serial type="pty"><log file="{log}"/></serial>"""
needs_ovmf = pytest.mark.skipif(not Path(CODE).exists(), reason="OVMF is not installed")


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    """A domain with one disk and no TPM; its host has a bridge that nobody is on."""
    host = libvirt_lab["a"]
    host.run(["sh", "-c", f"ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up"])
    with Observer.start(libvirt_lab) as seen:
        disk = Disk("/srv/first.qcow2", "qcow2")
        world = LibvirtWorld.begin(libvirt_lab, seen, "saved5", disks=(disk,), tpm=False)
        world.kept = (*world.kept, *MADE_ONCE, *STALE, SOCKETS, f"{DIR}*", COPY)  # type: ignore[misc]
        yield world
        daemon = Libvirtd(host)
        daemon.virsh("destroy", world.name)
        daemon.virsh("undefine", world.name)
        host.path(disk.path).unlink()
        for each in (world.here, world.there):
            world.is_clean(each)
            each.run(["sh", "-c", f"rm -rf {' '.join(OF_STAND_INS)}"])
    host.run(["ip", "link", "delete", BRIDGE])


@pytest.fixture
def ready(world: LibvirtWorld) -> Generator[LibvirtWorld]:
    """The same, with a checkpoint of it."""
    world.lives()
    done = run(world, "save", "--checkpoint", "--", world.name, DIR)
    assert done.status == 0, str(done)
    yield world
    daemon = Libvirtd(world.here)
    daemon.virsh("destroy", OTHER, check=False)
    daemon.virsh("undefine", OTHER, check=False)
    world.here.run(["rm", "-rf", DIR, COPY, f"{LOGS}/{OTHER}.serial"])


def restore(world: LibvirtWorld, *options: str) -> Run:
    return run(world, "restore", "--as", OTHER, *WHERE, *options, "--", DIR)


def shown(world: LibvirtWorld, name: str) -> ET.Element:
    return ET.fromstring(Libvirtd(world.here).virsh("dumpxml", name).stdout)  # noqa: S314 - our own


def attribute(root: ET.Element, path: str, name: str) -> str:
    found = root.find(path)
    assert found is not None
    return found.get(name, "")


def writes(path: Path, since: int) -> None:
    """Wait until more is written to a disk."""
    deadline = time.monotonic() + PATIENCE
    while disk_sequences(path, "qcow2").last <= since:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.matrix
def test_both_go_on(ready: LibvirtWorld) -> None:
    """Each on its own disk, from what it was when it was saved, and with MACs of its own."""
    world = ready
    held = disk_sequences(world.here.path(f"{DIR}/disks/vda"), "qcow2")
    done = restore(world)
    assert done.status == 0, str(done)
    assert Libvirtd(world.here).domains() == {world.name: "running", OTHER: "running"}
    writes(world.here.path(COPY), held.last)
    super(LibvirtWorld, world).lives()
    first, other = shown(world, world.name), shown(world, OTHER)
    assert first.findtext("uuid") != other.findtext("uuid")
    macs = [attribute(root, "devices/interface/mac", "address") for root in (first, other)]
    assert macs[0] != macs[1]
    assert attribute(other, "devices/interface/source", "bridge") == BRIDGE
    assert attribute(other, "devices/disk/source", "file") == COPY
    kept = Libvirtd(world.here).virsh("dumpxml", "--inactive", OTHER).stdout
    assert COPY in kept
    assert macs[1] in kept
    assert names(world) == ["disks", "manifest.json", "memory"]
    again = restore(world)
    assert again.status == 3, str(again)  # of that name there is one now


def names(world: LibvirtWorld) -> list[str]:
    """What is in the save; and that nothing is left beside it."""
    beside = [path.name for path in world.here.path("/srv").glob("as*")]
    assert beside == ["as"]
    return sorted(path.name for path in world.here.path(DIR).iterdir())


@pytest.mark.matrix
def test_what_is_the_first_ones_is_refused(ready: LibvirtWorld) -> None:
    world = ready
    for options in (("--net", f"br0={BRIDGE}"), ("--disk", f"vda={COPY}")):
        done = run(world, "restore", "--as", OTHER, *options, "--", DIR)
        assert done.status == 2, str(done)
    assert not world.here.path(COPY).exists()
    world.lives()


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("victim", "point"),
    [
        ("entourage", "source.step-started.2"),
        ("agent", "target.before.flush-go"),
        ("agent", "target.after.flush-go"),
        ("entourage", "source.go-sent"),
    ],
)
def test_killed(ready: LibvirtWorld, victim: str, point: str) -> None:
    """The first one goes on; of the other there is nothing, or all, once it is recovered."""
    world = ready
    command = ["entourage", "restore", "--json", "--as", OTHER, *WHERE, "--", DIR]
    killed_at(world, command, victim, point)
    deadline = time.monotonic() + PATIENCE
    # The agent may still be undoing it: it waits until libvirt has read memory.
    while (done := world.here.run(["entourage", "recover"], check=False)).returncode:
        assert time.monotonic() < deadline, done.stdout
        time.sleep(0.1)  # it tells nobody
    there = point in {"source.go-sent", "target.after.flush-go"}
    expected = {world.name: "running", **({OTHER: "running"} if there else {})}
    assert Libvirtd(world.here).domains() == expected
    assert world.here.path(COPY).exists() == there
    assert world.here.path(f"{LOGS}/{OTHER}.serial").exists() == there
    assert names(world) == ["disks", "manifest.json", "memory"]
    super(LibvirtWorld, world).lives()


@contextlib.contextmanager
def saved_uefi(world: LibvirtWorld) -> Generator[str]:
    """A checkpoint of a UEFI guest, whose firmware has written variables; its ``<genid>``."""
    host, daemon = world.here, Libvirtd(world.here)
    own = f"{NVRAM}/uefi_VARS.fd"
    text = UEFI.format(variables=own).replace("<memory", "<genid/><memory")
    text = text.replace("</devices>", LOGGED.format(log=f"{LOGS}/uefi.log") + "</devices>")
    host.path("/root/uefi.xml").write_text(text)
    daemon.virsh("define", "/root/uefi.xml")
    daemon.virsh("start", "uefi")
    template = Path(TEMPLATE).read_bytes()
    try:
        deadline = time.monotonic() + PATIENCE
        while host.path(own).read_bytes() == template:
            assert time.monotonic() < deadline, "the firmware has written nothing"
            time.sleep(0.1)  # nothing tells that a firmware has come so far
        host.run(["entourage", "save", "--checkpoint", "uefi", "/srv/as-uefi"], timeout=PATIENCE)
        yield shown(world, "uefi").findtext("genid", "")
    finally:
        for name in ("uefi", "uefi2"):
            daemon.virsh("destroy", name, check=False)
            daemon.virsh("undefine", "--nvram", name, check=False)
        logs = [f"{LOGS}/{name}.log" for name in ("uefi", "uefi2")]
        host.run(["rm", "-rf", "/root/uefi.xml", "/srv/as-uefi", *logs])


def made(world: LibvirtWorld) -> list[str]:
    """What libvirt and QEMU have made for the other one, beside its definition."""
    places = (f"{NVRAM}/uefi2_VARS.fd", f"{LOGS}/uefi2.log")
    return [place for place in places if world.here.path(place).exists()]


@needs_ovmf
@pytest.mark.matrix
def test_uefis_variables_and_a_number_that_tells(ready: LibvirtWorld) -> None:
    """The other one has its own variables, and another ``<genid>``; so has who is restored."""
    host, restore = ready.here, ["entourage", "restore", "--as", "uefi2", "/srv/as-uefi"]
    template = Path(TEMPLATE).read_bytes()
    with saved_uefi(ready) as first:
        flip(host.path("/srv/as-uefi/memory"))
        assert host.run(restore, check=False, timeout=PATIENCE).returncode == 4
        assert made(ready) == []  # or the next would be refused
        flip(host.path("/srv/as-uefi/memory"))
        host.run(restore, timeout=PATIENCE)
        other = shown(ready, "uefi2")
        assert other.findtext("genid") not in {None, first}
        assert f"{NVRAM}/uefi2_VARS.fd" in ET.tostring(other, encoding="unicode")
        written = host.path(f"{NVRAM}/uefi2_VARS.fd").read_bytes()
        assert len(written) == len(template)
        assert written != template
        manifest = json.loads(host.path("/srv/as-uefi/manifest.json").read_text())
        assert manifest["domain"]["name"] == "uefi"


@needs_ovmf
@pytest.mark.matrix
def test_what_was_made_for_one_that_was_killed(ready: LibvirtWorld) -> None:
    """``recover`` removes it, where no domain has it; then the other one can be made."""
    host, restore = ready.here, ["entourage", "restore", "--as", "uefi2", "/srv/as-uefi"]
    with saved_uefi(ready):
        killed_at(ready, restore, "agent", "target.before.flush-go")  # another one is asked then
        assert made(ready) == []
        killed_at(ready, restore, "both", "target.before.flush-go")
        assert len(made(ready)) == 2
        host.run(["entourage", "recover"], timeout=PATIENCE)
        assert made(ready) == []
        killed_at(ready, restore, "both", "target.before.flush-go")
        # Its user makes one of that name, before it is recovered.
        text = UEFI.replace("uefi", "uefi2").format(variables=f"{NVRAM}/uefi2_VARS.fd")
        host.path("/root/uefi.xml").write_text(text)
        Libvirtd(host).virsh("destroy", "uefi2")
        Libvirtd(host).virsh("define", "/root/uefi.xml")
        told = host.run(["entourage", "recover"], timeout=PATIENCE).stdout
        assert f"{NVRAM}/uefi2_VARS.fd was made for the restore, or since then for uefi2" in told
        [log] = set(made(ready)) - {f"{NVRAM}/uefi2_VARS.fd"}
        assert f"(if nobody has, rm -r {log})" in told  # its guest may have run before it was ended
        host.run(["rm", log])
        Libvirtd(host).virsh("undefine", "--nvram", "uefi2")
        host.run(restore, timeout=PATIENCE)
        assert Libvirtd(host).domains()["uefi2"] == "running"
