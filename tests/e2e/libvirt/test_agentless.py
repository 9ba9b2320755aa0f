"""To a host without Entourage: its libvirtd is asked remotely; a proxy agent keeps its record."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.libvirtd import IMAGES, Libvirtd
from lab.observer import Observer
from lab.processes import HostProcess
from tests.e2e.dying import (
    GO_SAID,
    GO_STANDS,
    HELD,
    LANDED,
    LETTING_GO,
    OPENED,
    PRE_COPY,
    PREPARE,
    RAN,
    RELEASED,
    STOPPED,
    Case,
    settle,
    strike,
    victim,
)
from tests.e2e.libvirt.world import AgentlessWorld
from tests.e2e.run import PATIENCE, Run, Under
from tests.e2e.world import World

SLOWLY = ("--bandwidth", "20MiB/s")  # disks come first, at the same pace
SOCKET = "/run/of-the-other.sock"
CASES = [
    Case("entourage", GO_STANDS, "target"),
    Case("entourage", PREPARE, "source"),
    Case("entourage", PRE_COPY, "source"),
    Case("entourage", STOPPED, "source"),
    Case("entourage", LANDED, "source"),
    Case("entourage", HELD, "source"),
    Case("entourage", GO_SAID, "target"),
    Case("entourage", LETTING_GO, "target"),
    Case("stand-in", OPENED, "source"),
    Case("stand-in", PRE_COPY, "source"),
    Case("stand-in", LANDED, "source"),
    # It is its connection that keeps the machine there: libvirtd ends what nobody finishes.
    Case("stand-in", GO_STANDS, "source"),
    Case("stand-in", RELEASED, "target"),
    Case("stand-in", RAN, "target"),
    Case("target-libvirtd", PRE_COPY, "source"),
    Case("target-libvirtd", LANDED, "source"),
    Case("target-libvirtd", GO_STANDS, "source"),
    Case("target-libvirtd", RELEASED, "target"),
    Case("target-qemu", PRE_COPY, "source"),
    Case("target-qemu", GO_STANDS, "source"),
    Case("source-libvirtd", PRE_COPY, "source"),
    Case("target-host", PRE_COPY, "source"),
    Case("target-host", STOPPED, "source"),
    Case("source-host", PRE_COPY, "source", survives=False),
    Case("source-host", GO_STANDS, "source", survives=False),
]


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[AgentlessWorld]:
    with Observer.start(libvirt_lab) as seen:
        world = AgentlessWorld.begin(libvirt_lab, seen)
        assert isinstance(world, AgentlessWorld)
        yield world
        world.end()


@contextlib.contextmanager
def other_s_socket(world: AgentlessWorld) -> Generator[str]:
    """A URI of the other host's libvirtd that names no host: its socket is brought here."""
    there = f"{SOCKET}:/run/libvirt/libvirt-sock"
    process: HostProcess = world.here.popen(["ssh", "-N", "-L", there, world.there.name])
    deadline = time.monotonic() + PATIENCE
    while not world.here.path(SOCKET).is_socket():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # ssh does not say when it listens
    try:
        yield f"qemu+unix:///system?socket={SOCKET}"
    finally:
        process.terminate()
        process.communicate()
        world.here.path(SOCKET).unlink(missing_ok=True)


def about(run: Run) -> str:
    """What the user was told."""
    return "; ".join(event["message"] for event in run.of("warned"))


def test_it_moves_all_the_same(world: AgentlessWorld) -> None:
    """Disk, TPM, NIC, USB and PCI; the user hears what is weaker; the target keeps no record."""
    old, disk = world.here, world.disks[0].path
    before = json.loads(old.run(["qemu-img", "info", "-U", "--output=json", disk]).stdout)
    owner = old.path(disk).stat()
    run = world.migrate()
    world.moved(run)
    assert "has no Entourage" in about(run), str(run)
    new = world.here
    after = json.loads(new.run(["qemu-img", "info", "-U", "--output=json", disk]).stdout)
    for same in ("format", "virtual-size", "cluster-size"):
        assert after[same] == before[same]
    made = new.path(disk).stat()
    assert (made.st_uid, made.st_gid, made.st_mode) == (owner.st_uid, owner.st_gid, owner.st_mode)
    assert disk in Libvirtd(new).virsh("vol-list", "default").stdout
    for host, wanted in ((old, 1), (new, 0)):
        shown = host.run(["entourage", "status", "--all", "--json"]).stdout
        ours = [one for one in json.loads(shown) if one["migration"] == migration(run)]
        assert len([one for one in ours if one["role"] == "target"]) == wanted, shown
    world.registers = world.guest.nv_increment()


def migration(run: Run) -> str:
    """The migration's id."""
    [started] = run.of("migration-started")
    return started["migration"]


def test_by_a_socket_that_names_no_host(world: AgentlessWorld) -> None:
    """No ssh is asked for; where memory goes, libvirt says by the name that host has for itself."""
    with other_s_socket(world) as uri:
        run = world.migrate(to=uri)
        assert run.status == 0, str(run)
        assert run.finished["runs_on"] == uri
    world.arrived()


def test_a_disk_outside_of_every_pool(world: AgentlessWorld) -> None:
    """It can be neither looked at nor made: refused, with what would help."""
    run = world.migrate("--disk", "vda=/srv/elsewhere.qcow2")
    world.stayed(run, status=3)
    assert "pool-create-as" in run.refusals["block/vda"], str(run)


def test_what_is_there_is_not_overwritten(world: AgentlessWorld) -> None:
    path = f"{IMAGES}/taken.qcow2"
    world.there.path(path).write_text("a user's")
    try:
        run = world.migrate("--disk", f"vda={path}")
        assert world.there.path(path).read_text() == "a user's"
    finally:
        world.there.path(path).unlink()
        Libvirtd(world.there).virsh("pool-refresh", "default")
    world.stayed(run, status=3)
    assert "there already" in run.refusals["block/vda"], str(run)


@pytest.mark.matrix
def test_the_data_link_is_cut(world: AgentlessWorld) -> None:
    """While memory is copied; the volume that was made there is gone again."""
    with world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        assert world.there.path(world.disks[0].path).exists()
        world.lab.cut("a", "b", how="reset", traffic="data")
        run = under.end()
        world.lab.mend("a", "b")
    world.stayed(run)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("point", "owner"), [(GO_STANDS, "source"), (RELEASED, "target"), (LETTING_GO, "target")]
)
def test_its_libvirtd_is_out_of_reach(world: AgentlessWorld, point: str, owner: str) -> None:
    """From the hand-over on, for longer than anybody waits: in doubt, until it can be asked."""
    source, target = world.here, world.there
    with world.under(point) as under:
        under.wait(point)
        world.lab.cut("a", "b", how="reset", traffic="ssh")
        run = under.end()
        if point == GO_STANDS:
            assert run.status == 6, str(run)
            assert "entourage recover" in run.stderr
            assert world.domains(source) == {world.name: "paused"}
        world.lab.mend("a", "b")
    settle(world, Case("link", point, owner), run)
    assert world.here is (target if owner == "target" else source)


def kill(world: World, name: str, under: Under) -> None:
    """Kill it; a libvirtd comes back at once."""
    side, _, what = name.partition("-")
    if what != "libvirtd":
        victim(world, name, under)
        return
    assert isinstance(world, AgentlessWorld)
    host = world.here if side == "source" else world.there
    world.kill_daemon(host)
    world.start_daemon(host)


@pytest.mark.matrix
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dies(world: AgentlessWorld, case: Case) -> None:
    options = SLOWLY if case.point in {PRE_COPY, PREPARE, OPENED} else ()
    run = strike(world, case, options=options, kill=kill)
    for host in (world.here, world.there):
        if not Libvirtd(host).runs:
            world.start_daemon(host)
    settle(world, case, run)
    world.moved(world.migrate())
    # From afar nobody can see to it that what has arrived is on the disk.
    world.here.run(["sync"])
