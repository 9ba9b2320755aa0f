"""A libvirt domain with records of what was written since a checkpoint moves as others do."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.libvirtd import IMAGES, Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.saved import SOCKETS
from tests.e2e.libvirt.world import LibvirtWorld

DISKS = (Disk(f"{IMAGES}/r0.raw"), Disk(f"{IMAGES}/r1.qcow2", "qcow2"))
DIR = "/srv/since-moves"

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with Observer.start(libvirt_lab) as seen:
        world = LibvirtWorld.begin(libvirt_lab, seen, "recorded", disks=DISKS)
        world.kept = (*world.kept, SOCKETS)  # type: ignore[misc] - of this one
        yield world
        world.end()


def records(world: LibvirtWorld) -> list[int]:
    """How many records QEMU has of each disk."""
    text = json.dumps({"execute": "query-block"})
    said = Libvirtd(world.here).virsh("qemu-monitor-command", world.name, text).stdout
    blocks = json.loads(said)["return"]
    return [len(one["inserted"].get("dirty-bitmaps", [])) for one in blocks]


def recorded(world: LibvirtWorld) -> None:
    """Have a checkpoint made, of which only the records stay."""
    words = ["--checkpoint", "--allow-tpm-rollback", "--", world.name, DIR]
    world.here.run(["entourage", "save", *words])
    world.here.run(["rm", "-r", DIR])
    assert records(world) == [1, 1]


def test_by_virsh(world: LibvirtWorld) -> None:
    """Disks and all, there and back."""
    for _ in range(2):
        recorded(world)
        world.virsh_migrate()
        world.delete_volume(world.here)
        world.arrived()
        assert records(world) == [0, 0]


def test_by_entourage(world: LibvirtWorld) -> None:
    recorded(world)
    world.moved(world.migrate())
    assert records(world) == [0, 0]
