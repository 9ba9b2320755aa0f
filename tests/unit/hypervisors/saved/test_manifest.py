"""What is written of a save, and who is believed that reads it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.domain import Block, Domain
from entourage.errors import DeviceError, HypervisorError, UsageError
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved import seals, storage
from entourage.hypervisors.saved.manifest import Copy, Manifest, SavedFile
from entourage.hypervisors.saved.seals import changed, sealed

replace = msgspec.structs.replace
UUID = "8053c674-0c34-4fbd-9f88-29821824241c"


@pytest.fixture
def disk(tmp_path: Path) -> Block:
    path = tmp_path / "disk0.raw"
    path.write_bytes(bytes(4096))
    return Block(id="disk0", path=str(path), format="raw")


@pytest.fixture
def saved(tmp_path: Path, disk: Block) -> Path:
    """A save of a domain with one disk."""
    directory = tmp_path / "saved"
    directory.mkdir(mode=0o700)
    write(directory, Domain(name="web1", uuid=UUID, memory=1 << 28, block=(disk,)))
    return directory


def write(directory: Path, domain: Domain) -> Manifest:
    memory = directory / manifests.MEMORY
    memory.write_bytes(b"QEVM" + bytes(100))
    memory.chmod(0o600)
    manifest = Manifest(
        format=manifests.FORMAT,
        entourage="1",
        made="2026-01-01T00:00:00+00:00",
        host="a",
        generation=3,
        was_running=True,
        domain=domain,
        facts={"qemu": "7.2.0"},
        memory=asyncio.run(manifests.measured(memory)),
        disks=tuple(seal for each in domain.block for seal in asyncio.run(sealed(each))),
    )
    manifests.write_manifest(directory, manifest)
    return manifest


def test_what_is_written_is_read(saved: Path) -> None:
    read = manifests.read_manifest(saved)
    assert (read.domain.name, read.generation, read.memory.size) == ("web1", 3, 104)
    assert (saved / "manifest.json").stat().st_mode & 0o777 == 0o600
    assert manifests.is_of(saved, read.domain, None)
    assert manifests.is_of(saved, read.domain, 3)
    assert not manifests.is_of(saved, read.domain, 2)
    other = msgspec.structs.replace(read.domain, uuid=UUID.replace("8", "9"))
    assert not manifests.is_of(saved, other, 3)


def test_nothing_is_written_over(saved: Path) -> None:
    with pytest.raises(FileExistsError):
        manifests.write_manifest(saved, manifests.read_manifest(saved))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"format": 1}', "is damaged"),
        (b'{"what": ' + b"[" * 100_000, "is damaged"),
        (b'{"format": 3}', "a newer Entourage"),
    ],
)
def test_a_manifest_that_is_none_is_told(saved: Path, content: bytes, says: str) -> None:
    (saved / "manifest.json").write_bytes(content)
    with pytest.raises(UsageError, match=says) as told:
        manifests.read_manifest(saved)
    assert told.value.remedy


COPY = Copy(
    device="block/disk0",
    format="raw",
    file=SavedFile(size=1, sha256="0" * 64, inode=1, changed=1),
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"copies": (COPY, COPY), "disks": ()}, "block/disk0 was copied twice"),
        ({"copies": (COPY,)}, "block/disk0 was copied, and has stayed"),
        ({"copies": (replace(COPY, format="qcow2"),), "disks": ()}, "is raw, and its copy qcow2"),
        ({"copies": (replace(COPY, device="block/disk9"),)}, "has no disk block/disk9"),
        ({"copies": (replace(COPY, device="net/disk0"),)}, "has no disk net/disk0"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_told(
    saved: Path, changes: dict[str, Any], says: str
) -> None:
    rewritten(saved, replace(manifests.read_manifest(saved), **changes))
    with pytest.raises(UsageError, match=says) as told:
        manifests.read_manifest(saved)
    assert told.value.remedy


def test_of_a_disk_that_its_domain_has_not_nothing_is_believed(saved: Path, disk: Block) -> None:
    manifest = manifests.read_manifest(saved)
    twice = replace(manifest.domain, block=(disk, disk))
    other = replace(manifest.domain, block=(replace(disk, id="disk1"),))
    nameless = replace(manifest.domain, uuid=None)
    for domain, says in ((twice, "twice"), (other, "no disk block/disk0"), (nameless, "no UUID")):
        rewritten(saved, replace(manifest, domain=domain))
        with pytest.raises(UsageError, match=says):
            manifests.read_manifest(saved)


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        ('"generation": 3', '"generation": -1'),
        ('"generation": 3', f'"generation": {1 << 63}'),
        ('"size": 104', '"size": -104'),
        ('"sha256": "', '"sha256": "../'),
        ('"device": "block/disk0",\n   "path": "/', '"device": "block/disk0",\n   "path": "../'),
    ],
)
def test_what_cannot_be_counted_is_damage(saved: Path, was: str, is_now: str) -> None:
    text = (saved / "manifest.json").read_text()
    assert was in text
    (saved / "manifest.json").write_text(text.replace(was, is_now))
    with pytest.raises(UsageError, match="is damaged"):
        manifests.read_manifest(saved)


def rewritten(directory: Path, manifest: Manifest) -> None:
    (directory / "manifest.json").unlink()
    manifests.write_manifest(directory, manifest)


@pytest.mark.parametrize("name", [".", "manifest.json", "memory"])
def test_what_others_may_write_is_not_believed(saved: Path, name: str) -> None:
    path = saved / name
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(UsageError, match="others than root may write") as told:
        manifests.read_manifest(saved)
    assert "chmod" in told.value.remedy


def test_a_link_is_no_part_of_a_save(saved: Path, tmp_path: Path) -> None:
    (saved / "memory").rename(tmp_path / "elsewhere")
    (saved / "memory").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no save"):
        manifests.read_manifest(saved)


def test_what_is_not_whole_is_told_as_that(saved: Path) -> None:
    domain = manifests.read_manifest(saved).domain
    partial = saved.rename(manifests.partial(saved, domain))
    with pytest.raises(UsageError, match="not saved whole") as told:
        manifests.read_manifest(saved)
    assert "entourage recover" in told.value.remedy
    assert not manifests.is_save(partial)


def test_damage_is_found(saved: Path) -> None:
    manifest = manifests.read_manifest(saved)
    assert asyncio.run(manifests.problem_of(saved / "memory", manifest.memory)) is None
    memory = saved / "memory"
    content = memory.read_bytes()
    memory.write_bytes(content[:50] + b"\1" + content[51:])
    problem = asyncio.run(manifests.problem_of(saved / "memory", manifest.memory))
    assert problem is not None
    assert "damaged" in problem[0]
    memory.write_bytes(content[:-1])
    problem = asyncio.run(manifests.problem_of(saved / "memory", manifest.memory))
    assert problem is not None
    assert "103 bytes, and 104 were saved" in problem[0]


def test_a_copy_is_known(saved: Path, tmp_path: Path) -> None:
    manifest = manifests.read_manifest(saved)
    assert not manifests.is_copy(saved, manifest)
    moved = saved.rename(tmp_path / "moved")
    assert not manifests.is_copy(moved, manifest)
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    for path in moved.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert manifests.is_copy(copy, manifest)


def test_a_seal_breaks_when_its_disk_changes(disk: Block) -> None:
    path = Path(disk.path)
    [seal] = asyncio.run(sealed(disk))
    assert changed(seal) == ""
    os.utime(path)
    assert "was written to" in changed(seal)
    os.utime(path, ns=(seal.modified, seal.modified))
    assert changed(seal) == ""
    path.rename(path.with_name("old"))
    assert "no such file" in changed(seal)
    path.write_bytes(bytes(4096))  # from a backup, which kept its time
    os.utime(path, ns=(seal.modified, seal.modified))
    assert changed(seal) == ""


def test_what_a_disk_is_built_on_is_sealed_too(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1M"], check=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top], check=True
    )
    disk = Block(id="disk0", path=str(top), format="qcow2")
    seals = asyncio.run(sealed(disk))
    assert [seal.path for seal in seals] == [str(top), str(base)]
    top.write_bytes(b"QFI\xfb")
    with pytest.raises(DeviceError, match="qemu-img info failed"):
        asyncio.run(sealed(disk))


def test_where_the_data_of_a_disk_is_kept_is_sealed_too(tmp_path: Path) -> None:
    top, data = tmp_path / "top.qcow2", tmp_path / "data.raw"
    options = ["-f", "qcow2", "-o", f"data_file={data}"]
    subprocess.run(["qemu-img", "create", "-q", *options, top, "1M"], check=True)
    seals = asyncio.run(sealed(Block(id="disk0", path=str(top), format="qcow2")))
    assert [seal.path for seal in seals] == [str(top), str(data)]


def test_a_disk_whose_storage_hangs_is_not_waited_for(
    disk: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest stands still, or its host shuts down."""
    answers = threading.Event()

    def hangs(_path: str) -> None:
        answers.wait()

    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 0.05)
    monkeypatch.setattr(seals, "_seen", hangs)
    with pytest.raises(HypervisorError, match="does not answer") as told:
        asyncio.run(sealed(disk))
    assert told.value.device == disk.label
    answers.set()


def test_what_is_no_file_has_no_seal() -> None:
    with pytest.raises(HypervisorError, match="is no file"):
        asyncio.run(sealed(Block(id="disk0", path="/dev/null", format="raw")))


def test_where_another_save_could_be_put_none_is_believed(saved: Path) -> None:
    saved.parent.chmod(0o777)
    with pytest.raises(UsageError, match="could put another save there"):
        manifests.read_manifest(saved)
    saved.parent.chmod(0o1777)
    manifests.read_manifest(saved)
