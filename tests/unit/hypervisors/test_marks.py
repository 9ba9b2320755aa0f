"""QEMU's records of what a guest writes after a checkpoint."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.marks import begin, changed, keep
from entourage.hypervisors.qemu.qmp import Monitor
from tests.unit.hypervisors.qemu.test_qmp import FakeQmp

NEW = "new-of-entourage"


def record(name: str, count: int = 0, **more: object) -> dict[str, Any]:
    return {"name": name, "count": count, "recording": True, "busy": False, **more}


def medium(*records: Mapping[str, Any]) -> dict[str, Any]:
    image = {"virtual-size": 1 << 20}
    return {"node-name": "n0", "image": image, "dirty-bitmaps": list(records)}


def test_what_is_known_of_what_was_written() -> None:
    inserted = medium(record("entourage-1", 65536), record("backup", 1))
    assert changed(inserted, "entourage-1") == (65536, 1 << 20)
    assert changed(inserted, "entourage-2") is None
    assert changed(inserted, "backup") is None  # not ours to go by
    assert changed({"node-name": "n0"}, "entourage-1") is None
    stopped = medium(record("entourage-1") | {"recording": False})
    assert changed(stopped, "entourage-1") is None
    assert changed(medium(record("entourage-1", inconsistent=True)), "entourage-1") is None
    assert changed(medium(record("entourage-1", persistent=True)), "entourage-1") is None


@pytest.mark.parametrize("records", [[{"name": "entourage-1"}], [7], 7])
def test_what_is_not_understood_is_told(records: object) -> None:
    with pytest.raises(HypervisorError, match="query-block"):
        changed({"node-name": "n0", "dirty-bitmaps": records}, "entourage-1")


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncGenerator[tuple[FakeQmp, Monitor]]:
    fake = FakeQmp(tmp_path / "qmp.sock")
    async with fake.serving():
        monitor = await Monitor.connect(fake.path)
        yield fake, monitor
        await monitor.close()


def said(fake: FakeQmp) -> list[str]:
    """What was asked of bitmaps, in order."""
    return [
        f"{name.removeprefix('block-dirty-bitmap-')} {arguments.get('name', '')}"
        for name, arguments in fake.commands
        if name.startswith("block-dirty-bitmap")
    ]


async def test_a_record_has_its_mark_once_its_checkpoint_is_kept(
    qemu: tuple[FakeQmp, Monitor],
) -> None:
    fake, monitor = qemu
    await begin(monitor, medium(), "block/disk0")
    await keep(monitor, medium(record(NEW)), "entourage-1", "block/disk0")
    assert said(fake) == [f"add {NEW}"]
    # A record with the mark that was not filled would hide what was written: QEMU does it at once.
    [at_once] = [one["actions"] for name, one in fake.commands if name == "transaction"]
    assert [
        (each["type"].removeprefix("block-dirty-bitmap-"), each["data"]) for each in at_once
    ] == [
        ("add", {"node": "n0", "name": "entourage-1", "granularity": 1 << 16}),
        ("merge", {"node": "n0", "target": "entourage-1", "bitmaps": [NEW]}),
        ("remove", {"node": "n0", "name": NEW}),
    ]


async def test_what_was_not_kept_is_in_nobodys_way(qemu: tuple[FakeQmp, Monitor]) -> None:
    fake, monitor = qemu
    await begin(monitor, medium(record(NEW), record("entourage-1")), "block/disk0")
    assert said(fake) == [f"remove {NEW}", f"add {NEW}"]


async def test_the_oldest_go_once_a_new_one_is_kept(qemu: tuple[FakeQmp, Monitor]) -> None:
    fake, monitor = qemu
    names = [f"entourage-{number:02}" for number in range(9)]
    inserted = medium(record("another's"), record(NEW), *map(record, reversed(names)))
    await keep(monitor, inserted, "entourage-10", "block/disk0")
    removed = [each for each in said(fake) if each.startswith("remove entourage")]
    assert removed == [f"remove {name}" for name in names[:2]]  # with the new one there are eight
