"""What libvirt knows of a domain beside what runs: it comes along, or is told of before."""

from __future__ import annotations

import time
from xml.etree import ElementTree as ET

import pytest

from lab.libvirtd import IMAGES, Libvirtd
from tests.e2e.libvirt.world import LibvirtWorld

CHECKPOINT = """
<domaincheckpoint>
  <name>first</name>
  <disks><disk name="vda" checkpoint="bitmap" bitmap="first"/></disks>
</domaincheckpoint>
"""
BACKUP = """
<domainbackup mode="push">
  <incremental>first</incremental>
  <disks>
    <disk name="vda" type="file"><target file="/root/increment.qcow2"/><driver type="qcow2"/></disk>
  </disks>
</domainbackup>
"""
PENDING = f"{IMAGES}/pending.qcow2"


def test_it_starts_with_its_host_there_too(world: LibvirtWorld) -> None:
    Libvirtd(world.here).virsh("autostart", world.name)
    old = world.here
    world.moved(world.migrate())
    assert "Autostart:      enable" in Libvirtd(world.here).virsh("dominfo", world.name).stdout
    assert not list(old.path("/etc/libvirt/qemu/autostart").glob("*"))
    Libvirtd(world.here).virsh("autostart", "--disable", world.name)
    world.running = world.here.snapshot()


@pytest.mark.matrix
def test_the_pools_of_both_hosts_know_where_the_disk_is(world: LibvirtWorld) -> None:
    run = world.migrate()
    assert "definition" not in str(run.of("warned"))  # nothing waits for its next start
    world.moved(run)
    [disk] = world.disks
    volumes = [Libvirtd(host).virsh("vol-list", "default").stdout for host in
               (world.here, world.there)]  # fmt: skip
    assert disk.path in volumes[0]
    assert disk.path not in volumes[1]


def test_an_incremental_backup_goes_on_there(world: LibvirtWorld) -> None:
    """Checkpoints come along, and so do their bitmaps."""
    world.here.path("/root/checkpoint.xml").write_text(CHECKPOINT)
    Libvirtd(world.here).virsh("checkpoint-create", world.name, "/root/checkpoint.xml")
    world.here.path("/root/checkpoint.xml").unlink()
    run = world.migrate()
    assert not run.of("warned") or "bitmap" not in str(run.of("warned")), str(run)
    world.moved(run)
    daemon = Libvirtd(world.here)
    assert daemon.virsh("checkpoint-list", world.name, "--name").stdout.split() == ["first"]
    world.here.path("/root/backup.xml").write_text(BACKUP)
    daemon.virsh("backup-begin", world.name, "/root/backup.xml")
    daemon.virsh("checkpoint-delete", world.name, "first", "--metadata")
    for left in ("/root/backup.xml", "/root/increment.qcow2"):
        world.here.path(left).unlink()
    world.running = world.here.snapshot()


PULL = """
<domainbackup mode="pull">
  <server transport="unix" socket="/run/backup.sock"/>
  <disks>
    <disk name="vda" type="file"><scratch file="/root/scratch.qcow2"/></disk>
  </disks>
</domainbackup>
"""


def test_a_backup_under_way_is_refused_at_once(world: LibvirtWorld) -> None:
    """And not after libvirt has waited half a minute for it."""
    daemon = Libvirtd(world.here)
    world.here.path("/root/pull.xml").write_text(PULL)
    daemon.virsh("backup-begin", world.name, "/root/pull.xml")
    world.here.path("/root/pull.xml").unlink()
    try:
        begun = time.monotonic()
        run = world.migrate("--dry-run")
        took = time.monotonic() - begun
    finally:
        daemon.virsh("domjobabort", world.name)
        world.here.path("/root/scratch.qcow2").unlink(missing_ok=True)
    assert "a backup is under way" in run.refusals["domain"], str(run)
    assert took < 20
    world.stayed(run, status=3)


def test_what_waits_for_the_next_start_is_told_and_stays(world: LibvirtWorld) -> None:
    daemon = Libvirtd(world.here)
    daemon.virsh("vol-create-as", "default", "pending.qcow2", "1M", "--format", "qcow2")
    daemon.virsh("attach-disk", world.name, PENDING, "vdz", "--config", "--subdriver", "qcow2")
    world.there.run(["qemu-img", "create", "-q", "-f", "qcow2", PENDING, "1M"])
    run = world.migrate("--dry-run")
    assert f"{PENDING} as vdz" in str(run.of("warned")), str(run)
    daemon.virsh("detach-disk", world.name, "vdz", "--config")
    for host in (world.here, world.there):
        host.path(PENDING).unlink()
        Libvirtd(host).virsh("pool-refresh", "default")
    world.stayed(run, status=3)


@pytest.mark.matrix
def test_its_own_definition_that_is_off_there_is_replaced(world: LibvirtWorld) -> None:
    kept = Libvirtd(world.here).virsh("dumpxml", "--inactive", world.name).stdout
    world.there.path("/root/own.xml").write_text(kept)
    Libvirtd(world.there).virsh("define", "/root/own.xml")
    world.there.path("/root/own.xml").unlink()
    world.moved(world.migrate())


def test_it_is_put_back_where_the_guest_does_not_come(world: LibvirtWorld) -> None:
    there = Libvirtd(world.there)
    kept = Libvirtd(world.here).virsh("dumpxml", "--inactive", world.name).stdout
    root = ET.fromstring(kept)  # noqa: S314 - libvirt's
    ET.SubElement(root, "title").text = "of yesterday"
    world.there.path("/root/own.xml").write_text(ET.tostring(root, encoding="unicode"))
    there.virsh("define", "/root/own.xml")
    world.there.path("/root/own.xml").unlink()
    run = world.migrate("--max-blackout", "1ms")
    assert run.status != 0, str(run)
    assert "of yesterday" in there.virsh("dumpxml", world.name).stdout
    there.virsh("undefine", world.name)
    world.is_as_before()
