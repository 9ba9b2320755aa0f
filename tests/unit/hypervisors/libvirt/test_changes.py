"""What a libvirt domain's guest has written since a checkpoint, copied by QEMU's own jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import changes as module
from entourage.hypervisors.libvirt.changes import Changes, copy_name
from entourage.hypervisors.libvirt.connection import LostError, RefusedError
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.qmp_error import CommandError
from tests.unit.eventually import eventually

DISKS = (Block(id="vda", path="/d/a.raw"), Block(id="vdb", path="/d/b.qcow2", format="qcow2"))
DOMAIN = Domain(name="web1", memory=1 << 28, block=DISKS)
MARK = "entourage-1"
LIVE = "".join(
    f"<disk><target dev='{name}'/><alias name='virtio-disk{number}'/></disk>"
    for number, name in enumerate(("vda", "vdb"))
)


class Feed:
    """What is heard; a fake of ``events.Feed``."""

    def __init__(self) -> None:
        self.known = Known()
        self._changed = asyncio.Event()

    def hear(self, **said: Any) -> None:
        for name, value in said.items():
            setattr(self.known, name, value)
        self._changed.set()

    async def until(self, check: Callable[[Known], Any]) -> Any:
        while (found := check(self.known)) is None:
            self._changed.clear()
            await self._changed.wait()
        return found


class Qemu:
    """A domain whose QEMU has a record of each disk, told past libvirt; a fake of ``Handle``.

    Attributes:
        told: What it was told, but for questions: the command, and what it is about.
        nodes, jobs: Those of copies.
        ends: What becomes of a copy that is begun; None: nothing, its storage hangs.
        fails: An error in the place of the next answer.
    """

    def __init__(self, feed: Feed) -> None:

        def described(_flags: int) -> str:
            return f"<domain><devices>{LIVE}</devices></domain>"

        self.raw: Any = SimpleNamespace(XMLDesc=described)
        self.domain = DOMAIN
        self.told: list[tuple[str, str]] = []
        self.nodes: set[str] = set()
        self.jobs: set[str] = set()
        self.roots = ["libvirt-2-format", "libvirt-1-format"]
        self.records = [MARK]
        self.ends: str | None = ""
        self.fails: list[HypervisorError] = []
        self.there = True
        self.found_again = 0
        self._feed = feed

    async def is_there(self) -> bool:
        return self.there

    async def find_again(self) -> None:
        self.found_again += 1

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, device: str = ""
    ) -> Any:
        if self.fails:
            raise self.fails.pop()
        said: Mapping[str, Any] = arguments or {}
        match command:
            case "query-block":
                return [self._medium(number) for number in range(2)]
            case "query-block-jobs":
                return [{"device": name, "type": "backup"} for name in self.jobs]
            case "transaction":
                for action in said["actions"]:
                    self._note(
                        action["type"],
                        action["data"]["name" if "name" in action["data"] else "target"],
                    )
            case "blockdev-backup":
                self._begin(said)
            case "blockdev-add":
                self._note(command, said["node-name"])
                self.nodes.add(said["node-name"])
            case "blockdev-del":
                self._drop(said["node-name"])
            case "yank":
                [instance] = said["instances"]
                if instance["node-name"] not in self.nodes:
                    raise CommandError(command, "no such instance", device=device)
                self._note(command, instance["node-name"])
                self.jobs.discard(instance["node-name"])
            case "block-job-cancel":
                self._note(command, said["device"])
            case _:
                self._note(command, said["name"])
        return {}

    def _note(self, command: str, about: str) -> None:
        self.told.append((command, about))

    def _begin(self, data: Mapping[str, Any]) -> None:
        name = data["target"]
        if name not in self.nodes:
            raise CommandError("blockdev-backup", f"Cannot find node-name='{name}'")
        assert (data["bitmap"], data["bitmap-mode"], data["sync"]) == (MARK, "never", "bitmap")
        assert data["device"] in self.roots
        assert not self.jobs  # QEMU would wait for it
        self._note("blockdev-backup", name)
        if self.ends is None:
            self.jobs.add(name)
        else:
            self._feed.hear(copies=self._feed.known.copies | {name: self.ends})

    def _drop(self, name: str) -> None:
        assert not self.jobs - {name}  # QEMU 10.0 would wait for them
        if name in self.jobs:
            raise CommandError("blockdev-del", f"Node {name} is in use")
        if name not in self.nodes:
            raise CommandError("blockdev-del", f"Failed to find node with node-name='{name}'")
        self._note("blockdev-del", name)
        self.nodes.discard(name)

    def _medium(self, number: int) -> dict[str, Any]:
        records = [{"name": each, "count": 65536, "recording": True} for each in self.records]
        return {
            "qdev": f"/machine/peripheral/virtio-disk{number}/virtio-backend",
            "inserted": {
                "node-name": self.roots[number],
                "image": {"virtual-size": 1 << 20},
                "dirty-bitmaps": records,
            },
        }

    def commands(self) -> list[str]:
        return [command for command, _ in self.told]


def of(qemu: Qemu, feed: Feed) -> Changes:
    handle: Any = qemu
    job: Any = SimpleNamespace(heard=lambda: feed)
    return Changes(handle, job)


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture
def qemu(feed: Feed) -> Qemu:
    return Qemu(feed)


@pytest.fixture
def changes(qemu: Qemu, feed: Feed) -> Changes:
    return of(qemu, feed)


async def opened(changes: Changes) -> None:
    for disk in DISKS:
        await changes.open(disk, f"/run/{disk.id}.sock", disk.id)


async def test_one_disk_is_copied_after_the_other(changes: Changes, qemu: Qemu) -> None:
    """QEMU waits for one that is under way before it begins another; guest and all."""
    assert await changes.written(DISKS[0], MARK) == (65536, 1 << 20)
    assert await changes.written(DISKS[0], "entourage-2") is None
    await opened(changes)
    qemu.told.clear()
    await asyncio.gather(*(changes.copy(disk, MARK) for disk in DISKS))
    # All that was copied has been taken: QEMU is not to wait for it to be on the storage.
    each = ["blockdev-backup", "yank", "blockdev-del"]
    assert qemu.told == [(command, copy_name(disk)) for disk in DISKS for command in each]
    assert not qemu.nodes
    qemu.told.clear()
    await changes.end(DISKS, whoever=False)  # in a blackout: QEMU is not asked
    assert qemu.told == []


async def test_one_that_fails_is_told(changes: Changes, qemu: Qemu) -> None:
    await opened(changes)
    qemu.ends = "No space left on device"
    with pytest.raises(HypervisorError, match="No space left") as told:
        await changes.copy(DISKS[0], MARK)
    assert (told.value.device, "room" in told.value.remedy) == ("block/vda", True)


@pytest.mark.parametrize("what", ["another image is on top of it", "its record is gone"])
async def test_what_was_changed_meanwhile_is_not_copied(
    changes: Changes, qemu: Qemu, what: str
) -> None:
    await opened(changes)
    if what.startswith("another"):
        qemu.roots[0] = "libvirt-5-format"
    else:
        qemu.records = []
    with pytest.raises(HypervisorError, match="while it was saved") as told:
        await changes.copy(DISKS[0], MARK)
    assert told.value.device == "block/vda"
    assert "blockdev-backup" not in qemu.commands()


@pytest.mark.parametrize("late", [False, True])
async def test_no_copy_goes_on_beside_a_guest_that_runs(
    changes: Changes,
    qemu: Qemu,
    feed: Feed,
    late: bool,  # noqa: FBT001 - a case's
) -> None:
    """Nor is one begun then: it could fail the guest's writes."""
    await opened(changes)
    feed.known.stopped_at, qemu.ends = 1, None
    if not late:
        feed.hear(resumed_at=2, first_resumed_at=2)
    copying = asyncio.ensure_future(changes.copy(DISKS[0], MARK))
    if late:
        await eventually(lambda: qemu.jobs)
        feed.hear(resumed_at=2, first_resumed_at=2)
    with pytest.raises(HypervisorError, match="let the guest run"):
        await asyncio.wait_for(copying, 5)
    assert ("blockdev-backup" in qemu.commands()) == late


async def test_the_guest_goes_on_only_once_no_copy_is_there(
    changes: Changes, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose storage hangs is given up, and soon cut off."""
    await opened(changes)
    qemu.ends = None
    copying = asyncio.ensure_future(changes.copy(DISKS[0], MARK))
    await eventually(lambda: qemu.jobs)
    qemu.told.clear()
    monkeypatch.setattr(module, "_ENDS_WITHIN", 1000)
    ending = asyncio.ensure_future(changes.end(DISKS, whoever=False))
    await eventually(lambda: "block-job-cancel" in qemu.commands())
    assert not ending.done()
    assert ("yank", copy_name(DISKS[0])) not in qemu.told
    monkeypatch.setattr(module, "_ENDS_WITHIN", 0)
    await asyncio.wait_for(ending, 5)
    assert (qemu.jobs, qemu.nodes) == (set(), set())
    copying.cancel()


async def test_no_node_is_dropped_beside_a_copy_of_a_whole_disk(
    changes: Changes, qemu: Qemu
) -> None:
    """QEMU would wait for that one, whose storage may hang: they are cut off until it has ended."""
    await opened(changes)
    qemu.jobs.add("copy-vdc-libvirt-7-format")
    qemu.told.clear()
    await changes.end(DISKS, whoever=False)
    assert qemu.commands() == ["yank"] * 2
    assert qemu.nodes == {copy_name(disk) for disk in DISKS}
    qemu.jobs.clear()
    await changes.end(DISKS, whoever=False)
    assert qemu.nodes == set()


async def test_one_that_does_not_end_is_told(
    changes: Changes, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a disk of the guest's own does not answer."""
    await opened(changes)
    name = copy_name(DISKS[0])
    qemu.jobs.add(name)
    qemu.nodes.discard(name)  # nothing is left to cut off
    monkeypatch.setattr(module, "_GIVES_UP_AFTER", 0.01)
    with pytest.raises(HypervisorError, match="does not end its copy"):
        await asyncio.wait_for(changes.end(DISKS, whoever=False), 5)


async def test_one_that_was_given_up_is_not_begun(changes: Changes, feed: Feed) -> None:
    feed.known.stopped_at = 1
    with pytest.raises(HypervisorError, match="given up"):
        await changes.copy(DISKS[0], MARK)


async def test_what_a_process_before_has_begun_is_ended(qemu: Qemu, feed: Feed) -> None:
    name = copy_name(DISKS[1])
    qemu.nodes.add(name)
    qemu.jobs.add(name)
    await of(qemu, feed).end(DISKS, whoever=False)  # not of this one's
    assert qemu.jobs
    qemu.fails = [LostError("libvirtd has gone")]
    await of(qemu, feed).end(DISKS, whoever=True)
    assert (qemu.jobs, qemu.nodes, qemu.found_again) == (set(), set(), 1)


async def test_where_qemu_has_ended_nothing_is_left(qemu: Qemu, feed: Feed) -> None:
    qemu.there = False
    qemu.fails.append(RefusedError("domain is not running", 55))
    await of(qemu, feed).end(DISKS, whoever=True)
    qemu.there = True
    qemu.fails.append(RefusedError("no lock", 68))
    with pytest.raises(RefusedError, match="no lock"):
        await of(qemu, feed).end(DISKS, whoever=True)


async def test_a_record_has_its_mark_once_its_checkpoint_is_kept(
    changes: Changes, qemu: Qemu
) -> None:
    """An image that was put there meanwhile gets none."""
    for disk in DISKS:
        await changes.begin(disk)
    assert qemu.commands() == ["block-dirty-bitmap-add"] * 2
    qemu.told.clear()
    qemu.roots[0] = "libvirt-5-format"
    await changes.kept("entourage-2")
    assert qemu.told[0] == ("block-dirty-bitmap-add", "entourage-2")
    assert qemu.commands().count("block-dirty-bitmap-merge") == 1
    qemu.told.clear()
    await changes.kept("entourage-2")  # once
    assert qemu.told == []


async def test_a_disk_whose_record_is_not_kept_is_told_and_the_others_are(
    changes: Changes, qemu: Qemu
) -> None:
    for disk in DISKS:
        await changes.begin(disk)
    qemu.told.clear()
    qemu.fails = [CommandError("query-block", "no")]
    with pytest.raises(CommandError):
        await changes.kept("entourage-2")
    assert qemu.commands().count("block-dirty-bitmap-merge") == 1


async def test_a_checkpoint_of_which_no_record_can_be_kept_is_one_all_the_same(
    changes: Changes, qemu: Qemu
) -> None:
    qemu.fails = [CommandError("query-block", "no")]
    await changes.begin(DISKS[0])
    await changes.kept("entourage-2")
    assert qemu.told == []
    qemu.fails = [LostError("libvirtd has gone")]
    with pytest.raises(LostError):
        await changes.begin(DISKS[0])


async def test_a_disk_without_a_medium_is_told(changes: Changes) -> None:
    with pytest.raises(HypervisorError, match="no medium") as told:
        await changes.written(Block(id="sda", path="/d/c.raw"), MARK)
    assert told.value.device == "block/sda"
