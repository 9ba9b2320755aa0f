"""A mirror's connection to a target that is busy, or gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import DataPlane, Export
from entourage.hypervisors.qemu import mirrors
from entourage.hypervisors.qemu.mirrors import Mirrors
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.values import LocalData, Since
from tests.unit.eventually import eventually
from tests.unit.hypervisors.qemu.test_qmp import FakeQmp

DISK = Block(id="disk0", path="/srv/disk0.raw")
DOMAIN = Domain(name="web", memory=1 << 26, block=(DISK, msgspec.structs.replace(DISK, id="disk1")))
JOB = "m0-disk0"


class Slow(FakeQmp):
    """A QEMU whose target is too busy for its first greetings; the last one is answered."""

    def __init__(self, path: Path, busy: int) -> None:
        super().__init__(path)
        self.busy = busy
        self.held: dict[str, Any] | None = None
        self.answers["query-block"] = lambda _: [
            {"qdev": "/machine/peripheral/block-disk0/virtio-backend",
             "inserted": {"node-name": "n0-disk0"}}
        ]  # fmt: skip
        self.answers["blockdev-mirror"] = self._ready

    def _ready(self, _: object) -> dict[str, Any]:
        self.say("BLOCK_JOB_READY", device="m0-disk0")
        return {}

    @property
    def tries(self) -> int:
        return sum(name == "blockdev-add" for name, _ in self.commands)


async def nothing() -> None:
    """QEMU has nothing to flush."""


@pytest.fixture
async def export() -> AsyncGenerator[Export]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Export(host="127.0.0.1", port=server.getsockname()[1], name="x0-disk0")


@pytest.mark.parametrize("busy", [0, 2])
async def test_a_busy_target_is_tried_again(
    tmp_path: Path, export: Export, busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_BREATH", 0)
    monkeypatch.setattr(mirrors, "answered_within", late(busy))
    qemu = Slow(tmp_path / "qmp.sock", busy)
    async with qemu.serving():
        monitor = await Monitor.connect(qemu.path)
        await Mirrors(monitor, DOMAIN, nothing).mirror(DISK, export, top_only=False)
        await monitor.close()
    assert qemu.tries == 1  # those that were given up never came so far


async def test_one_that_stays_silent_is_told(
    tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_BREATH", 0)
    monkeypatch.setattr(mirrors, "answered_within", late(9))
    qemu = Slow(tmp_path / "qmp.sock", 9)
    async with qemu.serving():
        monitor = await Monitor.connect(qemu.path)
        with pytest.raises(HypervisorError, match="fell silent"):
            await Mirrors(monitor, DOMAIN, nothing).mirror(DISK, export, top_only=False)
        await monitor.close()
    assert qemu.tries == 0


async def test_the_guest_goes_on_only_once_no_backup_is_there(tmp_path: Path) -> None:
    """QEMU would fail the guest's writes for what such a job cannot copy before them."""
    qemu = FakeQmp(tmp_path / "qmp.sock")
    qemu.answers["query-block-jobs"] = lambda _: [{"device": "m0-disk0", "type": "backup"}]
    async with qemu.serving():
        monitor = await Monitor.connect(qemu.path)
        giving_up = asyncio.create_task(Mirrors(monitor, DOMAIN, nothing).give_up(run_again=True))
        await eventually(lambda: [name for name, _ in qemu.commands if name == "block-job-cancel"])
        await monitor.execute("query-status")
        assert "cont" not in [name for name, _ in qemu.commands]
        qemu.say("JOB_STATUS_CHANGE", id="m0-disk0", status="null")
        await asyncio.wait_for(giving_up, 5)
        await monitor.close()
    assert [name for name, _ in qemu.commands][-1] == "cont"


SINCE = Since(
    directory="/srv/mon",
    sha256="",
    mark="entourage-1",
    images={"disk0": "raw", "disk1": "raw"},
)


class Recording(FakeQmp):
    """A QEMU that has a record of what its disk's guest has written since a checkpoint."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.node = "n0-disk0"
        self.disks = ["disk0"]
        self.records = ["entourage-1"]
        self.answers["query-block"] = self._blocks
        self.answers["blockdev-backup"] = lambda _: self.say("BLOCK_JOB_COMPLETED", device=JOB)

    def _blocks(self, _: object) -> list[Any]:
        records = [{"name": each, "count": 65536, "recording": True} for each in self.records]
        inserted = {
            "node-name": self.node,
            "image": {"virtual-size": 1 << 20},
            "dirty-bitmaps": records,
        }
        return [
            {"qdev": f"/machine/peripheral/block-{each}/virtio-backend", "inserted": inserted}
            for each in self.disks
        ]

    def did(self) -> list[str]:
        return [name for name, _ in self.commands if name.startswith("block")]


@pytest.fixture
async def recording(tmp_path: Path) -> AsyncGenerator[tuple[Recording, Mirrors, Export]]:
    """A checkpoint of what was written since another one, about to be made."""
    qemu, taken = Recording(tmp_path / "qmp.sock"), tmp_path / "m"
    local = LocalData(
        socket=str(taken), generation=1, paused=False, mark="entourage-2", since=SINCE
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(local.disk_socket("disk0"))
        server.listen()
        async with qemu.serving():
            monitor = await Monitor.connect(qemu.path)
            found = Mirrors(monitor, DOMAIN, nothing)
            found.plane = DataPlane(address="", ports=(1, 2), secret=None, local=local)
            export = Export(host="", port=0, name="disk0", socket=local.disk_socket("disk0"))
            yield qemu, found, export
            await monitor.close()


async def test_changes_are_copied_once_the_guest_stands_still(
    recording: tuple[Recording, Mirrors, Export],
) -> None:
    qemu, found, export = recording
    assert await found.changed(DISK, "entourage-1") == (65536, 1 << 20)
    await found.mirror(DISK, export, top_only=True)
    assert found.progress(DISK) == (0, 65536)
    assert qemu.did() == ["blockdev-add", "block-dirty-bitmap-add"]
    await found.complete(DISK)
    [(_, backup)] = [each for each in qemu.commands if each[0] == "blockdev-backup"]
    assert (backup["bitmap"], backup["bitmap-mode"]) == ("entourage-1", "never")
    assert (backup["device"], backup["target"], backup["sync"]) == ("n0-disk0", JOB, "bitmap")
    await found.kept()
    [(_, kept)] = [each for each in qemu.commands if each[0] == "transaction"]
    assert kept["actions"][0]["data"]["name"] == "entourage-2"
    count = len(qemu.commands)
    await found.kept()  # once
    assert len(qemu.commands) == count


async def test_another_image_gets_no_mark(recording: tuple[Recording, Mirrors, Export]) -> None:
    """Its record would show nothing of what was written before it was put there."""
    qemu, found, export = recording
    await found.mirror(DISK, export, top_only=True)
    await found.complete(DISK)
    qemu.node = "snapshot"
    await found.kept()
    assert "transaction" not in [name for name, _ in qemu.commands]


async def test_a_disk_whose_record_is_not_kept_is_told_and_the_others_are(
    recording: tuple[Recording, Mirrors, Export],
) -> None:
    qemu, found, export = recording
    second = msgspec.structs.replace(DISK, id="disk1")
    assert found.plane is not None
    assert found.plane.local is not None
    socket1 = found.plane.local.disk_socket("disk1")
    Path(socket1).hardlink_to(export.socket)
    qemu.disks = ["disk1", "disk0"]
    await found.mirror(second, msgspec.structs.replace(export, socket=socket1), top_only=True)
    await found.mirror(DISK, export, top_only=True)
    qemu.disks = ["disk0"]  # the medium was taken out
    with pytest.raises(HypervisorError, match="no medium") as told:
        await found.kept()
    assert told.value.device == second.label
    assert [name for name, _ in qemu.commands if name == "transaction"] == ["transaction"]


@pytest.mark.parametrize("what", ["another image is on top of it", "its record is gone"])
async def test_what_was_changed_meanwhile_is_not_copied(
    recording: tuple[Recording, Mirrors, Export], what: str
) -> None:
    qemu, found, export = recording
    await found.mirror(DISK, export, top_only=True)
    if what.startswith("another"):
        qemu.node = "snapshot"
    else:
        qemu.records = []
    with pytest.raises(HypervisorError, match="while it was saved") as told:
        await found.complete(DISK)
    assert told.value.device == DISK.label
    assert "blockdev-backup" not in qemu.did()


def late(times: int) -> Any:
    """An ``answered_within`` of which the first so many are late at once."""
    left = [times]

    class Late:
        def __init__(self, _connection: socket.socket, _patience: float) -> None: ...

        def __enter__(self) -> None:
            left[0] -= 1
            if left[0] >= 0:
                raise mirrors.FellSilentError("b:49152 took the connection and fell silent")

        def __exit__(self, *_: object) -> None: ...

    return Late
