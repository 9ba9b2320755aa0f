"""A directory as a target: what speaks against it, and what becomes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest

from entourage import durable
from entourage.domain import Block, Domain
from entourage.errors import HypervisorError, InDoubt, UsageError
from entourage.handover.values import Guest
from entourage.hosts.digests import NICE
from entourage.hosts.local import listening_here
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.base import DataPlane, Plan, Ticket
from entourage.hypervisors.saved import claim, storage
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.hypervisor import SavedHypervisor
from entourage.hypervisors.saved.incoming import SavingIncoming
from entourage.hypervisors.saved.machine import SavedMachine
from entourage.hypervisors.values import LocalData
from entourage.settings.model import PathSettings, Settings

UUID = "8053c674-0c34-4fbd-9f88-29821824241c"
PLAN = Plan(msgspec.msgpack.encode({}))


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    disk = tmp_path / "disk0.raw"
    disk.write_bytes(bytes(4096))
    block = Block(id="disk0", path=str(disk), format="raw")
    return Domain(name="web1", uuid=UUID, memory=1 << 20, block=(block,))


def plane(tmp_path: Path, **more: Any) -> DataPlane:
    socket = str(tmp_path / "run" / "m.sock")
    local = LocalData(socket=socket, generation=4, paused=True, sealed=True)
    local = msgspec.structs.replace(local, **more)
    return DataPlane(address="127.0.0.1", ports=(1, 2), secret=None, local=local)


async def arrived(
    tmp_path: Path, domain: Domain, **more: Any
) -> tuple[SavingIncoming, MemoryLedger]:
    """A save whose memory is all there."""
    ledger = MemoryLedger()
    state = tmp_path / "state"
    incoming = SavingIncoming(domain, tmp_path / "saved", ledger, {"qemu": "7.2"}, state)
    await landed(incoming, tmp_path, domain, **more)
    return incoming, ledger


async def landed(incoming: SavingIncoming, tmp_path: Path, domain: Domain, **more: Any) -> None:
    """Have its memory come."""
    await incoming.build(domain, plane(tmp_path, **more), PLAN)
    ticket = await incoming.listen()
    with socket.socket(socket.AF_UNIX) as source:
        await asyncio.to_thread(source.connect, ticket.uri.removeprefix("unix:"))
        await asyncio.to_thread(source.sendall, b"QEVM" + bytes(1000))
    await incoming.landed()


async def test_it_is_there_once_it_is_let_run(tmp_path: Path, domain: Domain) -> None:
    incoming, _ = await arrived(tmp_path, domain)
    directory = tmp_path / "saved"
    assert not directory.exists()
    assert await incoming.attach() is Guest.STOPPED
    await incoming.run(paused=True)
    await incoming.finish_arrival()
    assert await incoming.attach() is Guest.RUNNING
    manifest = manifests.read_manifest(directory)
    assert (manifest.generation, manifest.was_running) == (4, False)
    assert manifest.facts == {"qemu": "7.2"}
    assert [seal.device for seal in manifest.disks] == ["block/disk0"]
    assert directory.stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "run").iterdir())
    assert not list((tmp_path / "state").iterdir())


async def test_a_checkpoint_is_kept_though_it_is_given_up(tmp_path: Path, domain: Domain) -> None:
    """For the rules it went back; what was published before stays."""
    incoming, ledger = await arrived(tmp_path, domain, checkpoint=True, sealed=False)
    directory = tmp_path / "saved"
    assert not directory.exists()
    await incoming.publish()
    await incoming.kill()
    assert await ledger.undo() == []
    manifest = manifests.read_manifest(directory)
    assert (manifest.checkpoint, manifest.disks) == (True, ())
    assert not list((tmp_path / "state").iterdir())


async def test_only_a_checkpoint_is_published(tmp_path: Path, domain: Domain) -> None:
    incoming, _ = await arrived(tmp_path, domain)
    with pytest.raises(HypervisorError, match="no checkpoint"):
        await incoming.publish()
    await incoming.kill()


async def test_a_checkpoint_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, domain: Domain
) -> None:
    incoming, _ = await arrived(tmp_path, domain, checkpoint=True)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "mine").touch()
    with pytest.raises(HypervisorError, match="cannot be written down"):
        await incoming.publish()
    await incoming.kill()
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["mine"]
    assert not list(tmp_path.glob("*.partial"))


async def test_nothing_is_left_of_one_that_is_given_up(tmp_path: Path, domain: Domain) -> None:
    incoming, ledger = await arrived(tmp_path, domain)
    await incoming.kill()
    await incoming.kill()
    assert await ledger.undo() == []
    assert await incoming.attach() is Guest.DEAD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk0.raw", "run", "state"]
    assert not list((tmp_path / "state").iterdir())


async def test_nothing_is_written_over(tmp_path: Path, domain: Domain) -> None:
    incoming, _ = await arrived(tmp_path, domain)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "mine").touch()
    with pytest.raises(HypervisorError, match="not empty"):
        await incoming.run(paused=False)
    await incoming.kill()
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("saved/x", "is there already"),
        (f"saved.{UUID}.partial/x", "is left of another save"),
    ],
)
async def test_what_is_in_the_way_is_told(
    tmp_path: Path, domain: Domain, made: str, says: str
) -> None:
    path = tmp_path / made
    path.parent.mkdir()
    path.touch()
    [refusal] = await hypervisor(tmp_path).test_incoming(domain, "here", {})
    assert says in refusal.reason
    assert refusal.remedy


async def test_an_empty_directory_will_do(tmp_path: Path, domain: Domain) -> None:
    (tmp_path / "saved").mkdir()
    assert await hypervisor(tmp_path).test_incoming(domain, "here", {}) == []


async def test_room_is_looked_for(tmp_path: Path, domain: Domain) -> None:
    huge = msgspec.structs.replace(domain, memory=1 << 60)
    [refusal] = await hypervisor(tmp_path).test_incoming(huge, "here", {})
    assert "no room" in refusal.reason


async def test_what_cannot_be_seen_is_not_taken_for_what_is_not_there(
    tmp_path: Path, domain: Domain
) -> None:
    """The storage is not mounted any more: whether the save stands is not known."""
    where = tmp_path / "mnt"
    where.mkdir()
    state = tmp_path / "state"
    incoming = SavingIncoming(domain, where / "saved", MemoryLedger(), {}, state)
    await incoming.build(domain, plane(tmp_path), PLAN)
    where.rename(tmp_path / "away")
    again = SavingIncoming(domain, where / "saved", MemoryLedger(), {}, state)
    for _ in range(2):
        with pytest.raises(HypervisorError, match="mount it again"):
            await again.attach()
        with pytest.raises(HypervisorError, match="mount it again"):
            await again.kill()
        if not where.exists():
            where.mkdir()  # the directory that it is mounted on
    where.rmdir()
    (tmp_path / "away").rename(where)
    assert await again.attach() is Guest.DEAD
    await again.kill()
    assert not list(where.iterdir())


async def test_a_rename_of_which_nobody_knows_is_a_doubt(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    incoming, _ = await arrived(tmp_path, domain)

    def renamed(path: Path, target: Path) -> Path:
        os.rename(path, target)  # noqa: PTH104 - the one that is replaced
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(InDoubt, match="stands is not known"):
        await incoming.run(paused=False)
    monkeypatch.undo()
    assert await incoming.attach() is Guest.RUNNING
    await incoming.run(paused=False)  # again is no error


async def test_anothers_save_under_way_is_not_touched(tmp_path: Path, domain: Domain) -> None:
    incoming, _ = await arrived(tmp_path, domain)
    other = msgspec.structs.replace(domain, uuid=UUID.replace("8", "9"), name="web2")
    second, ledger = await arrived(tmp_path, other)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    with pytest.raises(HypervisorError, match="not empty"):
        await second.run(paused=False)
    await second.kill()
    assert await ledger.undo() == []
    assert manifests.read_manifest(tmp_path / "saved").domain == domain


async def test_what_could_not_be_restored_is_not_saved(tmp_path: Path, domain: Domain) -> None:
    """As on storage where root's files become somebody else's."""
    (tmp_path / "theirs").mkdir(mode=0o777)
    (tmp_path / "theirs").chmod(0o777)
    incoming = SavingIncoming(
        domain, tmp_path / "theirs" / "saved", MemoryLedger(), {}, tmp_path / "state"
    )
    with pytest.raises(HypervisorError, match="others than root"):
        await incoming.build(domain, plane(tmp_path), PLAN)


async def test_a_disk_that_is_its_users_to_keep_may_be_a_device(tmp_path: Path) -> None:
    """Nobody looks at it, so nothing has to be seen of it (``--disks=reference``)."""
    device = Domain(
        name="web1",
        uuid=UUID,
        memory=1 << 20,
        block=(Block(id="disk0", path="/dev/null", format="raw"),),
    )
    incoming, _ = await arrived(tmp_path, device, sealed=False)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    assert manifests.read_manifest(tmp_path / "saved").disks == ()


async def test_a_save_is_of_one_domain(tmp_path: Path, domain: Domain) -> None:
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.close()
    assert await hypervisor(tmp_path).find("web1") == domain
    with pytest.raises(UsageError, match="a save of web1, not of web2"):
        await hypervisor(tmp_path).find("web2")
    with pytest.raises(UsageError, match="restored"):
        await hypervisor(tmp_path).start(domain)


def hypervisor(tmp_path: Path) -> SavedHypervisor:
    paths = PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run"))
    return SavedHypervisor(Settings(paths=paths), str(tmp_path / "saved"))


async def restored(tmp_path: Path, where: Path, domain: Domain) -> SavedMachine:
    """A save, taken up as ``recover`` does."""
    paths = PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run"))
    machine = await SavedHypervisor(Settings(paths=paths), str(where)).reattach_machine(domain)
    assert isinstance(machine, SavedMachine)
    return machine


@pytest.mark.parametrize("end", ["release", "abort"])
async def test_a_claim_on_storage_that_is_not_mounted_is_not_settled(
    tmp_path: Path, domain: Domain, end: str
) -> None:
    mount = tmp_path / "mnt"
    mount.mkdir()
    incoming = SavingIncoming(domain, mount / "saved", MemoryLedger(), {}, tmp_path / "state")
    await landed(incoming, tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    await (await restored(tmp_path, mount / "saved", domain)).disarm_deadman()
    mount.rename(tmp_path / "away")
    mount.mkdir()
    machine = await restored(tmp_path, mount / "saved", domain)
    with pytest.raises(HypervisorError, match="not the directory that it was"):
        await getattr(machine, end)()
    mount.rmdir()
    (tmp_path / "away").rename(mount)
    machine = await restored(tmp_path, mount / "saved", domain)
    await getattr(machine, end)()
    claimed = claim.read_claim(mount / "saved")
    assert (claimed.restored if claimed else None) == (True if end == "release" else None)
    assert not list((tmp_path / "state").iterdir())


async def test_storage_that_is_full_is_free_again_before_the_guest_goes_on(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disks may be on the same one: QEMU stops a guest that cannot write."""

    async def full(_self: SavingIncoming) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SavingIncoming, "_write_down", full)
    incoming = SavingIncoming(domain, tmp_path / "saved", MemoryLedger(), {}, tmp_path / "state")
    with pytest.raises(HypervisorError, match="no space left"):
        await landed(incoming, tmp_path, domain)
    assert (manifests.partial(tmp_path / "saved", domain) / "memory").stat().st_size == 0
    await incoming.kill()


@pytest.mark.parametrize(("waits", "nice"), [(True, 0), (False, NICE)])
async def test_what_is_read_for_its_digest_stands_back_where_no_guest_waits_for_it(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch, *, waits: bool, nice: int
) -> None:
    """All of it once, from TEST on."""
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    read: list[tuple[str, int]] = []

    async def problem_of(path: Path, _saved: Any, *, nice: int) -> None:
        read.append((path.name, nice))

    monkeypatch.setattr(manifests, "problem_of", problem_of)
    machine = await restored(tmp_path, tmp_path / "saved", domain)
    if waits:
        machine.begin_to_examine()
    assert await machine.examine() == []
    await machine.arm(plane(tmp_path))
    assert read == [("memory", nice)]
    await machine.close()


async def test_what_is_damaged_is_not_let_run(tmp_path: Path, domain: Domain) -> None:
    """It is read while it is sent: TEST does not wait for it, unless it is all that is asked."""
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    memory = tmp_path / "saved" / "memory"
    memory.write_bytes(memory.read_bytes()[::-1])
    machine = await restored(tmp_path, tmp_path / "saved", domain)
    assert await machine.blockers() == []
    assert await machine.at_fault() is None  # nobody has looked
    shown = await (await restored(tmp_path, tmp_path / "saved", domain)).examine()
    assert [(one.device, "is damaged" in one.reason) for one in shown] == [("memory", True)]
    to = plane(tmp_path)
    await machine.arm(to)
    assert to.local is not None
    server = listening_here(Path(to.local.socket))
    ticket = Ticket(uri=f"unix:{to.local.socket}")
    with server:
        await machine.start(ticket, live=False)
        came, _ = await asyncio.get_running_loop().sock_accept(server)
        with came, came.makefile("rb") as file:
            came.setblocking(True)  # noqa: FBT003 - the name of it
            assert await asyncio.to_thread(file.read) == memory.read_bytes()
    with pytest.raises(HypervisorError, match="is damaged") as told:
        await machine.landed()
    assert told.value.device == "memory"
    fault = await machine.at_fault()
    assert fault is not None
    assert fault.message == told.value.message
    await machine.abort()
    assert claim.read_claim(tmp_path / "saved") is None


@pytest.mark.parametrize("what", ["disk", "save"])
async def test_what_changes_until_the_claim_is_seen(
    tmp_path: Path, domain: Domain, what: str
) -> None:
    """TEST has looked at it; until the claim another restore of it may have run, and ended."""
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    machine = await restored(tmp_path, tmp_path / "saved", domain)
    assert await machine.blockers() == []
    if what == "disk":
        os.utime(domain.block[0].path)
    else:
        manifest = manifests.read_manifest(tmp_path / "saved")
        (tmp_path / "saved" / "manifest.json").unlink()
        another = msgspec.structs.replace(manifest, generation=5)
        manifests.write_manifest(tmp_path / "saved", another)
    says = "was written to" if what == "disk" else "another save than it was"
    with pytest.raises(HypervisorError, match=says) as told:
        await machine.disarm_deadman()
    assert told.value.remedy
    await machine.abort()
    assert claim.read_claim(tmp_path / "saved") is None


async def test_the_claim_on_a_save_that_was_removed_is_settled(
    tmp_path: Path, domain: Domain
) -> None:
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    machine = await restored(tmp_path, tmp_path / "saved", domain)
    await machine.disarm_deadman()
    shutil.rmtree(tmp_path / "saved")
    await (await restored(tmp_path, tmp_path / "saved", domain)).release()
    assert not list((tmp_path / "state").iterdir())


async def test_what_is_gone_was_not_published(tmp_path: Path, domain: Domain) -> None:
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.close()
    shutil.rmtree(manifests.partial(tmp_path / "saved", domain))
    with pytest.raises((HypervisorError, InDoubt)):
        await incoming.run(paused=False)


@pytest.mark.parametrize("what", ["disarm_deadman", "abort"])
async def test_storage_that_hangs_is_given_up(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What was begun there comes first, once it answers: the claim is not taken after that."""
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    machine: Any = await restored(tmp_path, tmp_path / "saved", domain)
    answers, hung = threading.Event(), threading.Event()
    taken = claim.take

    def take(directory: Path, own: str) -> None:
        hung.set()
        answers.wait()
        taken(directory, own)

    monkeypatch.setattr(claim, "take", take)
    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 0.05)
    with pytest.raises(HypervisorError, match="does not answer") as told:
        await machine.disarm_deadman()
    assert hung.is_set()
    assert told.value.remedy
    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 3600.0)  # the next is not waited for so long
    with pytest.raises(HypervisorError, match="does not answer"):
        await getattr(machine, what)()
    answers.set()
    monkeypatch.undo()
    monkeypatch.setattr(storage, "_SOON", 10.0)  # on a busy machine, what hung ends later
    await machine.abort()
    assert claim.read_claim(tmp_path / "saved") is None


async def test_whether_it_was_published_on_storage_that_hangs_is_in_doubt(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is removed beside what may yet be done; once it answers, it was, and can be seen."""
    incoming, _ = await arrived(tmp_path, domain)
    renamed, answers = durable.rename, threading.Event()

    def rename(old: Path, new: Path) -> None:
        answers.wait()
        renamed(old, new)

    monkeypatch.setattr(durable, "rename", rename)
    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 0.05)
    with pytest.raises(InDoubt, match="does not answer") as told:
        await incoming.run(paused=False)
    assert told.value.remedy
    with pytest.raises(HypervisorError, match="does not answer"):
        await incoming.kill()
    assert manifests.partial(tmp_path / "saved", domain).is_dir()
    answers.set()
    monkeypatch.undo()
    monkeypatch.setattr(storage, "_SOON", 10.0)  # on a busy machine, what hung ends later
    assert await incoming.attach() is Guest.RUNNING


async def test_a_checkpoint_whose_rename_hangs_may_stand(
    tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not told to be gone, for it may be there once the storage answers."""
    incoming, _ = await arrived(tmp_path, domain, checkpoint=True)
    renamed, answers = durable.rename, threading.Event()

    def rename(old: Path, new: Path) -> None:
        answers.wait()
        renamed(old, new)

    monkeypatch.setattr(durable, "rename", rename)
    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 0.5)
    with pytest.raises(HypervisorError, match="whether the checkpoint stands is not known") as told:
        await incoming.publish()
    assert "entourage saved" in told.value.remedy
    answers.set()
    monkeypatch.undo()
    monkeypatch.setattr(storage, "_SOON", 10.0)  # on a busy machine, what hung ends later
    assert await incoming.attach() is Guest.RUNNING


async def test_one_thing_is_done_after_the_other(tmp_path: Path) -> None:
    """Also where several were asked for while one was done."""
    saves, gate, log = storage.Storage(tmp_path, "web1"), threading.Event(), list[str]()

    def work(name: str) -> None:
        log.append(f"begin {name}")
        gate.wait()
        log.append(f"end {name}")

    doing = [asyncio.create_task(saves.do(work, name)) for name in "123"]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*doing)
    assert [line.split()[0] for line in log] == ["begin", "end"] * 3


async def test_what_hangs_is_told_once(tmp_path: Path, domain: Domain) -> None:
    """What comes of the session's end would be told in the place of what came of going back."""
    incoming, _ = await arrived(tmp_path, domain)
    await incoming.run(paused=False)
    await incoming.finish_arrival()
    machine: Any = await restored(tmp_path, tmp_path / "saved", domain)
    machine._flow = SimpleNamespace(end=AsyncMock(side_effect=HypervisorError("it hangs")))
    with pytest.raises(HypervisorError, match="it hangs"):
        await machine.abort()
    await machine.close()
