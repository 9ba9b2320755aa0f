"""Between hosts with different versions of QEMU, as when they are upgraded one after the other."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.failing import Fault, fails_in_device
from tests.e2e.world import EMULATED, GADGET, World

DEVICES = {
    "block": "block/disk0",
    "net": "net/net0",
    "tpm": "tpm/tpm0",
    "usb": "usb/tablet",
    "pci": "pci/rng",
    "external": "external/gadget0",
}


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    versions = [lab[host].run(["qemu-system-x86_64", "--version"]).stdout for host in ("a", "b")]
    if len(set(versions)) == 1:
        pytest.skip("both hosts have the same QEMU; make test-qemu10")
    with Observer.start(lab) as seen:
        disk = Disk("/srv/disk0.qcow2", "qcow2")
        world = World.begin(lab, seen, disks=[disk], extra=EMULATED + GADGET)
        refused = world.migrate("--dry-run").refusals.get("domain", "")
        if "virtio queues" not in refused:
            yield world
        world.end()
    if "virtio queues" in refused:
        pytest.skip(refused)  # from Debian 13's QEMU to its backports' nothing can move


@pytest.mark.parametrize(
    "step",
    [*(pytest.param(step, marks=pytest.mark.matrix) for step in ("prepare", "transfer")), "sync"],
)
def test_it_comes_back(world: World, step: str) -> None:
    fails_in_device(world, DEVICES, Fault("external", step, "target", "error"))


def test_it_moves_to_a_newer_major_version(world: World) -> None:
    world.moved(world.migrate())


def test_it_does_not_move_to_an_older_one(world: World) -> None:
    """It is refused, and nothing is touched."""
    run = world.migrate()
    assert "older" in run.refusals["domain"], str(run)
    world.stayed(run, status=3)
