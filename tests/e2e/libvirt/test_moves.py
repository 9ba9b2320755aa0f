"""A libvirt domain moves, with all that is attached to it, and moves on."""

from __future__ import annotations

import json
import time
from collections.abc import Generator

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.libvirtd import IMAGES, Libvirtd, ssh_uri
from lab.observer import Observer
from tests.e2e.buffers import SS, one_is_bounded
from tests.e2e.dying import PRE_COPY
from tests.e2e.libvirt.world import DISK, FullWorld, LibvirtWorld
from tests.e2e.run import PATIENCE
from tests.e2e.world import GADGET

RAW = Disk(f"{IMAGES}/web 1.raw")
SOCKET = "/run/libvirt/libvirt-sock"
DEVICES = {"block/vda", "block/vdb", "net/net0", "tpm/tpm0", "usb/redir0", "pci/fs0"}


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with Observer.start(libvirt_lab) as seen:
        world = FullWorld.begin(libvirt_lab, seen, disks=[DISK, RAW], extra=GADGET)
        yield world
        world.end()


def test_three_moves_in_a_row(world: LibvirtWorld) -> None:
    """By the host's name, by ssh as virsh has it, and by the sockets of both libvirtd."""
    ways = (
        ("b", ()),
        (ssh_uri(world.here), ()),
        (
            f"qemu+unix://b/system?socket={SOCKET}",
            ("--connect", f"qemu+unix:///system?socket={SOCKET}"),
        ),
    )
    for target, options in ways:
        mark = world.seen.mark()
        run = world.migrate(*options, to=target)
        world.moved(run)
        moved = {one["device"] for one in run.of("device-step-done") if one["step"] == 3}
        assert moved == {*DEVICES, "external/gadget0"}
        [resumed] = run.of("guest-resumed")
        gap = world.seen.longest_gap(mark)
        # What it says of itself is what is seen from outside; a guest needs a moment to answer.
        assert resumed["blackout"] <= gap.seconds + 0.05
        assert gap.seconds < resumed["blackout"] + 2


def test_the_counter_of_the_tpm_counts_on(world: LibvirtWorld) -> None:
    """What the guest has written to its TPM before the move is there after it, and can go on."""
    world.registers = world.guest.nv_increment()
    count = world.registers.nv
    world.moved(world.migrate())
    world.registers = world.guest.nv_increment()
    assert world.registers.nv == count + 1


@pytest.mark.matrix
def test_a_paused_domain_stays_paused(world: LibvirtWorld) -> None:
    Libvirtd(world.here).virsh("suspend", world.name)
    before = world.seen.report()
    run = world.migrate()
    assert run.status == 0, str(run)
    world.here, world.there = world.there, world.here
    assert world.domains(world.here) == {world.name: "paused"}
    world.is_clean(world.there)
    assert world.seen.report().ticks <= before.ticks + 1  # one may have been on its way
    # A QEMU that has not taken its images ends itself here.
    run = world.migrate()
    assert run.status == 0, str(run)
    world.here, world.there = world.there, world.here
    assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    world.lives()
    world.running = world.here.snapshot()


@pytest.mark.matrix
def test_the_source_disks_are_kept_if_asked(world: LibvirtWorld) -> None:
    old = world.here
    run = world.migrate("--keep-source-disks")
    assert run.status == 0, str(run)
    for disk in world.disks:
        assert old.path(disk.path).exists()
    world.delete_volume(old)
    world.arrived()


def test_a_tool_for_every_device(world: LibvirtWorld) -> None:
    """It is called at the same steps, with the same words, as on QEMU."""
    tool = world.tool()
    world.moved(world.migrate("--tool", str(tool)))
    calls = [dict(zip(call[::2], call[1::2], strict=False)) for call in tool.calls()]
    assert {call["-domname"] for call in calls} == {world.name}
    assert {call["-host"] for call in calls} == {world.here.name}
    for kind, number in (("vbd", 2), ("vif", 1), ("vtpm", 1), ("vusb", 1), ("pci", 1)):
        steps = sorted(call["-step"] for call in calls if call["-type"] == kind)
        assert steps == sorted(["1", "2", "3"] * number), (kind, calls)


@pytest.mark.matrix
def test_little_memory_waits_to_be_taken_in(world: LibvirtWorld) -> None:
    """What waits in the target's kernel when the guest stops is loaded within the blackout."""
    with world.under(PRE_COPY, options=("--bandwidth", "50MiB/s")) as under:
        under.wait(PRE_COPY)
        deadline = time.monotonic() + PATIENCE
        while not one_is_bounded(world.there.run([*SS, ">=", ":49152"]).stdout):
            assert time.monotonic() < deadline
            time.sleep(0.02)  # nobody tells when it has been done, soon after memory began to come
        run = under.end()
    world.moved(run)


def test_it_is_listed_and_shown(world: LibvirtWorld) -> None:
    [listed] = json.loads(world.here.run(["entourage", "list", "--json"]).stdout)
    assert (listed["name"], listed["state"]) == (world.name, "running")
    assert json.loads(world.there.run(["entourage", "list", "--json"]).stdout) == []
    shown = json.loads(world.here.run(["entourage", "show", "--json", world.name]).stdout)
    assert [disk["path"] for disk in shown["block"]] == [disk.path for disk in world.disks]
    assert shown["tpm"][0]["type"] == "emulator"


def test_what_libvirt_refuses_is_refused_at_test(world: LibvirtWorld) -> None:
    """A domain of that name is there already: nothing is touched."""
    other = world.there
    other.path("/root/other.xml").write_text(
        f"<domain type='qemu'><name>{world.name}</name><memory>1024</memory>"
        "<os><type arch='x86_64'>hvm</type></os></domain>"
    )
    daemon = Libvirtd(other)
    daemon.virsh("define", "/root/other.xml")
    try:
        run = world.migrate()
    finally:
        daemon.virsh("undefine", world.name)
        other.path("/root/other.xml").unlink()
    assert f"{world.name} here already" in run.refusals["domain"], str(run)
    world.stayed(run, status=3)
