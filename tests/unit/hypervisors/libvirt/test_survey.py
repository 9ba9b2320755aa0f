"""What has begun with a domain, and what waits for its next start: told before it moves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from entourage.domain import Block, Domain
from entourage.hypervisors.libvirt.copying import Traits
from entourage.hypervisors.libvirt.survey import Survey, survey
from tests.unit.hypervisors.libvirt.fakes import FakeDomain, handle_of, use_fakes

DOMAIN = Domain(name="web1", memory=1 << 28, block=(Block(id="vda", path="/srv/web1.qcow2"),))
DISK = "<disk type='file'><source file='{}'/><target dev='{}' bus='virtio'/></disk>"
NIC = "<interface type='{}'><mac address='52:54:00:00:00:01'/><source {}/></interface>"
VDA = DISK.format("/srv/web1.qcow2", "vda")


def xml(*devices: str, more: str = "<memory>1024</memory><vcpu>1</vcpu>") -> str:
    return f"<domain><name>web1</name>{more}<devices>{''.join(devices)}</devices></domain>"


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, "survey", "lookups")


async def look(raw: FakeDomain, qemu: int = 7_002_000) -> Survey:
    return await survey(handle_of(raw, DOMAIN, qemu=qemu))


async def test_an_ordinary_domain_has_nothing_to_tell() -> None:
    assert await look(FakeDomain(xml(VDA), xml(VDA))) == Survey([], [], [], {"vda": Traits()})


async def test_an_io_thread_that_is_lost_until_the_next_start_is_told_of() -> None:
    disk = (
        "<disk type='file'><source file='/x'/><target dev='sda' bus='scsi'/>"
        "<address type='drive' controller='0'/></disk>"
        "<controller type='scsi' index='0'><driver iothread='1'/></controller>"
    )
    [found] = (await look(FakeDomain(xml(disk), xml(disk)))).pending
    assert (found.device, found.only_warns) == ("block/sda", True)
    assert not (await look(FakeDomain(xml(disk), xml(disk)), qemu=10_000_000)).pending


async def test_an_element_that_is_not_known_is_told_of() -> None:
    more = xml(VDA, "<watchdog><new/></watchdog>")
    [found] = (await look(FakeDomain(more, more))).pending
    assert found.only_warns
    assert found.reason.endswith("does not know: devices/watchdog/new")


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({"type": 1, "operation": 9}, "a backup is under way"),
        ({"type": 2, "operation": 6}, "a snapshot is being made"),
        ({"type": 2, "operation": 5}, "another migration is under way"),
    ],
)
async def test_a_job_is_named_with_what_ends_it(job: Mapping[str, int], reason: str) -> None:
    [found] = (await look(FakeDomain(xml(VDA), xml(VDA), job=job))).begun
    assert found.reason == reason
    assert found.remedy == "wait until it is done, or virsh domjobabort web1"


async def test_a_job_that_has_ended_is_none() -> None:
    assert not (await look(FakeDomain(xml(VDA), xml(VDA), job={"type": 0, "operation": 9}))).begun


@pytest.mark.parametrize(
    ("kind", "reason", "end"),
    [
        (2, "a block copy of vda is under way", "virsh blockjob web1 vda --abort"),
        (3, "a block commit of vda is under way", "virsh blockjob web1 vda --abort"),
        (5, "a backup of vda is under way", "virsh domjobabort web1"),
    ],
)
async def test_a_job_of_a_disk_is_the_disks(kind: int, reason: str, end: str) -> None:
    raw = FakeDomain(xml(VDA), xml(VDA), block_jobs={"vda": {"type": kind}})
    [found] = (await look(raw)).begun
    assert (found.device, found.reason) == ("block/vda", reason)
    assert end in found.remedy


async def test_a_backup_is_told_once() -> None:
    raw = FakeDomain(
        xml(VDA), xml(VDA),
        job={"type": 1, "operation": 9}, block_jobs={"vda": {"type": 5}},
    )  # fmt: skip
    assert len((await look(raw)).begun) == 1


async def test_snapshots_are_named_with_what_forgets_them() -> None:
    [found] = (await look(FakeDomain(xml(), xml(), snapshots=["one", "two"]))).begun
    assert "one, two" in found.reason
    assert "virsh snapshot-delete web1 one --metadata" in found.remedy


async def test_a_disk_of_the_definition_alone() -> None:
    raw = FakeDomain(xml(VDA), xml(VDA, DISK.format("/srv/more.img", "vdb")))
    [found] = (await look(raw)).pending
    assert found.only_warns
    assert "/srv/more.img as vdb, and the running domain has no such disk" in found.reason
    assert "virsh detach-disk web1 vdb --config" in found.remedy


async def test_another_image_for_the_next_start() -> None:
    raw = FakeDomain(xml(VDA), xml(DISK.format("/srv/other.qcow2", "vda")))
    [found] = (await look(raw)).pending
    assert "the running domain has /srv/web1.qcow2 there" in found.reason


async def test_another_bridge_for_the_next_start() -> None:
    running, kept = NIC.format("bridge", "bridge='br0'"), NIC.format("bridge", "bridge='br1'")
    [found] = (await look(FakeDomain(xml(running), xml(kept)))).pending
    assert "on br1, which is on br0 now" in found.reason


async def test_a_network_is_the_same_whatever_its_live_type() -> None:
    running = NIC.format("bridge", "network='lan' bridge='br0' portid='1'")
    kept = NIC.format("network", "network='lan' portgroup='x'")
    assert not (await look(FakeDomain(xml(running), xml(kept)))).pending


async def test_what_else_differs_is_named() -> None:
    kept = xml("<watchdog model='i6300esb'/>", more="<memory>2048</memory><vcpu>2</vcpu>")
    [found] = (await look(FakeDomain(xml(), kept))).pending
    assert "differs from the running domain in a watchdog, memory, vcpus" in found.reason


async def test_firmware_that_libvirt_has_chosen_is_no_change() -> None:
    running = xml(more="<os firmware='efi'><loader>/usr/share/OVMF/OVMF_CODE.fd</loader></os>")
    kept = xml(more="<os firmware='efi'/>")
    assert not (await look(FakeDomain(running, kept))).pending
    other = xml(more="<os><loader>/usr/share/OVMF/other.fd</loader></os>")
    [found] = (await look(FakeDomain(running, other))).pending
    assert "in firmware" in found.reason


async def test_a_transient_domain_waits_for_nothing() -> None:
    found = await survey(handle_of(FakeDomain(xml(VDA)), DOMAIN, transient=True))
    assert not found.pending
