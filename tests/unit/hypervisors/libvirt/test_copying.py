"""What speaks against libvirt's copying of a disk, and what is taken out of its XML for that."""

from __future__ import annotations

import msgspec

from entourage.domain import Block
from entourage.hypervisors.libvirt.copying import Traits, traits_of, unthreaded
from entourage.hypervisors.libvirt.domainxml import Lookups, parse, read_domain
from entourage.hypervisors.libvirt.job import Disks
from entourage.hypervisors.libvirt.retarget import differs, retarget

XML = """
<domain><name>web1</name><uuid>2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11</uuid>
<memory>262144</memory><os><type>hvm</type></os><devices>
  <disk type='file' device='disk'>
    <source file='/srv/luks.img'>
      <encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>
    </source>
    <target dev='sda' bus='scsi'/>
    <address type='drive' controller='1' bus='0' target='0' unit='0'/>
  </disk>
  <disk type='file' device='cdrom'>
    <source file='/srv/cd.iso' startupPolicy='optional'/><backingStore/>
    <target dev='sdb' bus='sata'/><readonly/>
    <address type='drive' controller='0' bus='0' target='0' unit='0'/>
  </disk>
  <disk type='file' device='disk'><source file='/srv/vda.img'/><target dev='vda'/></disk>
  <controller type='scsi' index='0' model='virtio-scsi'><driver iothread='1'/></controller>
  <controller type='scsi' index='1' model='virtio-scsi'>
    <driver queues='4' iothread='2'/>
  </controller>
</devices></domain>
"""


def disks() -> Disks:
    known = Disks()
    known.know("web1", traits_of(parse(XML)))
    return known


def test_what_is_known_of_each_disk() -> None:
    assert traits_of(parse(XML)) == {
        "sda": Traits(encrypted=True),
        "sdb": Traits(removable=True, optional=True),
        "vda": Traits(),
    }


def test_an_encrypted_disk_is_refused_in_words() -> None:
    [(reason, remedy)] = disks().objections(Block(id="sda", path="/srv/luks.img"))
    assert "encrypted (LUKS)" in reason
    assert "shared storage" in remedy


def test_an_ordinary_one_is_not() -> None:
    assert disks().objections(Block(id="vda", path="/srv/vda.img")) == []
    assert not disks().may_leave_out(Block(id="vda", path="/srv/vda.img"))


def test_a_medium_that_is_not_there_can_be_ejected() -> None:
    disk = Block(id="sdb", path="/srv/cd.iso", readonly=True)
    [(reason, remedy)] = disks().objections(disk)
    assert "/srv/cd.iso" in reason
    assert "virsh change-media web1 sdb --eject" in remedy
    assert disks().may_leave_out(disk)
    fixed = Block(id="vdb", path="/srv/ro.img", readonly=True)
    [(_, remedy)] = disks().objections(fixed)
    assert "--eject" not in remedy


def test_a_drive_is_empty_there_in_both_definitions() -> None:
    here = read_domain(XML)
    there = here.without_device("block/sdb")
    assert differs(here, there)
    root = parse(retarget(XML, here, there, Lookups()))
    assert root.find("devices/disk[2]/source") is None
    assert root.find("devices/disk[2]/target") is not None
    assert root.find("devices/disk[1]/source") is not None
    other = XML.replace("/srv/cd.iso", "/srv/other.iso")  # for the next start
    assert parse(retarget(other, here, there, Lookups())).find("devices/disk[2]/source") is not None


def test_only_the_thread_behind_a_copied_disk_is_taken_out() -> None:
    root = parse(unthreaded(XML, ["sda", "vda"], 7_002_000))
    drivers = [driver.attrib for driver in root.iterfind("devices/controller/driver")]
    assert drivers == [{"iothread": "1"}, {"queues": "4"}]
    assert unthreaded(XML, ["vda", "sdb"], 7_002_000) is XML


def test_a_newer_qemu_keeps_it() -> None:
    assert unthreaded(XML, ["sda"], 10_000_000) is XML
    assert unthreaded(XML, ["sda"], 0) is not XML  # not known


def test_a_domain_without_a_device_is_otherwise_the_same() -> None:
    here = read_domain(XML)
    there = here.without_device("block/sdb")
    assert [disk.id for disk in there.block] == ["sda", "vda"]
    assert msgspec.structs.replace(there, block=here.block) == here
