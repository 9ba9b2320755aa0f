from __future__ import annotations

import stat
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.devices.block import storage
from entourage.devices.block.controller import Placement
from entourage.hosts.allowed import Allowed
from entourage.hypervisors.base import DiskCopy
from entourage.settings.model import AgentSettings
from tests.unit.devices.test_harness import (
    Move,
    names,
    qcow2,
    raw,
    run,
    two_kernels,
)


@pytest.fixture(name="two_kernels")
def _two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    two_kernels(monkeypatch)


def unwritable(path: str, migration: str) -> Generator[None]:
    raise PermissionError(13, "Permission denied", f"{path} {migration}")


# Shared storage


@pytest.mark.usefixtures("two_kernels")
async def test_a_file_that_both_hosts_see_stays_where_it_is(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.share(srv)
    await move.through()
    await move.let_go()
    assert move.controller.placement is Placement.STAY
    assert move.hosts.machine.calls == []
    assert names(srv) == ["web1.img"]  # the nonce is gone, the disk is not


@pytest.mark.usefixtures("two_kernels")
async def test_a_qcow2_that_both_hosts_see_stays_and_may_hold_snapshots(
    tmp_path: Path, srv: Path
) -> None:
    image = qcow2(srv / "web1.qcow2")
    run("qemu-img", "snapshot", "-c", "s1", image)
    move = Move(tmp_path, image, format="qcow2", shared="yes")
    move.hosts.share(srv)
    assert await move.test() == []
    assert move.controller.placement is Placement.STAY


@pytest.mark.usefixtures("two_kernels")
async def test_an_equal_copy_on_other_storage_is_not_the_same_file(
    tmp_path: Path, srv: Path
) -> None:
    move = Move(tmp_path, raw(srv / "web1.img", data=b"x" * 4096))
    raw(move.hosts.mkdir(srv) / "web1.img", data=b"x" * 4096)
    refusal = await move.refusal()
    assert refusal.host == "b"
    assert "there already" in refusal.reason
    assert "other storage" in refusal.reason


@pytest.mark.usefixtures("two_kernels")
async def test_another_file_in_the_shared_directory_is_not_the_same_file(
    tmp_path: Path, srv: Path
) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.share(srv)
    move.onto(raw(srv / "other.img"))
    refusal = await move.refusal()
    assert "files differ" in refusal.reason


async def test_one_kernel_knows_its_files_without_a_nonce(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "nonce_beside", unwritable)
    move = Move(tmp_path, raw(srv / "web1.img"))
    move.hosts.share(srv)
    assert await move.test() == []
    assert move.controller.placement is Placement.STAY


@pytest.mark.usefixtures("two_kernels")
async def test_without_a_nonce_auto_refuses_and_says_why(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "nonce_beside", unwritable)
    move = Move(tmp_path, raw(srv / "web1.img", data=b"x" * 4096))
    move.hosts.share(srv)
    refusal = await move.refusal()
    assert "nothing can be written beside" in refusal.reason
    assert "Permission denied" in refusal.reason


@pytest.mark.usefixtures("two_kernels")
async def test_without_a_nonce_yes_is_believed_if_everything_agrees(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "nonce_beside", unwritable)
    move = Move(tmp_path, raw(srv / "web1.img", data=b"x" * 4096), shared="yes")
    move.hosts.share(srv)
    assert await move.test() == []
    assert "is believed" in move.hosts.warnings[0]


async def test_what_the_target_would_not_open_is_refused_at_test(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "nonce_beside", unwritable)
    move = Move(tmp_path, raw(srv / "web1.img", data=b"x" * 4096), shared="yes")
    move.hosts.there.allowed = Allowed(AgentSettings(image_directories=("/",)))
    move.hosts.share(srv)
    refusal = await move.refusal()
    assert "not proven to be this disk" in refusal.reason
    assert "agent.believe-shared" in refusal.remedy


async def test_shared_yes_is_checked(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"), shared="yes")
    move.hosts.mkdir(srv)
    refusal = await move.refusal()
    assert refusal.reason == "it is not shared: there is no such file"


async def test_shared_no_never_copies_a_disk_onto_itself(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img"), shared="no")
    move.hosts.share(srv)
    refusal = await move.refusal()
    assert "overwrite it" in refusal.reason


# Read-only media


@pytest.mark.usefixtures("two_kernels")
async def test_a_medium_with_the_same_content_there(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "cd.iso", data=b"iso" * 5000), readonly=True, model="ide-cd")
    raw(move.hosts.mkdir(srv) / "cd.iso", data=b"iso" * 5000)
    await move.through()
    assert move.controller.placement is Placement.STAY


@pytest.mark.usefixtures("two_kernels")
async def test_a_medium_with_other_content_there(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "cd.iso", data=b"iso"), readonly=True, model="ide-cd")
    raw(move.hosts.mkdir(srv) / "cd.iso", data=b"osi")
    assert "there already" in (await move.refusal()).reason


@pytest.mark.usefixtures("two_kernels")
async def test_a_medium_that_cannot_be_read_there(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Move(tmp_path, raw(srv / "cd.iso", data=b"iso"), readonly=True, model="ide-cd")
    theirs = raw(move.hosts.mkdir(srv) / "cd.iso", data=b"iso")
    digest = storage.digest

    async def failing(path: str) -> str:
        if path == str(theirs):
            raise OSError(5, "Input/output error")
        return await digest(path)

    monkeypatch.setattr(storage, "digest", failing)
    (refusal,) = await move.test()
    assert refusal.host == "b"
    assert "cannot be read: input/output error" in refusal.reason


@pytest.mark.usefixtures("two_kernels")
async def test_a_medium_of_odd_size_can_go_there_and_back(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "cd.iso", 3_000_000, b"iso")
    move = Move(tmp_path, image, readonly=True, model="ide-cd")
    made = move.hosts.mkdir(srv) / "cd.iso"
    await move.through()
    # QEMU shows the guest whole sectors, and writes only to images that have nothing else.
    assert made.stat().st_size == 3_000_320
    made.write_bytes(image.read_bytes() + bytes(320))  # what the mirror does
    assert await move.test() == []
    assert move.controller.placement is Placement.STAY


async def test_a_medium_that_is_missing_there_is_copied_and_kept_here(
    tmp_path: Path, srv: Path
) -> None:
    image = raw(srv / "cd.iso", data=b"iso")
    image.chmod(0o444)
    move = Move(tmp_path, image, readonly=True, model="ide-cd")
    made = move.hosts.mkdir(srv) / "cd.iso"
    await move.through()
    await move.let_go()
    assert stat.S_IMODE(made.stat().st_mode) == 0o644
    assert image.exists()


async def test_a_medium_that_is_missing_and_cannot_be_copied(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "cd.iso", data=b"iso"), readonly=True, model="ide-cd")
    move.hosts.mkdir(srv)
    move.hosts.incoming.copies = frozenset({DiskCopy.MIRROR})
    refusal = await move.refusal()
    assert refusal.reason == "the hypervisor cannot copy a read-only medium"
    assert not refusal.no_way
