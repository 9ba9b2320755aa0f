"""A disk that both hosts have stays where it is, also where the target has no Entourage."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.libvirtd import Libvirtd, ssh_uri
from lab.observer import Observer
from tests.e2e.libvirt.world import NOT_THERE, LibvirtWorld
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, pool, shared_storage


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with ExitStack() as stack:
        stack.enter_context(shared_storage(libvirt_lab))
        for name in ("a", "b"):
            stack.enter_context(pool(libvirt_lab[name]))
        seen = stack.enter_context(Observer.start(libvirt_lab))
        world = LibvirtWorld.begin(libvirt_lab, seen, disks=[Disk(f"{SHARED}/web1.raw")], tpm=False)
        yield world
        world.end()


@pytest.mark.parametrize(
    "afar",
    [False, pytest.param(True, marks=pytest.mark.matrix)],
    ids=["entourage-there", "none-there"],
)
def test_it_stays_where_it_is(world: LibvirtWorld, *, afar: bool) -> None:
    [disk] = world.disks
    before = world.here.path(disk.path).stat()
    run = world.migrate(*NOT_THERE, to=ssh_uri(world.there)) if afar else world.migrate()
    assert not [one for one in run.of("copy-progress") if one["what"] == "block/vda"]
    world.moved(run)
    after = world.here.path(disk.path).stat()
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
    assert [path.name for path in world.there.path(SHARED).glob("*web1*")] == ["web1.raw"]


def test_a_failure_leaves_it_alone(world: LibvirtWorld) -> None:
    """The half-built machine on the target goes; the disk, which is the source's too, stays."""
    world.stayed(world.migrate("--max-blackout", "1ms"))
    assert world.there.path(world.disks[0].path).exists()


@pytest.mark.parametrize("first", ["entourage", pytest.param("virsh", marks=pytest.mark.matrix)])
def test_one_that_is_paused_moves_twice(world: LibvirtWorld, first: str) -> None:
    """QEMU takes its images where it stays paused: without them it would end itself.

    Where ``virsh migrate`` has brought it, it takes them before it moves on.
    """
    Libvirtd(world.here).virsh("suspend", world.name)
    for by in (first, "entourage"):
        if by == "virsh":
            how = ("--live", "--persistent", "--undefinesource", "--unsafe")
            uri = ssh_uri(world.there)
            world.here.run(["virsh", "migrate", *how, world.name, uri], timeout=PATIENCE)
        else:
            run = world.migrate()
            assert run.status == 0, str(run)
            assert not run.finished["problems"], str(run)
        world.here, world.there = world.there, world.here
        assert world.domains(world.here) == {world.name: "paused"}
    Libvirtd(world.here).virsh("resume", world.name)
    world.lives()
    world.running = world.here.snapshot()
