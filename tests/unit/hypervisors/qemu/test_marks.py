"""QEMU's records of what a guest writes after a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.qemu.marks import begin, changed, drop_oldest
from entourage.hypervisors.qemu.qmp import Monitor
from tests.unit.hypervisors.qemu.test_qmp import FakeQmp


def record(name: str, count: int = 0, **more: object) -> dict[str, Any]:
    return {"name": name, "count": count, "recording": True, "busy": False, **more}


def medium(*records: Mapping[str, Any]) -> dict[str, Any]:
    return {"node-name": "n0", "dirty-bitmaps": list(records)}


def test_what_is_known_of_what_was_written() -> None:
    inserted = medium(record("entourage-1", 65536), record("backup", 1))
    assert changed(inserted, "entourage-1") == 65536
    assert changed(inserted, "entourage-2") is None
    assert changed(inserted, "backup") is None  # not ours to go by
    assert changed({"node-name": "n0"}, "entourage-1") is None
    stopped = medium(record("entourage-1") | {"recording": False})
    assert changed(stopped, "entourage-1") is None
    assert changed(medium(record("entourage-1", inconsistent=True)), "entourage-1") is None


@pytest.mark.parametrize("records", [[{"name": "entourage-1"}], [7], 7])
def test_what_is_not_understood_is_told(records: object) -> None:
    with pytest.raises(HypervisorError, match="query-block"):
        changed({"node-name": "n0", "dirty-bitmaps": records}, "entourage-1")


async def test_the_oldest_go_but_never_the_one_that_is_needed(tmp_path: Path) -> None:
    qemu = FakeQmp(tmp_path / "qmp.sock")
    for does in ("add", "remove"):
        qemu.answers[f"block-dirty-bitmap-{does}"] = lambda _: {}
    names = [f"entourage-{number:02}" for number in range(9)]
    inserted = medium(record("another's"), *map(record, reversed(names)))
    async with qemu.serving():
        monitor = await Monitor.connect(qemu.path)
        await drop_oldest(monitor, inserted, "block/disk0", but=names[0])
        await begin(monitor, "n0", "entourage-10", "block/disk0")
        await drop_oldest(monitor, medium(record("entourage-1")), "block/disk0", but="")
        await monitor.close()
    removed = [said["name"] for name, said in qemu.commands if name == "block-dirty-bitmap-remove"]
    assert removed == names[1:3]  # six of these, the one that is needed, and the new one stay
    [added] = [said for name, said in qemu.commands if name == "block-dirty-bitmap-add"]
    assert (added["node"], added["name"]) == ("n0", "entourage-10")
