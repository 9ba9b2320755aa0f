"""From an older libvirt and QEMU to newer ones, as when hosts are upgraded one after the other."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.failing import Fault, fails_in_device
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


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    if len({Libvirtd(libvirt_lab[host]).version for host in ("a", "b")}) == 1:
        pytest.skip("both hosts have the same versions; make test-libvirt-backports")
    with Observer.start(libvirt_lab) as seen:
        world = FullWorld.begin(libvirt_lab, seen, extra=GADGET)
        yield world
        world.end()


@pytest.mark.parametrize(
    "step",
    [*(pytest.param(step, marks=pytest.mark.matrix) for step in ("prepare", "transfer")), "sync"],
)
def test_it_comes_back(world: LibvirtWorld, step: str) -> None:
    fails_in_device(world, DEVICES, Fault("external", step, "target", "error"))


def test_it_moves_up(world: LibvirtWorld) -> None:
    world.moved(world.migrate())


def test_it_does_not_move_down(world: LibvirtWorld) -> None:
    """An older QEMU is no place for it: it is refused, and nothing is touched."""
    run = world.migrate()
    assert "older" in run.refusals["domain"], str(run)
    world.stayed(run, status=3)
