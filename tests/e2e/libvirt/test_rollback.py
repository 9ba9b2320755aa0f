"""Every device fails in every step, on either host; links are cut; and the guest never notices."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.dying import LANDED, PRE_COPY, STOPPED
from tests.e2e.failing import KINDS, STEPS, Fault, fail, fails_in_device
from tests.e2e.libvirt.world import FullWorld, LibvirtWorld
from tests.e2e.world import GADGET

DEVICES = {
    "block": "block/vda",
    "net": "net/net0",
    "tpm": "tpm/tpm0",
    "usb": "usb/redir0",
    "pci": "pci/fs0",
    "external": "external/gadget0",
}
CASES = [(cls, half, side) for half in STEPS for cls in DEVICES for side in ("source", "target")]
# One of each step; of the other classes `make test` tries those of Entourage's own machines.
CORE = {("block", "prepare", "source"), ("usb", "transfer", "target"), ("pci", "sync", "source")}
FAULTS = [
    pytest.param(
        Fault(*case, KINDS[number % len(KINDS)]),
        marks=() if case in CORE else pytest.mark.matrix,
    )
    for number, case in enumerate(CASES)
]
SLOWLY = ("--bandwidth", "20MiB/s")  # disks come first, at the same pace


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with Observer.start(libvirt_lab) as seen:
        world = FullWorld.begin(libvirt_lab, seen, extra=GADGET)
        yield world
        world.end()


@pytest.mark.parametrize("side", ["source", pytest.param("target", marks=pytest.mark.matrix)])
def test_all_at_test(world: LibvirtWorld, side: str) -> None:
    """Whatever cannot answer at TEST is a refusal, and all of them come at once."""
    half = "test" if side == "source" else "test_there"
    options, env = fail(f"every {half} error", side)
    run = world.migrate(*options, env=env)
    world.stayed(run, status=3)
    assert set(run.refusals) == set(DEVICES.values())


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_in_a_device(world: LibvirtWorld, fault: Fault) -> None:
    fails_in_device(world, DEVICES, fault)


@pytest.mark.parametrize("traffic", ["data", pytest.param("ssh", marks=pytest.mark.matrix)])
def test_the_link_is_cut(world: LibvirtWorld, traffic: str) -> None:
    """Reset while memory is on its way: of the one, libvirt tells; of the other, ssh."""
    assert traffic in {"data", "ssh"}
    with world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        world.lab.cut("a", "b", how="reset", traffic="ssh" if traffic == "ssh" else "data")
        run = under.end()
        world.lab.mend("a", "b")
    assert run.status == 4, str(run)
    assert run.finished["runs_on"] == world.here.name
    assert not run.of("guest-stopped"), str(run)
    world.is_as_before()


@pytest.mark.matrix
@pytest.mark.parametrize("point", [PRE_COPY, STOPPED, LANDED])
def test_the_targets_swtpm_is_killed(world: LibvirtWorld, point: str) -> None:
    """Before memory has landed it ends the migration; after, the machine has its state already."""
    options = ("--bandwidth", "100MiB/s") if point == PRE_COPY else ()
    with world.under(point, options=options) as under:
        under.wait(point)
        world.kill(world.there, "swtpm")
        run = under.end()
    world.stayed(run)


@pytest.mark.matrix
def test_the_blackouts_budget_runs_out(world: LibvirtWorld) -> None:
    """A tool that never ends, in step 2."""
    mark = world.seen.mark()
    tool = world.tool('[ "$step$recover" != 2no ] || exec sleep 60')
    run = world.migrate("--tool", str(tool), "--max-blackout", "1s")
    world.stayed(run)
    assert world.seen.longest_gap(mark).seconds < 5
    [resumed] = run.of("guest-resumed")
    assert 1 <= resumed["blackout"] < 3


@pytest.mark.parametrize(
    ("signal", "point"),
    [
        pytest.param("INT", "source.device-step-started.1.block/vda", marks=pytest.mark.matrix),
        pytest.param("INT", PRE_COPY, marks=pytest.mark.matrix),
        pytest.param("HUP", "source.guest-stopped", marks=pytest.mark.matrix),
        ("TERM", LANDED),
    ],
)
def test_interrupted(world: LibvirtWorld, signal: str, point: str) -> None:
    with world.under(point) as under:
        under.wait(point)
        under.signal(signal)
        run = under.end()
    world.stayed(run)
    assert "given up" in run.finished["message"], str(run)


def test_and_then_it_moves(world: LibvirtWorld) -> None:
    """After all of that, nothing on either host is in the way."""
    world.moved(world.migrate())
