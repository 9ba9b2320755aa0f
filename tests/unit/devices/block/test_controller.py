from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import msgspec
import pytest

from entourage.devices.base import Options
from entourage.devices.block import storage
from entourage.devices.block.controller import BlockController
from entourage.domain import Block
from entourage.errors import DeviceError, HypervisorError
from entourage.steps import Refusal, Step
from tests.unit.devices.test_harness import MIB, Move, names, qcow2, raw, run

# Local files


async def test_a_local_file_is_made_there_and_mirrored(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "web1.img", size=8 * MIB + 512, data=b"x" * 4096)
    image.chmod(0o640)
    move = Move(tmp_path, image)
    made = move.hosts.mkdir(srv) / "web1.img"
    await move.through()
    status = made.stat()
    assert status.st_size == 8 * MIB + 512
    assert status.st_blocks == 0  # holes stay holes
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert move.hosts.machine.calls == [
        ("mirror", f"block/disk0 to {made}"),
        ("complete_mirror", "block/disk0"),
    ]
    assert names(made.parent) == ["web1.img"]
    assert [kind for kind, _ in move.hosts.ledger.rows] == ["scratch", "file"]
    assert await move.hosts.ledger.undo() == []
    assert names(made.parent) == []


async def test_a_preallocated_file_stays_preallocated(tmp_path: Path, srv: Path) -> None:
    image = srv / "web1.img"
    run("fallocate", "-l", "4M", image)
    move = Move(tmp_path, image)
    made = move.hosts.mkdir(srv) / "web1.img"
    assert await move.test() == []
    await move.hosts.prepare(move.controller)
    assert made.stat().st_blocks * 512 >= 4 * MIB
    # A mirror punches holes where the source has zeros.
    run("fallocate", "-p", "-o", "0", "-l", "2M", made)
    await move.hosts.connect(move.controller)
    assert made.stat().st_blocks * 512 >= 4 * MIB


async def test_a_file_may_go_to_another_place(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    other = tmp_path / "other"
    made = move.hosts.mkdir(other) / "moved.img"
    move.onto(other / "moved.img")
    await move.through()
    assert made.is_file()
    assert move.controller.target_device.path == str(other / "moved.img")  # type: ignore[attr-defined]
    assert move.hosts.incoming.calls == [("export", str(made))]


async def test_what_is_there_already_is_never_overwritten(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    mine = move.hosts.mkdir(srv) / "web1.img"
    mine.write_text("the user's own")
    assert "is there already" in (await move.refusal()).reason
    mine.unlink()
    assert await move.test() == []
    mine.write_text("made meanwhile")
    with pytest.raises(DeviceError, match="come into being meanwhile"):
        await move.hosts.prepare(move.controller)
    assert await move.hosts.ledger.undo() == []
    assert names(mine.parent) == ["web1.img"]
    assert mine.read_text() == "made meanwhile"


async def test_a_missing_directory(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    refusal = await move.refusal()
    assert refusal.host == "b"
    assert "there is no directory" in refusal.reason


async def test_a_missing_device_does_not_become_a_file(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.root = Path("/")
    move.onto(Path("/dev/entourage-has-no-such-device"))
    assert "there is no device" in (await move.refusal()).reason


async def test_a_relative_path_there(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.onto(Path("web1.img"))
    assert "no absolute path" in (await move.refusal()).reason


def forbidden(path: object, mode: int) -> bool:
    return bool(path and mode < 0)


async def test_a_directory_that_may_not_be_written(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.mkdir(srv)
    monkeypatch.setattr(os, "access", forbidden)  # root may write everywhere
    assert "nothing may be written" in (await move.refusal()).reason


async def test_a_read_only_filesystem(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.root = Path("/")
    read_only = next(
        (
            Path(line.split()[1])
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if "ro" in line.split()[3].split(",") and Path(line.split()[1]).is_dir()
        ),
        None,
    )
    if read_only is None:
        pytest.skip("this machine has no read-only filesystem")
    move.onto(read_only / "web1.img")
    assert any("is read-only" in refusal.reason for refusal in await move.test())


async def test_disks_on_one_filesystem_are_counted_together(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Block(id="disk1", path=str(raw(srv / "two.img", 9 * MIB, b"x" * 9 * MIB)))
    move = Move(tmp_path, raw(srv / "one.img", 9 * MIB, b"x" * 9 * MIB), other)
    second = BlockController(other)
    move.hosts.mkdir(srv)
    monkeypatch.setattr(storage, "free_space", lambda _: (1, 10 * MIB))  # type: ignore[misc]
    assert await move.test() == []
    assert await move.test() == []  # asked again, a disk is not counted twice
    refusals = await move.hosts.test(second)
    assert len(refusals) == 1
    assert "no space left" in refusals[0].reason
    assert "18 MiB together with block/disk0" in refusals[0].reason
    assert "10 MiB free" in refusals[0].reason


async def test_a_sparse_file_needs_only_what_it_holds(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Move(tmp_path, raw(srv / "web1.img", 1 << 40, b"x" * MIB))
    move.hosts.mkdir(srv)
    monkeypatch.setattr(storage, "free_space", lambda _: (1, 20 * MIB))  # type: ignore[misc]
    assert await move.test() == []


async def test_two_disks_for_one_place(tmp_path: Path, srv: Path) -> None:
    other = Block(id="disk1", path=str(srv / "two.img"))
    move = Move(tmp_path, raw(srv / "one.img"), other)
    move.hosts.mkdir(srv)
    move.onto(srv / "two.img")
    assert "would be the place of block/disk1 too" in (await move.refusal()).reason


async def test_a_disk_that_is_not_there(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, srv / "gone.img")
    refusals = await move.test()
    assert refusals[0].host == "a"
    assert "cannot be read: No such file" in refusals[0].reason


async def test_what_is_no_disk(tmp_path: Path, srv: Path) -> None:
    refusals = await Move(tmp_path, srv).test()
    assert "neither a file nor a block device" in refusals[0].reason


async def test_a_hypervisor_that_cannot_mirror(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.mkdir(srv)
    move.hosts.machine.copies = move.hosts.incoming.copies = frozenset()
    refusals = await move.test()
    assert [refusal.host for refusal in refusals] == ["a", "b"]
    assert all(refusal.no_way for refusal in refusals)
    assert "[tool] block" in refusals[0].remedy


async def test_what_the_hypervisor_marks_is_refused(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"), model="nvme")
    move.hosts.mkdir(srv)
    move.hosts.blockers = (
        Refusal("block/disk0", "a", "nvme has no migration support"),
        Refusal("pci/rng", "a", "another one"),
    )
    refusals = await move.test()
    assert [refusal.reason for refusal in refusals] == ["nvme has no migration support"]
    assert refusals[0].remedy


# Afterwards


async def test_the_source_file_is_deleted_after_the_hand_over(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "web1.img")
    move = Move(tmp_path, image)
    move.hosts.mkdir(srv)
    await move.through()
    await move.let_go()
    assert not image.exists()
    await move.let_go()  # tried again, it is no error


async def test_the_source_file_behind_a_link_goes_with_the_link(tmp_path: Path, srv: Path) -> None:
    (tmp_path / "big").mkdir()
    image = raw(tmp_path / "big" / "web1.img")
    (srv / "web1.img").symlink_to(image)
    move = Move(tmp_path, srv / "web1.img")
    move.hosts.mkdir(srv)
    await move.through()
    await move.let_go()
    assert not image.exists()
    assert not (srv / "web1.img").is_symlink()


async def test_the_source_file_is_kept_when_asked(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "web1.img")
    move = Move(tmp_path, image)
    move.hosts.mkdir(srv)
    move.hosts.options = Options(keep_source_disks=True)
    await move.through()
    await move.let_go()
    assert image.exists()


async def test_after_a_crash_another_process_deletes_it(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "web1.img")
    move = Move(tmp_path, image)
    move.hosts.mkdir(srv)
    await move.through()
    memo = msgspec.json.decode(msgspec.json.encode(move.controller.memo()))
    move.controller = BlockController(move.disk)
    move.controller.recall(memo)
    await move.let_go()
    assert not image.exists()


async def test_after_a_crash_another_process_gives_up_the_mirror(tmp_path: Path) -> None:
    move = Move(tmp_path, tmp_path / "web1.img")
    move.controller.recall({})
    await recover(move, Step.PREPARE)
    assert move.hosts.machine.calls == [("cancel_mirror", "block/disk0")]
    await move.let_go()


async def test_a_file_that_took_its_place_is_not_deleted(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "web1.img")
    move = Move(tmp_path, image)
    move.hosts.mkdir(srv)
    await move.through()
    raw(srv / "new").rename(image)
    with pytest.raises(DeviceError, match="is left") as caught:
        await move.let_go()
    assert caught.value.remedy.startswith("see what put it there; the disk is on ")
    assert image.exists()


async def recover(move: Move, last_good: Step) -> None:
    await move.controller.recover(move.hosts.here(move.controller.recover_there), last_good)


async def test_recovery_gives_up_the_mirror(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.mkdir(srv)
    assert await move.test() == []
    await move.hosts.prepare(move.controller)
    await recover(move, Step.TEST)
    assert move.hosts.machine.calls == []
    move.hosts.machine.fails = "mirror"
    with pytest.raises(HypervisorError):
        await move.hosts.connect(move.controller)
    here = move.hosts.here(move.controller.connect_there)
    assert move.controller.progress(here) == (1, 2)
    await recover(move, Step.TEST)
    assert move.hosts.machine.calls[-1] == ("cancel_mirror", "block/disk0")
    assert (srv / "web1.img").exists()


async def test_recovery_after_a_settled_mirror_has_nothing_to_do(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.mkdir(srv)
    await move.through()
    await recover(move, Step.TRANSFER)
    assert move.hosts.machine.calls[-1] == ("complete_mirror", "block/disk0")


async def test_cancelled_in_preparation_leaves_nothing(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Move(tmp_path, qcow2(srv / "web1.qcow2"), format="qcow2")
    made = move.hosts.mkdir(srv)
    assert await move.test() == []
    slow = tmp_path / "bin" / "qemu-img"
    slow.parent.mkdir()
    started = tmp_path / "started"
    os.mkfifo(started)
    slow.write_text(f"#!/bin/sh\necho $$ > {started}\nexec sleep 1000\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    task = asyncio.create_task(move.hosts.prepare(move.controller))
    pid = int(await asyncio.to_thread(started.read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()
    assert await move.hosts.ledger.undo() == []
    assert names(made) == []
