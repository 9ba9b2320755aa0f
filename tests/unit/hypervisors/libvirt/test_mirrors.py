"""Disks of a running domain that libvirt copies into a save."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import DataPlane
from entourage.hypervisors.libvirt import mirrors as module
from entourage.hypervisors.libvirt.changes import Changes
from entourage.hypervisors.libvirt.constants import (
    BLOCK_JOB_ABORT_ASYNC,
    BlockCopy,
    BlockJob,
)
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.mirrors import Mirrors, destination, is_ours, user_of
from entourage.hypervisors.values import Export, LocalData, Since
from tests.unit.eventually import idle
from tests.unit.hypervisors.libvirt.fakes import Failed

UUID = "5b6e6d0e-0000-4000-8000-000000000001"
DISK = Block(id="vda", path="/d/a.qcow2", format="qcow2")
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 28, block=(DISK,))


class Feed:
    """What is heard; a fake of ``events.Feed``."""

    def __init__(self) -> None:
        self.known = Known()
        self._changed = asyncio.Event()

    def hear(self, said: BlockJob) -> None:
        self.known.block_jobs["vda"] = said
        self._changed.set()

    async def hear_of_block_jobs(self) -> None:
        """It does."""

    async def until(self, check: Callable[[Known], Any]) -> Any:
        while (found := check(self.known)) is None:
            self._changed.clear()
            await self._changed.wait()
        return found


class Raw:
    """A fake of ``virDomain``, whose copy says this of itself.

    Args:
        loop: Where it is heard.
        feed: Who hears it.
        says: At once.
        ends: As it is given up; None: nothing, it goes on.
    """

    def __init__(self, feed: Feed, says: BlockJob, ends: BlockJob | None) -> None:
        self.loop, self.feed, self.says, self.ends = (
            asyncio.get_running_loop(),
            feed,
            says,
            ends,
        )
        self.told: list[Any] = []
        self.socket = ""
        self.connects = False

    def blockCopy(self, disk: str, text: str, _parameters: Any, flags: int) -> None:  # noqa: N802 - libvirt's
        host = parse(text).find("source/host")
        assert host is not None
        self.socket = host.get("socket", "")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.socket)
            self.connects = True
        self.told.append(("copy", disk, flags))
        self.loop.call_soon_threadsafe(self.feed.hear, self.says)

    def blockJobInfo(self, _disk: str, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's
        return {"type": 2, "cur": 5, "end": 7} if self.socket else {}

    def blockJobAbort(self, disk: str, flags: int) -> None:  # noqa: N802 - libvirt's
        self.told.append(("abort", disk, flags))
        if self.ends is None:
            raise Failed("no such job")
        self.socket = ""
        self.loop.call_soon_threadsafe(self.feed.hear, self.ends)

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's
        return copied(self.socket)


def copied(path: str) -> str:
    """A domain whose disk is being copied to that socket."""
    mirror = f"<mirror><source><host transport='unix' socket='{path}'/></source></mirror>"
    disk = f"<disk><target dev='vda'/>{mirror if path else ''}</disk>"
    return f"<domain><devices>{disk}</devices></domain>"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """Where something takes the copy; and where QEMU is let in. Sockets' paths must be short."""
    with tempfile.TemporaryDirectory(prefix="m.") as made:
        monkeypatch.setattr(module, "SOCKETS", Path(made, "in"))
        yield f"{made}/m.sock.disk.vda"


async def mirrors(
    served: str, says: BlockJob, ends: BlockJob | None
) -> tuple[Mirrors, Raw, asyncio.Server]:
    server = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), served)
    feed = Feed()
    raw = Raw(feed, says, ends)
    handle: Any = SimpleNamespace(raw=raw, domain=DOMAIN)
    job: Any = SimpleNamespace(heard=lambda: feed)
    found = Mirrors(handle, job)
    local = LocalData(
        socket=served.removesuffix(".disk.vda"), generation=1, paused=False, copies={"vda": "/d"}
    )
    found.plane = DataPlane(address="", ports=(1, 2), secret=None, local=local)
    return found, raw, server


@pytest.mark.parametrize("ends", [BlockJob.COMPLETED, BlockJob.CANCELLED])
async def test_a_copy_is_given_up_once_the_guest_stands_still(served: str, ends: BlockJob) -> None:
    """QEMU is let in by a name of its own, which is gone with the copy."""
    found, raw, server = await mirrors(served, BlockJob.READY, ends)
    async with server:
        await found.mirror(DISK, Export(host="", port=0, name="vda", socket=served), top_only=False)
        assert Path(raw.socket).parent == module.SOCKETS
        assert found.progress(DISK) == (5, 7)
        await found.complete(DISK)
    flags = BlockCopy.REUSE_EXT | BlockCopy.TRANSIENT_JOB
    assert raw.told == [("copy", "vda", flags), ("abort", "vda", BLOCK_JOB_ABORT_ASYNC)]
    assert raw.connects
    assert not list(module.SOCKETS.iterdir())


@pytest.mark.parametrize(
    ("says", "why"), [(BlockJob.FAILED, "it failed"), (BlockJob.CANCELLED, "somebody has ended")]
)
async def test_one_that_ends_by_itself_is_no_copy(served: str, says: BlockJob, why: str) -> None:
    found, _, server = await mirrors(served, says, BlockJob.CANCELLED)
    async with server:
        export = Export(host="", port=0, name="vda", socket=served)
        with pytest.raises(HypervisorError, match=why):
            await found.mirror(DISK, export, top_only=False)


@pytest.mark.parametrize("late", [False, True])
async def test_one_that_fails_later_is_none_either(
    served: str,
    late: bool,  # noqa: FBT001 - a case's
) -> None:
    found, raw, server = await mirrors(served, BlockJob.READY, BlockJob.FAILED)
    async with server:
        await found.mirror(DISK, Export(host="", port=0, name="vda", socket=served), top_only=True)
        assert raw.told[0][2] & BlockCopy.SHALLOW
        if not late:
            raw.feed.hear(BlockJob.FAILED)
        with pytest.raises(HypervisorError, match="it failed"):
            await found.complete(DISK)


async def test_it_goes_nowhere_else(served: str) -> None:
    found, raw, server = await mirrors(served, BlockJob.READY, BlockJob.CANCELLED)
    async with server:
        export = Export(host="", port=0, name="vda", socket="/run/another.sock")
        with pytest.raises(HypervisorError, match="does not leave this host"):
            await found.mirror(DISK, export, top_only=False)
    assert raw.told == []


async def test_changes_are_copied_once_no_whole_disk_is(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one whose storage hangs, QEMU would wait for ever."""
    found, _, server = await mirrors(served, BlockJob.READY, BlockJob.CANCELLED)
    assert found.plane is not None
    assert found.plane.local is not None
    since = Since(directory="/srv/mon", sha256="", mark="entourage-1", images={"vdb": "raw"})
    local = msgspec.structs.replace(found.plane.local, since=since)
    found.plane = msgspec.structs.replace(found.plane, local=local)
    copied: list[str] = []

    async def copy(_changes: Changes, disk: Block, mark: str) -> None:
        copied.append(f"{disk.id} {mark}")

    monkeypatch.setattr(Changes, "copy", copy)
    async with server:
        await found.mirror(DISK, Export(host="", port=0, name="vda", socket=served), top_only=False)
        other = asyncio.ensure_future(found.complete(Block(id="vdb", path="/d/b.raw")))
        await idle()
        assert copied == []
        await found.complete(DISK)
        await asyncio.wait_for(other, 5)
    assert copied == ["vdb entourage-1"]


async def test_what_another_process_has_begun_is_ended(served: str) -> None:
    found, raw, server = await mirrors(served, BlockJob.READY, BlockJob.CANCELLED)
    module.SOCKETS.mkdir()
    (module.SOCKETS / f"{UUID}.vda.x").touch()
    raw.socket = str(module.SOCKETS / f"{UUID}.vda.x")
    async with server:
        await found.cancel(DISK)
    assert raw.told == [("abort", "vda", BLOCK_JOB_ABORT_ASYNC)]
    assert not list(module.SOCKETS.iterdir())


async def test_its_users_own_copy_is_not_ended(served: str) -> None:
    found, raw, server = await mirrors(served, BlockJob.READY, BlockJob.CANCELLED)
    raw.socket = "/srv/mine.sock"
    async with server:
        await found.cancel(DISK)
    assert raw.told == []


async def test_one_that_does_not_end_is_cut_off(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage that hangs holds it up: QEMU closes the connection."""
    found, raw, server = await mirrors(served, BlockJob.READY, None)
    module.SOCKETS.mkdir()
    raw.socket = str(module.SOCKETS / f"{UUID}.vda.x")
    monkeypatch.setattr(module, "_ENDS_WITHIN", 0.01)
    monkeypatch.setattr(module, "_SOON", 0.01)
    yanked: list[Any] = []

    async def tell(command: str, **arguments: Any) -> Any:
        if command == "query-yank":
            nodes = {"type": "block-node", "node-name": "libvirt-3-storage"}
            return [{"type": "migration"}, nodes]
        yanked.append(arguments)
        raw.socket = ""
        return {}

    handle: Any = found
    handle._handle.tell_qemu = tell
    async with server:
        await found.cancel(DISK)
    assert yanked == [{"instances": [{"type": "block-node", "node-name": "libvirt-3-storage"}]}]
    raw.socket = str(module.SOCKETS / f"{UUID}.vda.x")
    monkeypatch.setattr(module, "_CUT_WITHIN", 0.0)
    with pytest.raises(HypervisorError, match="does not end its copy") as told:
        await found.cancel(DISK)
    assert "virsh blockjob web1 vda --abort" in told.value.remedy


def test_whose_copy_it_is() -> None:
    assert is_ours(parse(copied("/run/entourage-copies/x")), "vda")
    assert not is_ours(parse(copied("/run/entourage-copies/x")), "vdb")
    assert not is_ours(parse(copied("/run/x")), "vda")
    assert not is_ours(parse(copied("")), "vda")


def test_where_it_goes() -> None:
    root = parse(destination("/run/x", "vda"))
    source = root.find("source")
    assert source is not None
    assert source.attrib == {"protocol": "nbd", "name": "vda"}


def test_whom_qemu_runs_as() -> None:
    assert user_of(os.getpid()) == os.geteuid()
    assert user_of(0) == 0
