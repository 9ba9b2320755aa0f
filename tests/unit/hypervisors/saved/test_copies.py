"""Disks are copied into a save, and out of it, by qemu-nbd and qemu-img as they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from entourage.domain import Block
from entourage.errors import DeviceError, HypervisorError
from entourage.hosts.nbd import NbdServer
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.base import DataPlane, Export
from entourage.hypervisors.saved.copies import Belonged, CopiesIn, CopiesOut
from entourage.hypervisors.values import LocalData

SIZE = 1 << 20


@pytest.fixture
def local(tmp_path: Path) -> LocalData:
    return LocalData(socket=str(tmp_path / "run" / "m"), generation=1, paused=False)


def plane(local: LocalData) -> DataPlane:
    return DataPlane(address="127.0.0.1", ports=(1, 2), secret=None, local=local)


def image(path: Path, image_format: str, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["qemu-img", "create", "-q", "-f", image_format, str(path), str(SIZE)]
    subprocess.run(command, check=True)
    if content:
        path.write_bytes(content)
    return path


def converted(source: Path, source_format: str, target: Path, target_format: str) -> Path:
    command = ["qemu-img", "convert", "-f", source_format, "-O", target_format]
    subprocess.run([*command, str(source), str(target)], check=True)
    return target


def write(export: Export, content: Path) -> None:
    """Write a disk as a client of the export does."""
    where = f"driver=nbd,export={export.name},server.type=unix,server.path={export.socket}"
    command = ["qemu-img", "convert", "-n", "-f", "raw", "--target-image-opts"]
    subprocess.run([*command, str(content), where], check=True)


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_what_was_written_is_in_the_save(
    tmp_path: Path, local: LocalData, image_format: str
) -> None:
    directory, ledger = tmp_path / "x.partial", MemoryLedger()
    disk = Block(id="disk0", path="/srv/x", format=image_format)  # type: ignore[arg-type]
    image(directory / "disks" / "disk0", image_format)
    content = tmp_path / "content"
    content.write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
    copies = CopiesIn(directory, ledger)
    with pytest.raises(HypervisorError, match="nothing is being saved"):
        await copies.export(disk)
    copies.stands(local)
    export = await copies.export(disk)
    assert (export.socket, export.port) == (local.disk_socket("disk0"), 0)
    assert Path(export.socket).stat().st_mode & 0o077 == 0
    await asyncio.to_thread(write, export, content)
    copies.made(disk, image_format, Belonged(0o640, "alice", "disk"))
    [copy] = await copies.written()
    assert (copy.mode, copy.owner, copy.group) == (0o640, "alice", "disk")
    assert (copy.device, copy.format) == ("block/disk0", image_format)
    assert copy.file.size == (directory / "disks" / "disk0").stat().st_size
    await copies.close()
    assert not list((tmp_path / "run").iterdir())
    assert await ledger.undo() == []
    out = converted(directory / "disks" / "disk0", image_format, tmp_path / "out", "raw")
    assert out.read_bytes() == content.read_bytes()


async def test_changes_are_copied_onto_another_saves_image_and_read_with_it(
    tmp_path: Path, local: LocalData
) -> None:
    """What is written makes an overlay; the disk that is restored is raw, as it was."""
    content = os.urandom(SIZE)
    below = image(tmp_path / "below", "raw", content)
    (directory := tmp_path / "later.partial" / "disks").mkdir(parents=True)
    overlay, disk = directory / "disk0", Block(id="disk0", path="/srv/x")
    made = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(below), str(overlay)]
    await asyncio.to_thread(subprocess.run, made, check=True)
    copies = CopiesIn(directory.parent, MemoryLedger())
    copies.stands(local)
    copies.made(disk, "qcow2", Belonged())
    export = await copies.export(disk)
    where = f"driver=nbd,export=disk0,server.type=unix,server.path={export.socket}"
    write_some = ["qemu-io", "--image-opts", "-c", "write -P 7 64k 64k", where]
    await asyncio.to_thread(subprocess.run, write_some, check=True, stdout=subprocess.DEVNULL)
    [copy] = await copies.written()
    assert copy.format == "qcow2"
    assert copy.file.size < SIZE // 2
    target, server = (
        image(tmp_path / "target", "raw"),
        NbdServer(ledger := MemoryLedger(), export.socket),
    )
    await server.serve(target, "raw", "disk0")
    out = CopiesOut([copy])
    out.plane = plane(local)
    await out.mirror(replace(disk, path=str(overlay)), export, top_only=False)
    await server.end()
    await ledger.undo()
    assert target.read_bytes() == content[: 64 << 10] + b"\7" * (64 << 10) + content[128 << 10 :]


async def test_what_is_given_up_serves_nobody(tmp_path: Path, local: LocalData) -> None:
    ledger = MemoryLedger()
    disk = Block(id="disk0", path="/srv/x")
    image(tmp_path / "disks" / "disk0", "raw")
    copies = CopiesIn(tmp_path, ledger)
    copies.stands(local)
    export = await copies.export(disk)
    assert await ledger.undo() == []  # as after a crash
    assert not Path(export.socket).exists()
    await copies.close()


async def test_what_cannot_be_served_is_told(tmp_path: Path) -> None:
    server = NbdServer(MemoryLedger(), str(tmp_path / "s"))
    with pytest.raises(DeviceError, match="cannot be served"):
        await server.serve(tmp_path / "none", "raw", "disk0")


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_a_copy_goes_to_where_it_is_taken(
    tmp_path: Path, local: LocalData, image_format: str
) -> None:
    content = os.urandom(SIZE)
    raw = image(tmp_path / "raw", "raw", content)
    source = converted(raw, "raw", tmp_path / "a,b", image_format)
    target, ledger = image(tmp_path / "target", "raw"), MemoryLedger()
    server = NbdServer(ledger, local.disk_socket())
    await server.serve(target, "raw", "disk0")
    disk = Block(id="disk0", path=str(source), format=image_format)  # type: ignore[arg-type]
    copies = CopiesOut()
    export = Export(host="", port=0, name="disk0", socket=local.disk_socket())
    with pytest.raises(HypervisorError, match="a process of the host"):
        await copies.mirror(disk, export, top_only=False)
    copies.plane = plane(local)
    assert copies.progress(disk) == (0, 0)
    await copies.mirror(disk, export, top_only=False)
    size = source.stat().st_size
    assert copies.progress(disk) == (size, size)
    await server.end()
    assert target.read_bytes() == content
    elsewhere = Export(host="", port=0, name="disk0", socket=str(tmp_path / "other"))
    with pytest.raises(HypervisorError, match="does not leave this host"):
        await copies.mirror(disk, elsewhere, top_only=False)
    with pytest.raises(DeviceError, match="cannot be copied out of the save"):
        await copies.mirror(disk, export, top_only=False)
    await ledger.undo()
