"""The power is cut while a libvirt domain is saved or restored, and it starts with its host."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.libvirtd import IMAGES
from lab.observer import Observer
from tests.e2e.libvirt.saved import (
    SavedWorld,
    lives,
    names,
    recovered,
    restore,
    save,
    starts_with_its_host,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE
from tests.e2e.saves import cut_power

DIR = "/srv/cut"
HOW = ["", "--compress"]  # into libvirt's own file, and sent

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    """A domain whose disks and saves are on the disk of its host."""
    disks = (Disk(f"{IMAGES}/saved6.qcow2", "qcow2"), Disk(f"{IMAGES}/saved6.raw"))
    with Observer.start(libvirt_lab) as seen:
        world = SavedWorld.begin(libvirt_lab, seen, "saved6", disks=disks)
        yield world
        world.end()


@pytest.fixture
def ready(world: LibvirtWorld) -> Generator[LibvirtWorld]:
    lives(world)
    yield world
    world.here.run(["rm", "-rf", DIR])


def cut(world: LibvirtWorld, point: str, *words: str, starts: bool) -> None:
    """Cut the power of the host at a point of a command; it boots again, and is recovered.

    Args:
        world: Its hosts.
        point: Where.
        words: The command's.
        starts: Whether libvirtd starts the domain, before anybody has recovered anything.
    """
    # A power cut is to find what has long been so.
    world.here.run(["sync", "--file-system", IMAGES])
    cut_power(world, point, words)
    boots_by_itself(world, starts=starts)
    recovered(world)
    assert not [name for name in names(world.here, "/srv") if name.endswith(".partial")]


def boots_by_itself(world: LibvirtWorld, *, starts: bool) -> None:
    """Wait until libvirtd has started what it starts, and the guest writes to its disks."""
    if not starts:
        assert not starts_with_its_host(world)
        assert world.domains(world.here) == {world.name: "shut off"}
        return
    before = world.boot
    report = world.seen.wait_for(
        lambda report: (
            report.boot != before and report.up and len(report.acked) == len(world.disks)
        ),
        PATIENCE,
        world.address,
    )
    world.boot, world.registers = report.boot, world.guest.tpm()


def starts_again(world: LibvirtWorld) -> None:
    """It is off, and starts with its host as before."""
    assert world.domains(world.here) == {world.name: "shut off"}
    assert starts_with_its_host(world)
    world.start_again()
    lives(world)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("source.step-started.2", "guest"),
        ("source.memory-landed", "guest"),
        ("target.after.flush-go", "save"),
        ("source.go-sent", "save"),
    ],
)
def test_while_it_is_saved(ready: LibvirtWorld, how: str, point: str, left: str) -> None:
    """There is a whole save, beside which libvirt starts nothing; or none, and the domain is."""
    world = ready
    words = [how] if how else []
    starts = left == "guest" and not how  # one that is sent does not from the beginning
    cut(world, point, "save", *words, "--", world.name, DIR, starts=starts)
    assert world.here.path(DIR).exists() == (left == "save")
    if left == "guest":
        lives(world) if starts else starts_again(world)
        return
    assert names(world.here, DIR) == ["manifest.json", "memory"]
    assert world.domains(world.here) == {world.name: "shut off"}
    assert not starts_with_its_host(world)
    done = restore(world, DIR)
    assert done.status == 0, str(done)
    lives(world)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("point", ["source.after.disarm-deadman", "target.before.flush-go"])
def test_where_it_was_about_to_be_handed_over(ready: LibvirtWorld, how: str, point: str) -> None:
    """The domain is not started before it is recovered; then it is, with its host, as before."""
    world = ready
    words = [how] if how else []
    cut(world, point, "save", *words, "--", world.name, DIR, starts=False)
    assert not world.here.path(DIR).exists()
    starts_again(world)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("source.after.disarm-deadman", "save"),
        ("target.after.flush-go", "save"),  # nobody has let it run
        ("target.after.let-run", "guest"),
    ],
)
def test_while_it_is_restored(ready: LibvirtWorld, how: str, point: str, left: str) -> None:
    """The claim is given up, and it is restored; or the guest had run, and is started again."""
    world = ready
    saved = save(world, DIR, *([how] if how else []))
    assert saved.status == 0, str(saved)
    cut(world, point, "restore", "--", DIR, starts=False)
    assert (world.here.path(DIR) / "claim.json").exists() == (left == "guest")
    if left == "save":
        assert world.domains(world.here) == {world.name: "shut off"}
        done = restore(world, DIR)
        assert done.status == 0, str(done)
        lives(world)
    else:
        starts_again(world)
