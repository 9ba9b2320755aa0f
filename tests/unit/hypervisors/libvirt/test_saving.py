"""A libvirt domain that is saved: what speaks against it, what libvirt is told, and what stays."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock
from xml.etree import ElementTree as ET

import msgspec
import pytest

from entourage.domain import Block, Domain, Tpm
from entourage.errors import HypervisorError
from entourage.hypervisors.base import DataPlane, Ticket
from entourage.hypervisors.libvirt import attending, autostart, looks, saving
from entourage.hypervisors.libvirt import handle as handles
from entourage.hypervisors.libvirt.connection import RefusedError
from entourage.hypervisors.libvirt.constants import NO_DOMAIN, State
from entourage.hypervisors.libvirt.domainxml import parse, read_domain
from entourage.hypervisors.libvirt.events import Feed, Known
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from entourage.hypervisors.libvirt.save_source import out_of_sight
from entourage.hypervisors.libvirt.saving import LibvirtSaving, snapshot_xml
from entourage.hypervisors.seams import DiskCopy
from entourage.hypervisors.values import LocalData, SavePlan
from entourage.steps import Refusal
from tests.unit.hypervisors.libvirt.fakes import Failed, FakeDomain, handle_of, use_fakes

UUID = "5b6e6d0e-0000-4000-8000-000000000001"
VDA = (
    "<disk type='file'><source file='/d/a.qcow2'/><target dev='vda'/></disk>"
    "<disk type='file' device='cdrom'><target dev='sda'/></disk>"
)
RBD = "<disk type='network'><source protocol='rbd' name='p/x'/><target dev='vdb'/></disk>"
CHECKPOINT = "<domaincheckpoint><name>c1</name><disks/></domaincheckpoint>"
DOMAIN = Domain(
    name="web1",
    uuid=UUID,
    memory=1 << 28,
    block=(Block(id="vda", path="/d/a.qcow2", format="qcow2"),),
    tpm=(Tpm(id="tpm0"),),
)
LOCAL = LocalData(socket="/run/entourage/x.sock", generation=1, paused=False)
PLANE = DataPlane(address="", ports=(1, 2), secret=None, host="/backup/web1", local=LOCAL)


def xml(devices: str) -> str:
    return f"<domain><name>web1</name><devices>{devices}</devices></domain>"


def live_xml(devices: str) -> str:
    """Of a whole domain."""
    return (
        f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid>"
        "<memory unit='b'>268435456</memory>"
        f"<os><type machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"
    )


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, "survey", "lookups", "checkpoints")
    monkeypatch.setattr("os.geteuid", lambda: 0)

    async def nothing(_handle: Any, _doing: str) -> tuple[Refusal, ...]:
        return ()

    monkeypatch.setattr(looks, "asked", nothing)


def machine(raw: FakeDomain, *, transient: bool = False) -> LibvirtSaving:
    handle = handle_of(raw, DOMAIN, transient=transient)
    handle.was_running = True
    handle.connection.uri = "qemu:///system"
    return LibvirtSaving(handle, Path("/x.log"), "a")


async def reasons(raw: FakeDomain) -> str:
    return "; ".join(one.reason for one in await machine(raw).blockers())


async def test_what_can_be_saved_is_not_refused() -> None:
    assert await reasons(FakeDomain(xml(VDA), xml(VDA), snapshots=["before"])) == ""


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (FakeDomain(xml(VDA + RBD)), "disk vdb changes"),
        (FakeDomain(xml(VDA), state=State.SUSPENDED), "sleeps"),
        (FakeDomain(xml(VDA), job={"type": 2, "operation": 9}), "a backup is under way"),
        (
            FakeDomain(xml(VDA), checkpoints=[CHECKPOINT]),
            "checkpoints of it (c1)",
        ),
    ],
)
async def test_what_cannot_be_is_told(raw: FakeDomain, says: str) -> None:
    assert says in await reasons(raw)


async def test_memory_is_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "only root may read" in await reasons(FakeDomain(xml(VDA)))


async def test_libvirts_own_objections_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not of a domain with snapshots, which libvirt does not move, and saves."""
    asked: list[str] = []

    async def ask(_handle: Any, doing: str) -> tuple[Refusal, ...]:
        asked.append(doing)
        return (Refusal("domain", "a", "it has a hostdev"),)

    monkeypatch.setattr(looks, "asked", ask)
    assert await reasons(FakeDomain(xml(VDA))) == "it has a hostdev"
    assert await reasons(FakeDomain(xml(VDA), snapshots=["before"])) == ""
    assert asked == ["save"]


def test_a_snapshot_of_no_disk() -> None:
    root = ET.fromstring(snapshot_xml("/x/memory", parse(xml(VDA))))  # noqa: S314 - our own
    memory = root.find("memory")
    assert memory is not None
    assert memory.attrib == {"snapshot": "external", "file": "/x/memory"}
    told = [(disk.get("name"), disk.get("snapshot")) for disk in root.iterfind("disks/disk")]
    assert told == [("vda", "no"), ("sda", "no")]


def test_an_empty_drive_is_no_disk_out_of_sight() -> None:
    assert list(out_of_sight(parse(xml(VDA)), DOMAIN)) == []


async def test_the_save_knows_who_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    withdrawn = AsyncMock()  # of what attends plain virsh; tests/e2e/attend has it
    monkeypatch.setattr(attending, "withdraw", withdrawn)
    plan = msgspec.msgpack.decode(await machine(FakeDomain()).plan(DOMAIN), type=SavePlan)
    assert plan.hypervisor == "qemu:///system"
    withdrawn.assert_awaited_once()


def test_a_machine_that_moves_is_saved_by_this_one() -> None:
    moving = LibvirtMachine(handle_of(FakeDomain(), DOMAIN), Path("/x.log"))
    assert isinstance(moving.saving, LibvirtSaving)
    assert moving.saving.saving is None


def test_the_tpms_state_stays_where_a_definition_does() -> None:
    assert machine(FakeDomain()).tpm.stays
    assert not machine(FakeDomain(), transient=True).tpm.stays


@pytest.mark.parametrize(
    ("uri", "cookie"),
    [
        ("tcp:10.0.0.2:49152", b""),
        (f"unix:{LOCAL.socket}", b"/etc/passwd"),
    ],
)
async def test_memory_goes_nowhere_else(uri: str, cookie: bytes) -> None:
    saved: Any = machine(FakeDomain())
    saved._plane = PLANE
    with pytest.raises(HypervisorError, match="memory is to"):
        await saved.start(Ticket(uri=uri, cookie=cookie), live=False)


@pytest.mark.parametrize(
    ("says", "remedy"),
    [
        ("no room", "see whether there is room"),
        ("Can't migrate the vm that was paused due to previous migration", "virsh suspend web1"),
    ],
)
async def test_what_libvirt_says_of_a_file_is_told(says: str, remedy: str) -> None:
    saved: Any = machine(FakeDomain())
    saved._plane = PLANE
    saved._writing = asyncio.get_running_loop().create_future()
    saved._writing.set_exception(RefusedError(f"libvirt: operation failed: {says}", 1))
    with pytest.raises(HypervisorError, match="cannot save it: ") as told:
        await saved.landed()
    assert says in told.value.message
    assert remedy in told.value.remedy


@pytest.mark.parametrize(
    ("state", "heard", "ran"),
    [
        (State.RUNNING, (), True),
        (State.PAUSED, ("stopped_at", "resumed_at"), True),
        (State.PAUSED, ("stopped_at", "resumed_at", "stopped_at"), True),  # paused again
        (State.PAUSED, ("stopped_at",), False),
    ],
)
async def test_a_guest_that_has_run_since_is_not_saved(
    state: State, heard: tuple[str, ...], *, ran: bool
) -> None:
    """Its memory would be of another moment than its disks."""
    saved: Any = machine(FakeDomain(state=state))

    async def now() -> State:
        return state

    saved._handle.state = now
    feed: Any = Feed(cast("Any", None), UUID, one_clock=True)
    saved._job.feed = feed
    for moment, what in enumerate(heard, start=1):
        feed._take(what, moment, keep=False)
    saved._stopped_at = 1
    with (
        pytest.raises(HypervisorError, match="somebody has let the guest run on")
        if ran
        else contextlib.nullcontext()
    ):
        await saved.check_still()


async def test_a_resume_before_it_was_suspended_is_nobodys() -> None:
    """It may be heard of later; one that comes after it still counts."""
    feed: Any = Feed(cast("Any", None), UUID, one_clock=True)
    feed.known.forget_moments()
    feed._take("resumed_at", feed.known.forgotten_at - 1, keep=False)
    assert feed.known.first_resumed_at == 0
    for later in (5, 7):
        feed._take("resumed_at", feed.known.forgotten_at + later, keep=False)
    assert feed.known.first_resumed_at == feed.known.forgotten_at + 5


async def test_a_paused_guest_that_is_resumed_is_not_saved() -> None:
    """Nobody suspends it; its devices would go through their steps while it runs."""
    saved: Any = machine(FakeDomain())
    saved._job.feed = SimpleNamespace(known=Known(resumed_at=1, first_resumed_at=1))
    saved._handle.was_running = False
    saved._handle.state = AsyncMock(return_value=State.RUNNING)
    with pytest.raises(HypervisorError, match="let the guest run on"):
        await saved.stop_guest()
    saved._handle.state = AsyncMock(return_value=State.PAUSED)
    await saved.stop_guest()
    await saved.check_still()


@pytest.mark.parametrize(
    ("devices", "changed"),
    [
        (VDA, ""),
        (VDA.replace("a.qcow2", "b.qcow2"), "block/vda"),
        (VDA + VDA.replace("vda", "vdb"), "block/vdb"),
        ("", "block/vda"),
    ],
)
async def test_devices_that_were_changed_meanwhile_are_not_saved(
    devices: str, changed: str
) -> None:
    """Nothing of them is in the save, which could not be restored."""
    raw = FakeDomain(live_xml(VDA))
    handle = handle_of(raw, read_domain(live_xml(VDA)))
    saved = LibvirtSaving(handle, Path("/x.log"), "a")
    with (
        pytest.raises(HypervisorError, match=f"were changed while it was saved: {changed} ")
        if changed
        else contextlib.nullcontext()
    ):
        await saved.check_devices(live_xml(devices))


@pytest.mark.parametrize(("until", "ran"), [(3, False), (4, True)])
async def test_who_lets_it_run_once_all_is_saved_does_no_harm(until: int, *, ran: bool) -> None:
    saved: Any = machine(FakeDomain(state=State.PAUSED))
    saved._job.feed = SimpleNamespace(known=Known(stopped_at=2, resumed_at=3, first_resumed_at=3))
    with pytest.raises(HypervisorError) if ran else contextlib.nullcontext():
        await saved.check_stood_still(until)


async def test_no_memory_is_written_while_disks_are_copied() -> None:
    """libvirt makes no snapshot then; their copies end between both."""
    told: list[str] = []
    raw: Any = FakeDomain(xml(VDA))

    def write(text: str, _flags: int) -> None:
        told.append(text)

    raw.snapshotCreateXML = write
    saved: Any = machine(raw)
    saved._plane = PLANE
    saved._job.feed = SimpleNamespace(known=Known())
    saved._handle.suspend = AsyncMock()
    file = f"/backup/web1.{UUID}.partial/memory"
    await saved.start(Ticket(uri=f"unix:{LOCAL.socket}", cookie=file.encode()), live=False)
    saved._handle.suspend.assert_awaited_once()
    assert told == []
    await saved.continue_switchover()
    await saved._writing
    assert file in told[0]


async def test_a_disk_that_is_encrypted_is_not_copied() -> None:
    """QEMU has the key: what it would write is not encrypted."""
    locked = "<source file='/d/a.qcow2'><encryption format='luks'/></source>"
    for source, many in (("<source file='/d/a.qcow2'/>", 0), (locked, 1)):
        found = machine(FakeDomain(xml(f"<disk type='file'>{source}<target dev='vda'/></disk>")))
        await found.blockers()
        assert len(found.mirroring.objections(DOMAIN.block[0])) == many


def test_no_disk_goes_along_with_memory() -> None:
    assert machine(FakeDomain()).carrying is None
    assert DiskCopy.MIRROR in machine(FakeDomain()).mirroring.ways


@pytest.mark.parametrize("undefined", [False, True])
async def test_the_definition_stays(
    monkeypatch: pytest.MonkeyPatch,
    undefined: bool,  # noqa: FBT001 - a case's
) -> None:
    """It is ended, and libvirt is told not to start it by itself, but not to forget it.

    Of one that its user has undefined meanwhile, nothing is left to be told.
    """
    told: list[str] = []

    class Raw:
        def destroy(self) -> None:
            told.append("destroy")

        def state(self, _flags: int) -> tuple[int, int]:
            return (State.SHUT_OFF if told else State.PAUSED), 0

        def autostart(self) -> int:
            if undefined:
                raise Failed("no domain", code=NO_DOMAIN)
            return 1

        def setAutostart(self, on: int) -> None:  # noqa: N802 - libvirt's
            told.append(f"autostart {on}")

        def undefineFlags(self, _flags: int) -> None:  # noqa: N802 - libvirt's
            raise AssertionError

    async def ended(_name: str, _uuid: str) -> None:
        told.append("looked")

    monkeypatch.setattr(handles, "check_ended", ended)
    monkeypatch.setattr(autostart, "sync_definitions", lambda: None)
    connection: Any = SimpleNamespace(raw=None)
    handle = Handle(connection, Raw(), DOMAIN, was_running=True, transient=False)
    await LibvirtSaving(handle, Path("/x.log"), "a").release()
    assert told == ["destroy", "looked", *([] if undefined else ["autostart 0"])]


async def test_a_snapshot_is_asked_to_end_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first word may come before it has begun."""
    asked: list[int] = []
    writing: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def abort() -> None:
        asked.append(1)
        if len(asked) == 1:
            raise Failed("no job is active")
        loop.call_soon_threadsafe(writing.set_result, None)

    monkeypatch.setattr(saving, "_AGAIN", 0.001)
    saved: Any = LibvirtSaving(
        handle_of(SimpleNamespace(abortJob=abort), DOMAIN), Path("/x.log"), "a"
    )
    saved._writing = writing
    await saved._end_writing()
    assert asked == [1, 1]
