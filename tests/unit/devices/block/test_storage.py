from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.devices.base import Options
from entourage.devices.block import hardware, storage
from entourage.devices.block.controller import BlockController, Placement
from entourage.devices.block.hardware import identities
from entourage.devices.block.storage import Seen, Spot, look, nonce_beside, same_device
from entourage.domain import Block
from tests.unit.devices.test_harness import CARRIES, MIB, TwoHosts, domain_with, names, raw

ZERO = hashlib.sha256(bytes(4096)).hexdigest()


# The nonce


def test_a_nonce_lives_as_long_as_its_context(tmp_path: Path) -> None:
    image = raw(tmp_path / "web1.img")
    with nonce_beside(str(image), "m1") as spot:
        (nonce,) = tmp_path.glob(".entourage-m1-*.nonce")
        assert nonce.name == spot.nonce
        assert nonce.read_text() == spot.content
    assert names(tmp_path) == ["web1.img"]


def test_a_nonce_goes_when_the_test_fails(tmp_path: Path) -> None:
    image = raw(tmp_path / "web1.img")
    with pytest.raises(RuntimeError), nonce_beside(str(image), "m1"):
        raise RuntimeError
    assert names(tmp_path) == ["web1.img"]


def test_a_nonce_left_by_a_killed_process_is_swept_up_when_its_life_is_over(tmp_path: Path) -> None:
    image = raw(tmp_path / "web1.img")
    now = int(time.time())
    old, new, other = (tmp_path / f".entourage-{word}.nonce" for word in ("old", "new", "other"))
    old.write_text(f"entourage nonce 00 until {now - 1}\n")
    new.write_text(f"entourage nonce 00 until {now + 1000}\n")
    other.write_text(f"the user's own until {now - 1}\n")
    with nonce_beside(str(image), "m1"):
        pass
    assert names(tmp_path) == [new.name, other.name, "web1.img"]


async def test_a_nonce_is_looked_for_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "link.img").symlink_to(raw(tmp_path / "big" / "web1.img"))
    with nonce_beside(str(tmp_path / "link.img"), "m1") as spot:
        assert (tmp_path / "big" / spot.nonce).exists()
        assert (await look(spot)).nonce


async def test_a_nonce_with_other_content_is_none(tmp_path: Path) -> None:
    image = raw(tmp_path / "web1.img")
    (tmp_path / "x.nonce").write_bytes(b"\xff\0")
    assert not (await look(Spot(path=str(image), nonce="x.nonce", content="y"))).nonce


# Looking


async def test_what_is_seen(tmp_path: Path) -> None:
    image = raw(tmp_path / "web1.img", 8192, b"x")
    seen = await look(Spot(path=str(image), samples=(0, 4096)))
    assert (seen.kind, seen.size, seen.inode) == ("file", 8192, image.stat().st_ino)
    assert seen.samples[1] == ZERO != seen.samples[0]
    assert (await look(Spot(path=str(tmp_path / "gone")))).kind == "none"
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        seen = await look(Spot(path=str(other)))
        assert (seen.kind, seen.error) == ("other", "it is neither a file nor a block device")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    seen = await look(Spot(path=str(tmp_path / "dangling")))
    assert (seen.kind, seen.error) == ("other", "No such file or directory")


async def test_a_digest_ends_soon_when_cancelled(tmp_path: Path) -> None:
    image = raw(tmp_path / "huge.iso", 1 << 40)
    task = asyncio.create_task(storage.digest(str(image)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The loop's end waits for the thread: a terabyte of zeros would take far beyond the time limit.


def test_a_small_disk_has_no_samples() -> None:
    assert storage.sample_offsets(4095) == ()
    assert all(offset % 4096 == 0 for offset in storage.sample_offsets(10 * MIB))


# Block devices


def device(*ids: str, size: int = MIB, samples: tuple[str, ...] = (ZERO,)) -> Seen:
    return Seen(kind="device", size=size, ids=frozenset(ids), samples=samples)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (device("kernel:1:8:0", "wwid:naa.5"), device("kernel:2:8:16", "wwid:naa.5"), True),
        (device("wwid:naa.5"), device("wwid:naa.6"), False),
        (device("wwid:naa.5"), device("wwid:naa.5", size=2 * MIB), False),
        (device("wwid:naa.5", samples=("a",)), device("wwid:naa.5", samples=("b",)), False),
        (device("weak:serial:disk0"), device("weak:serial:disk0"), False),
        (
            device("weak:serial:disk0", samples=("a",)),
            device("weak:serial:disk0", samples=("a",)),
            True,
        ),
        (device(), device(), False),
    ],
)
def test_which_devices_are_one(one: Seen, other: Seen, *, same: bool) -> None:
    assert same_device(one, other) is same


class Sysfs:
    """A tree as the kernel shows it, with made-up hardware."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def device(self, number: int, parent: Path | None = None, **files: str) -> Path:
        self.count += 1
        node = (parent or self.root / "devices") / f"d{self.count}"
        for name, content in files.items():
            file = node / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content + "\n")
        node.mkdir(parents=True, exist_ok=True)
        link = self.root / f"dev/block/{os.major(number)}:{os.minor(number)}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(node)
        return node

    def on(self, node: Path, *slaves: Path) -> None:
        (node / "slaves").mkdir()
        for slave in slaves:
            (node / "slaves" / slave.name).symlink_to(slave)

    def ids(self, number: int) -> set[str]:
        return {word for word in identities(number, self.root) if not word.startswith("kernel:")}


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


SDA, SDA1, SDB, DM0, DM1 = (
    os.makedev(8, 0), os.makedev(8, 1), os.makedev(8, 16), os.makedev(253, 0), os.makedev(253, 1)
)  # fmt: skip


def test_hardware_names_itself(sysfs: Sysfs) -> None:
    sysfs.device(SDA, device__wwid="naa.5000c500a1b2c3d4")
    sysfs.device(SDB, wwid="eui.0025385b71b0a1c2")
    sysfs.device(DM0, serial="chosen-by-a-person")
    sysfs.device(DM1, device__wwid="t10.ATA     QEMU HARDDISK    QM00001")
    assert sysfs.ids(SDA) == {"wwid:naa.5000c500a1b2c3d4"}
    assert sysfs.ids(SDB) == {"wwid:eui.0025385b71b0a1c2"}
    assert sysfs.ids(DM0) == {"weak:serial:chosen-by-a-person"}
    assert sysfs.ids(DM1) == {"weak:wwid:t10.ATA     QEMU HARDDISK    QM00001"}


def test_a_partition_is_a_place_on_its_disk(sysfs: Sysfs) -> None:
    disk = sysfs.device(SDA, device__wwid="naa.5")
    sysfs.device(SDA1, disk, partition="1", start="2048", size="4096")
    assert sysfs.ids(SDA1) == {"part1@2048+4096 on wwid:naa.5"}


def test_several_paths_say_what_one_path_says(sysfs: Sysfs) -> None:
    one, two = sysfs.device(SDA, device__wwid="naa.5"), sysfs.device(SDB, device__wwid="naa.5")
    sysfs.on(sysfs.device(DM0, dm__uuid="mpath-35"), one, two)
    assert sysfs.ids(DM0) == sysfs.ids(SDA)


def test_a_volume_is_the_same_only_on_the_same_hardware(sysfs: Sysfs) -> None:
    # The UUIDs inside are cloned with the disk, so they say nothing by themselves.
    one, two = sysfs.device(SDA, device__wwid="naa.5"), sysfs.device(SDB, serial="s")
    sysfs.on(sysfs.device(DM0, dm__uuid="LVM-abc"), one)
    sysfs.on(sysfs.device(DM1, dm__uuid="LVM-abc"), two)
    assert sysfs.ids(DM0) == {"dm:LVM-abc on wwid:naa.5"}
    assert sysfs.ids(DM1) == {"weak:dm:LVM-abc on serial:s"}


def test_a_volume_on_nameless_hardware_has_no_name(sysfs: Sysfs) -> None:
    sysfs.on(sysfs.device(DM0, dm__uuid="LVM-abc"), sysfs.device(SDA))
    assert sysfs.ids(DM0) == set()


def test_one_kernel_knows_its_devices_by_number(sysfs: Sysfs) -> None:
    assert identities(SDA, sysfs.root) == {f"kernel:{hardware.boot_id()}:8:0"}


# Block devices as disks; real ones, so only root can make them


@pytest.fixture
def loops(tmp_path: Path) -> Generator[list[Path]]:
    """Two loop devices of 4 and 8 MiB."""
    made: list[Path] = []
    try:
        for size in (4, 8):
            file = raw(tmp_path / f"{size}.loop", size * MIB, os.urandom(MIB))
            done = subprocess.run(
                ["losetup", "--find", "--show", str(file)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                pytest.skip(f"no loop devices: {done.stderr.strip()}")
            made.append(Path(done.stdout.strip()))
        yield made
    finally:
        for loop in made:
            subprocess.run(["losetup", "--detach", str(loop)], check=True)


def device_disk(tmp_path: Path, loop: Path, **options: str) -> tuple[TwoHosts, BlockController]:
    disk = Block(id="disk0", path=str(loop))
    hosts = TwoHosts(domain_with(block=(disk,)), tmp_path / "b")
    hosts.options = Options(disks=options)
    return hosts, BlockController(disk)


def show(hosts: TwoHosts, *loops: Path) -> None:
    """Let the target see these devices."""
    hosts.mkdir(Path("/dev"))
    for loop in loops:
        hosts.on_target(loop).symlink_to(loop)


async def test_a_device_that_both_hosts_see_stays(tmp_path: Path, loops: list[Path]) -> None:
    hosts, controller = device_disk(tmp_path, loops[0])
    show(hosts, loops[0])
    assert await hosts.test(controller) == []
    assert controller.placement is Placement.STAY


async def test_a_device_that_is_not_there_needs_a_tool_or_a_name(
    tmp_path: Path, loops: list[Path]
) -> None:
    hosts, controller = device_disk(tmp_path, loops[0])
    (refusal,) = await hosts.test(controller)
    assert refusal.no_way
    assert "there is no such device" in refusal.reason
    assert "--disk disk0=/dev/" in refusal.remedy
    assert "[tool] block" in refusal.remedy


async def test_a_device_of_that_name_there_may_be_another(
    tmp_path: Path, loops: list[Path]
) -> None:
    hosts, controller = device_disk(tmp_path, loops[0])
    hosts.mkdir(Path("/dev"))
    hosts.on_target(loops[0]).symlink_to(loops[1])
    (refusal,) = await hosts.test(controller)
    assert refusal.no_way
    assert "another one" in refusal.reason


async def test_a_named_device_is_written_over(tmp_path: Path, loops: list[Path]) -> None:
    hosts, controller = device_disk(tmp_path, loops[0], disk0=str(loops[1]))
    show(hosts, *loops)
    assert await hosts.test(controller) == []
    assert controller.placement is Placement.ONTO
    assert "larger than the disk by 4 MiB" in hosts.warnings[0]
    await hosts.prepare(controller)
    await hosts.connect(controller)
    assert hosts.machine.calls == [("mirror", f"block/disk0 to {loops[1]}")]
    await controller.let_go(hosts.here(controller.test_there))
    assert loops[0].exists()


async def test_a_carrier_copies_only_onto_equals(tmp_path: Path, loops: list[Path]) -> None:
    hosts, controller = device_disk(tmp_path, loops[0], disk0=str(loops[1]))
    hosts.machine.copies = hosts.incoming.copies = CARRIES
    show(hosts, *loops)
    (refusal,) = await hosts.test(controller)
    assert "larger than the disk" in refusal.reason


async def test_a_named_device_that_is_too_small(tmp_path: Path, loops: list[Path]) -> None:
    hosts, controller = device_disk(tmp_path, loops[1], disk0=str(loops[0]))
    show(hosts, *loops)
    (refusal,) = await hosts.test(controller)
    assert "has 4 MiB (4194304 bytes), the disk 8 MiB (8388608 bytes)" in refusal.reason


async def test_a_named_device_that_is_in_use(tmp_path: Path, loops: list[Path]) -> None:
    hosts, controller = device_disk(tmp_path, loops[0], disk0=str(loops[1]))
    show(hosts, *loops)
    holder = os.open(loops[1], os.O_RDONLY | os.O_EXCL)  # as a mount does
    try:
        (refusal,) = await hosts.test(controller)
    finally:
        os.close(holder)
    assert refusal.reason.endswith("is in use there")


async def test_a_device_may_become_a_file(tmp_path: Path, loops: list[Path]) -> None:
    srv = tmp_path / "srv"
    hosts, controller = device_disk(tmp_path, loops[0], disk0=str(srv / "web1.img"))
    made = hosts.mkdir(srv) / "web1.img"
    assert await hosts.test(controller) == []
    await hosts.prepare(controller)
    assert made.stat().st_size == 4 * MIB


async def test_a_qcow2_does_not_go_onto_a_device(tmp_path: Path, loops: list[Path]) -> None:
    image = tmp_path / "web1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)  # noqa: ASYNC221
    disk = Block(id="disk0", path=str(image), format="qcow2")
    hosts = TwoHosts(domain_with(block=(disk,)), tmp_path / "b")
    hosts.options = Options(disks={"disk0": str(loops[0])})
    show(hosts, loops[0])
    (refusal,) = await hosts.test(BlockController(disk))
    assert "cannot be copied onto a device" in refusal.reason
