from __future__ import annotations

from pathlib import Path

import pytest

from entourage.devices.block import images, storage
from entourage.hosts import programs
from tests.unit.devices.test_harness import MIB, Move, qcow2, raw, run, two_kernels


@pytest.fixture(name="two_kernels")
def _two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    two_kernels(monkeypatch)


# qcow2


async def test_a_qcow2_becomes_one_like_it(tmp_path: Path, srv: Path) -> None:
    image = qcow2(
        srv / "web1.qcow2", "-o", "cluster_size=128k,lazy_refcounts=on,compression_type=zstd"
    )
    move = Move(tmp_path, image, format="qcow2")
    made = move.hosts.mkdir(srv) / "web1.qcow2"
    await move.through()
    (theirs,) = await images.inspect(str(made), "qcow2")
    (ours,) = await images.inspect(str(image), "qcow2")
    assert theirs.options == ours.options
    assert theirs.virtual_size == ours.virtual_size == 64 * MIB
    assert theirs.options["cluster_size"] == "131072"
    assert theirs.options["compression_type"] == "zstd"
    assert made.stat().st_blocks * 512 < MIB


async def test_a_raw_disk_is_never_probed(tmp_path: Path, srv: Path) -> None:
    # A guest can write a qcow2 header into its raw disk that names any file of the host.
    image = qcow2(srv / "evil.img", "-u", backing=Path("/etc/shadow"))
    move = Move(tmp_path, image)
    made = move.hosts.mkdir(srv) / "evil.img"
    await move.through()
    assert made.stat().st_size == storage.whole_sectors(image.stat().st_size)


async def test_an_overlay_on_a_shared_base_is_copied_alone(tmp_path: Path, srv: Path) -> None:
    shared = tmp_path / "golden"
    shared.mkdir()
    base = qcow2(shared / "base.qcow2")
    move = Move(tmp_path, qcow2(srv / "web1.qcow2", backing=base), format="qcow2")
    made = move.hosts.mkdir(srv) / "web1.qcow2"
    move.hosts.share(shared)
    await move.through()
    chain = await images.inspect(str(made), "qcow2")
    assert [Path(image.path).name for image in chain] == ["web1.qcow2", "base.qcow2"]
    assert move.hosts.machine.calls[0][0] == "mirror-top"
    await move.let_go()
    assert base.exists()
    assert not (srv / "web1.qcow2").exists()


@pytest.mark.usefixtures("two_kernels")
async def test_an_equal_base_on_other_storage_will_do(tmp_path: Path, srv: Path) -> None:
    base = qcow2(srv / "base.qcow2")
    move = Move(tmp_path, qcow2(srv / "web1.qcow2", backing=base), format="qcow2")
    (move.hosts.mkdir(srv) / "base.qcow2").write_bytes(base.read_bytes())
    await move.through()
    assert move.hosts.machine.calls[0][0] == "mirror-top"


@pytest.mark.parametrize("copy", ["auto", "keep-chain"])
async def test_an_overlay_without_its_base_there(tmp_path: Path, srv: Path, copy: str) -> None:
    base = qcow2(srv / "base.qcow2")
    move = Move(tmp_path, qcow2(srv / "web1.qcow2", backing=base), format="qcow2", copy=copy)
    move.hosts.mkdir(srv)
    refusal = await move.refusal()
    assert f"{base}, which it is built on, is not the same there" in refusal.reason
    assert 'copy = "flat"' in refusal.remedy


async def test_a_chain_is_copied_flat_when_asked(tmp_path: Path, srv: Path) -> None:
    base = qcow2(srv / "base.qcow2")
    run("qemu-io", "-c", "write 0 8M", base)
    move = Move(tmp_path, qcow2(srv / "web1.qcow2", backing=base), format="qcow2", copy="flat")
    made = move.hosts.mkdir(srv) / "web1.qcow2"
    await move.through()
    chain = await images.inspect(str(made), "qcow2")
    assert len(chain) == 1
    assert chain[0].virtual_size == 64 * MIB
    assert move.hosts.machine.calls[0][0] == "mirror"
    assert move.hosts.there.space[made.stat().st_dev]["block/disk0"] > 8 * MIB
    await move.let_go()
    assert base.exists()


async def test_a_shared_overlay_on_a_local_base(tmp_path: Path, srv: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    base = qcow2(local / "base.qcow2")
    move = Move(tmp_path, qcow2(srv / "web1.qcow2", backing=base), format="qcow2")
    move.hosts.share(srv)
    refusal = await move.refusal()
    assert str(base) in refusal.reason
    assert refusal.remedy == "put it there"


async def test_snapshots_would_be_lost(tmp_path: Path, srv: Path) -> None:
    image = qcow2(srv / "web1.qcow2")
    run("qemu-img", "snapshot", "-c", "before-update", image)
    move = Move(tmp_path, image, format="qcow2")
    move.hosts.mkdir(srv)
    refusal = await move.refusal()
    assert refusal.host == "a"
    assert "before-update" in refusal.reason


async def test_an_encrypted_image(tmp_path: Path, srv: Path) -> None:
    key = "encrypt.format=aes,encrypt.key-secret=k"
    image = qcow2(srv / "web1.qcow2", "--object", "secret,id=k,data=x", "-o", key)
    move = Move(tmp_path, image, format="qcow2")
    move.hosts.mkdir(srv)
    assert any("encrypted" in refusal.reason for refusal in await move.test())


async def test_an_external_data_file(tmp_path: Path, srv: Path) -> None:
    image = qcow2(srv / "web1.qcow2", "-o", f"data_file={srv / 'data.raw'}")
    move = Move(tmp_path, image, format="qcow2")
    move.hosts.mkdir(srv)
    assert "another file" in (await move.refusal()).reason


@pytest.mark.usefixtures("two_kernels")
async def test_a_shared_image_whose_data_file_is_only_equal_there(
    tmp_path: Path, srv: Path
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    image = qcow2(srv / "web1.qcow2", "-o", f"data_file={local / 'data.raw'}")
    move = Move(tmp_path, image, format="qcow2")
    move.hosts.share(srv)
    (move.hosts.mkdir(local) / "data.raw").write_bytes((local / "data.raw").read_bytes())
    assert "is not the same there" in (await move.refusal()).reason
    run("rm", "-r", move.hosts.on_target(local))
    move.hosts.share(local)
    assert await move.test() == []


async def test_what_is_no_qcow2(tmp_path: Path, srv: Path) -> None:
    refusals = await Move(tmp_path, raw(srv / "web1.img"), format="qcow2").test()
    assert "not in qcow2 format" in refusals[0].reason


async def test_bitmaps_stay_behind_and_the_user_hears_of_it(tmp_path: Path, srv: Path) -> None:
    image = qcow2(srv / "web1.qcow2")
    run("qemu-img", "bitmap", "--add", image, "backup0")
    move = Move(tmp_path, image, format="qcow2")
    move.hosts.mkdir(srv)
    assert await move.test() == []
    assert move.hosts.warnings == ["bitmaps stay behind: backup0"]


async def test_a_target_without_qemu_img(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Move(tmp_path, qcow2(srv / "web1.qcow2"), format="qcow2")
    move.hosts.mkdir(srv)
    monkeypatch.setattr(programs, "has_qemu_img", lambda: False)
    assert (await move.refusal()).reason == "qemu-img is not installed"
