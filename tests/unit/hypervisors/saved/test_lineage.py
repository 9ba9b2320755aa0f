"""A save of changes alone, and the checkpoints that it is built on."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from entourage.domain import Block, Domain
from entourage.errors import UsageError
from entourage.hypervisors.saved import lineage as module
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.lineage import lineage, since_of
from entourage.hypervisors.saved.machine import objections
from entourage.hypervisors.saved.manifest import Copy, Manifest
from entourage.hypervisors.values import Since

DISKS = (Block(id="disk0", path="/srv/a.raw"), Block(id="disk1", path="/srv/b.raw"))
DOMAIN = Domain(
    name="web1", uuid="4c9a4b1c-8f6e-4a0e-9d55-1d3c2a3a5b0f", memory=1 << 28, block=DISKS
)


def made(directory: Path, *, since: Since | None = None, mark: str = "entourage-1") -> Manifest:
    """A checkpoint with copies of both disks."""
    (directory / "disks").mkdir(parents=True, mode=0o700)
    directory.chmod(0o700)
    memory = directory / manifests.MEMORY
    memory.write_bytes(b"QEVM")
    copies: list[Copy] = []
    for disk in DISKS:
        path = manifests.copy_path(directory, disk)
        path.write_bytes(directory.name.encode())
        path.chmod(0o600)
        changes = since is not None and disk.id in since.images
        file = asyncio.run(manifests.measured(path))
        copies.append(Copy(device=disk.label, format="qcow2" if changes else "raw", file=file))
    memory.chmod(0o600)
    manifest = Manifest(
        format=manifests.format_for(since, sent=False),
        entourage="1",
        made="2026-01-01T00:00:00+00:00",
        host="a",
        generation=3,
        was_running=True,
        domain=DOMAIN,
        facts={},
        memory=asyncio.run(manifests.measured(memory)),
        copies=tuple(copies),
        checkpoint=True,
        mark=mark,
        since=since,
    )
    manifests.write_manifest(directory, manifest)
    return manifests.read_manifest(directory)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A checkpoint of all, and two of changes, each since the one before."""
    places = [tmp_path / name for name in ("one", "two", "three")]
    since = None
    for place in places:
        made(place, since=since)
        since, _ = since_of(place)
    return places


def test_the_images_that_it_is_built_on(three: list[Path]) -> None:
    one, two, last = three
    found = lineage(last, manifests.read_manifest(last))
    assert [(each.label, each.path) for each in found] == [
        (disk.label, place / "disks" / disk.id) for place in (two, one) for disk in DISKS
    ]
    assert manifests.read_manifest(one).format == 1  # one of before reads it
    assert manifests.read_manifest(last).format == 2
    assert objections(last, manifests.read_manifest(last), "holder") == []


def test_so_many_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many disks each of them has."""
    monkeypatch.setattr(module, "_LONGEST", 4)
    since = None
    for number in range(4):
        made(tmp_path / str(number), since=since)
        if number < 3:
            since, _ = since_of(tmp_path / str(number))
    last = tmp_path / "3"
    assert len(lineage(last, manifests.read_manifest(last))) == 3 * len(DISKS)
    with pytest.raises(UsageError, match="the last of 4"):
        since_of(last)


def test_of_a_disk_that_came_later_only_its_own(three: list[Path], tmp_path: Path) -> None:
    since, _ = since_of(three[0])
    younger = tmp_path / "younger"
    manifest = made(younger, since=replace(since, images={"disk1": "raw"}))
    assert [each.label for each in lineage(younger, manifest)] == ["block/disk1"]


@pytest.mark.parametrize("at", [0, 1])
def test_one_that_is_not_there_is_told(three: list[Path], at: int) -> None:
    shutil.rmtree(three[at])
    manifest = manifests.read_manifest(three[2])
    with pytest.raises(UsageError, match=f"since {three[at]}: there is no save") as told:
        lineage(three[2], manifest)
    assert told.value.remedy
    [refusal] = objections(three[2], manifest, "holder")
    assert str(three[at]) in refusal.reason


def test_another_one_in_its_place_is_told(three: list[Path]) -> None:
    shutil.rmtree(three[0])
    made(three[0], mark="entourage-2")
    with pytest.raises(UsageError, match="which is another save now"):
        lineage(three[2], manifests.read_manifest(three[2]))


def test_one_that_is_built_on_itself_has_an_end(tmp_path: Path) -> None:
    place = tmp_path / "one"
    made(place)
    since, _ = since_of(place)
    manifest = made(tmp_path / "two", since=since)
    circle = replace(manifest, since=replace(since, directory=str(tmp_path / "two")))
    (tmp_path / "two" / "manifest.json").unlink()
    manifests.write_manifest(tmp_path / "two", circle)
    with pytest.raises(UsageError, match="another save now"):
        lineage(tmp_path / "two", circle)


def test_since_what_is_no_checkpoint_nothing_is_saved(tmp_path: Path) -> None:
    made(tmp_path / "one", mark="")
    with pytest.raises(UsageError, match="no checkpoint with copies of disks"):
        since_of(tmp_path / "one")
    with pytest.raises(UsageError, match="there is no save"):
        since_of(tmp_path / "none")
