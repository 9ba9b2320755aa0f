"""Disks and media that libvirt cannot copy as any other: what becomes of them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.libvirtd import IMAGES, Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.world import DISK, LibvirtWorld

ISO = f"{IMAGES}/cd.iso"
SCSI = f"{IMAGES}/scsi.img"
CD = f"""
<disk type="file" device="cdrom">
  <source file="{ISO}" startupPolicy="optional"/><target dev="sdz" bus="sata"/><readonly/>
</disk>
"""
THREADED = f"""
<controller type="scsi" index="0" model="virtio-scsi"><driver iothread="1"/></controller>
<disk type="file" device="disk">
  <driver name="qemu" type="raw" cache="none"/>
  <source file="{SCSI}"/><target dev="sda" bus="scsi"/>
</disk>
"""


@dataclass
class MediaWorld(LibvirtWorld):
    """The domain has a CD that it can do without, and a SCSI disk with a thread of its own."""

    devices: ClassVar = CD + THREADED

    def _write(self, extra: str) -> str:
        for path in (ISO, SCSI):
            self.here.run(["truncate", "--size", "1M", path])
        file = super()._write(extra)
        there = self.here.path(file)
        text = there.read_text().replace("<devices>", "<iothreads>1</iothreads><devices>", 1)
        there.write_text(text)
        return file


@pytest.fixture
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with Observer.start(libvirt_lab) as seen:
        disks = [DISK, Disk(SCSI)][:1]
        world = MediaWorld.begin(libvirt_lab, seen, disks=disks)
        yield world
        world.end()


def test_a_medium_that_is_optional_stays_behind(module_world: MediaWorld) -> None:
    """And the disk behind a thread moves, of which QEMU 7.2 dies on the target otherwise."""
    world = module_world
    run = world.migrate()
    assert run.status == 0, str(run)
    assert "the drive is empty there" in str(run.of("warned"))
    world.here, world.there = world.there, world.here
    world.seen.wait_progress()
    media = Libvirtd(world.here).virsh("domblklist", world.name).stdout
    assert ISO not in media
    assert SCSI in media
    kept = Libvirtd(world.here).virsh("dumpxml", "--inactive", world.name).stdout
    assert "iothread='1'" in kept
    for host, path in ((world.there, ISO), (world.here, SCSI)):
        host.path(path).unlink()
