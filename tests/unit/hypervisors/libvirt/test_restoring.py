"""A libvirt domain that is restored: what another process makes of it, and what it never ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from entourage.domain import Block, Domain, Net
from entourage.errors import HypervisorError, InDoubt
from entourage.handover.values import Guest
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.base import DataPlane, Plan
from entourage.hypervisors.libvirt import restored_disks, tpm
from entourage.hypervisors.libvirt import restoring as module
from entourage.hypervisors.libvirt.connection import Connection, LostError
from entourage.hypervisors.libvirt.constants import Parameter, State
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.restoring import RestoringIncoming
from entourage.hypervisors.libvirt.restoring_notes import Restoring
from entourage.hypervisors.values import LocalData, RestorePlan
from tests.unit.hypervisors.libvirt.fakes import Failed

UUID = "5b6e6d0e-0000-4000-8000-000000000001"
MAC = "52:54:00:00:00:01"
NIC = Net(id="net0", bridge="br0", mac=MAC)
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 28, net=(NIC,))
XML = (
    f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid><memory unit='b'>268435456</memory>"
    "<os><type machine='q35'>hvm</type></os><devices><interface type='bridge'>"
    f"<mac address='{MAC}'/><source bridge='br0'/></interface></devices></domain>"
)


class Raw:
    """A fake of ``virDomain``, and of what libvirtd does with it."""

    def __init__(self, state: State, *, defined: bool = True, refuses: bool = False) -> None:
        self.now, self.defined, self.refuses = state, defined, refuses
        self.told: list[Any] = []
        self.loses = 0
        self.stats: dict[str, Any] = {"block.count": 1, "block.0.rd.reqs": 0, "block.0.wr.reqs": 0}
        self.reason = 2  # VIR_DOMAIN_PAUSED_MIGRATION, as libvirt has what it has restored

    def state(self, _flags: int) -> tuple[int, int]:
        return self.now, self.reason

    def domainListGetStats(  # noqa: N802 - libvirt's
        self, _domains: list[Raw], _stats: int, _flags: int
    ) -> list[tuple[Raw, dict[str, Any]]]:
        return [(self, self.stats)]

    def resume(self) -> None:
        self.told.append("resume")
        if self.loses:
            self.loses -= 1
            raise Failed("it went away", domain=7)
        if self.refuses:
            raise Failed("no lock")
        self.now = State.RUNNING

    def destroy(self) -> None:
        self.told.append("destroy")
        self.now = State.SHUT_OFF

    def isPersistent(self) -> bool:  # noqa: N802 - libvirt's
        return self.defined

    def isActive(self) -> bool:  # noqa: N802 - libvirt's
        return self.now == State.RUNNING

    def listAllDomains(self, _flags: int) -> list[Raw]:  # noqa: N802 - libvirt's
        return [self]

    def name(self) -> str:
        return "web1"

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's
        return UUID

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's
        return XML

    def defineXML(self, text: str) -> Raw:  # noqa: N802 - libvirt's
        self.told.append(text)
        return self

    def setAutostart(self, on: int) -> None:  # noqa: N802 - libvirt's
        self.told.append(on)


class Here(RestoringIncoming):
    """With a libvirtd that shows this domain, or none."""

    def __init__(self, file: Path, raw: Raw | None, *, asked: bool = False) -> None:
        super().__init__("qemu:///system", DOMAIN, file, MemoryLedger())
        self.raw = raw
        if asked:  # this process has asked libvirt to restore it
            self._restoring = asyncio.get_running_loop().create_future()
            self._restoring.set_result(None)

    async def _open(self, patience: float = 0) -> Connection:
        async def domain(_uuid: str) -> Raw | None:
            return self.raw

        async def alive() -> bool:
            return True

        connection: Any = SimpleNamespace(raw=self.raw, domain=domain, alive=alive)
        return connection


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(_name: str, _uuid: str) -> None:
        pass

    monkeypatch.setattr(module, "check_ended", ended)
    monkeypatch.setattr(module, "_BEGINS_WITHIN", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / f"{UUID}.restoring"


def note(file: Path, **said: Any) -> None:
    file.write_bytes(msgspec.json.encode(Restoring(begun=True, **said)))


def noted(file: Path) -> Restoring:
    return msgspec.json.decode(file.read_bytes(), type=Restoring)


@pytest.mark.parametrize(
    ("state", "resumed", "guest"),
    [
        (State.PAUSED, False, Guest.STOPPED),
        (State.PAUSED, True, Guest.STOPPED),
        (State.RUNNING, True, Guest.RUNNING),
        (State.SHUT_OFF, False, Guest.STOPPED),  # it certainly never ran
        (State.SHUT_OFF, True, Guest.DEAD),  # it may have
    ],
)
async def test_what_another_process_finds(
    file: Path, *, state: State, resumed: bool, guest: Guest
) -> None:
    note(file, resumed=resumed)
    assert await Here(file, Raw(state)).attach() is guest


async def test_that_it_may_run_is_noted_before_it_does(file: Path) -> None:
    note(file)
    raw = Raw(State.PAUSED)
    await Here(file, raw).run(paused=False)
    assert (raw.told, noted(file).resumed) == (["resume"], True)


async def test_one_that_was_paused_stays_so(file: Path) -> None:
    note(file)
    raw = Raw(State.PAUSED)
    await Here(file, raw).run(paused=True)
    assert (raw.told, noted(file).resumed) == ([], True)


async def test_a_resume_that_is_refused_is_taken_back(file: Path) -> None:
    note(file)
    with pytest.raises(HypervisorError, match="no lock"):
        await Here(file, Raw(State.PAUSED, refuses=True)).run(paused=False)
    assert not noted(file).resumed


async def test_what_is_gone_never_ran(file: Path) -> None:
    note(file)
    with pytest.raises(HypervisorError, match="never ran"):
        await Here(file, None).run(paused=False)
    assert not noted(file).resumed


async def test_a_libvirtd_that_comes_back_is_told_again(file: Path) -> None:
    note(file)
    raw = Raw(State.PAUSED)
    raw.loses = 1
    await Here(file, raw).run(paused=False)
    assert raw.told == ["resume", "resume"]
    raw.now, raw.loses = State.PAUSED, 2
    with pytest.raises(InDoubt):
        await Here(file, raw).run(paused=False)
    assert noted(file).resumed


async def test_only_what_nobody_let_run_is_ended(file: Path) -> None:
    note(file)
    raw = Raw(State.PAUSED)
    await Here(file, raw).kill()
    assert (raw.told, file.exists()) == (["destroy"], False)
    note(file)
    raw = Raw(State.RUNNING)
    with pytest.raises(HypervisorError, match="was not let run by its restore") as told:
        await Here(file, raw).kill()
    assert "virsh destroy web1" in told.value.remedy
    assert (raw.told, file.exists()) == ([], True)


@pytest.mark.parametrize(
    ("stats", "reason", "ends"),
    [
        ({"block.count": 1, "block.0.rd.reqs": 1, "block.0.wr.reqs": 0}, 1, False),
        ({"block.count": 1, "block.0.rd.reqs": 0, "block.0.wr.reqs": 1}, 2, False),
        ({"block.count": 1, "block.0.rd.reqs": 0, "block.0.wr.reqs": 0}, 1, True),
        ({"block.count": 0}, 1, True),  # it has no disk
        ({"block.count": 1}, 1, False),  # it has a job: who has paused it is not known
        ({"block.count": 1}, 2, True),  # that of its restore, which has not let it run
    ],
)
async def test_what_somebody_let_run_and_paused_again_is_not_ended(
    file: Path, stats: dict[str, Any], reason: int, *, ends: bool
) -> None:
    """What it did since would be lost. libvirt's reason for the pause alone does not tell."""
    note(file)
    raw = Raw(State.PAUSED)
    raw.stats, raw.reason = stats, reason
    if ends:
        await Here(file, raw).kill()
        assert (raw.told, file.exists()) == (["destroy"], False)
        return
    with pytest.raises(HypervisorError, match="run since it was restored") as told:
        await Here(file, raw).kill()
    assert "to give up what it has done" in told.value.remedy
    assert (raw.told, file.exists()) == ([], True)


@pytest.mark.parametrize(
    ("new", "resumed", "local", "asked", "defined", "stays"),
    [
        (True, False, True, True, True, False),
        (False, False, True, True, True, True),  # it was here before
        (True, True, True, True, True, True),  # it may have run
        (True, False, False, True, True, True),  # another host may have it by now
        # After a crash another process undoes it. Its user can have started what is defined here.
        (True, False, True, False, True, True),
        (True, False, True, False, False, False),
        (False, False, True, False, False, True),
        (True, True, True, False, False, True),
        (True, False, False, False, False, True),
    ],
)
async def test_a_tpm_that_was_made_for_it_is_removed(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    new: bool,
    resumed: bool,
    local: bool,
    asked: bool,
    defined: bool,
    stays: bool,
) -> None:
    """Of a domain that is defined here, libvirt leaves it; a next restore would be refused."""

    def is_local(_: Path) -> bool:
        return local

    monkeypatch.setattr(tpm, "STATES", tmp_path)
    monkeypatch.setattr(tpm, "is_on_local_storage", is_local)
    (tmp_path / UUID / "tpm2").mkdir(parents=True)
    note(file, tpm_is_new=new, resumed=resumed)
    incoming = Here(file, Raw(State.PAUSED, defined=defined), asked=asked)
    await incoming.kill()
    assert (tmp_path / UUID).exists() == stays
    assert not file.exists()
    is_named = new and not resumed and defined and not asked
    assert (f"rm -r {tmp_path / UUID}" in incoming.after_kill) == is_named


@pytest.mark.parametrize(
    ("resumed", "asked", "stays"),
    [
        (False, True, False),
        (True, True, True),  # it may have run
        (False, False, False),  # by another process, after a crash
        (True, False, True),
    ],
)
async def test_files_that_were_made_for_another_machine_are_removed(
    file: Path, tmp_path: Path, *, resumed: bool, asked: bool, stays: bool
) -> None:
    """libvirt leaves UEFI variables and logs; a next restore would be refused."""
    made = tmp_path / "web2_VARS.fd"
    made.touch()
    files = (str(made), str(tmp_path / "none"), str(tmp_path))
    note(file, new_files=files, resumed=resumed)
    incoming = Here(file, Raw(State.PAUSED), asked=asked)
    await incoming.kill()
    assert made.exists() == stays
    assert ("(rm " in incoming.after_kill) == (not resumed)  # a directory is none of its files


@pytest.mark.parametrize(
    ("state", "reason", "stays"),
    [
        (State.PAUSED, 2, False),
        (State.PAUSED, 1, True),  # its user has paused it: it ran
        (State.NONE, 0, True),
    ],
)
async def test_after_a_crash_only_what_never_ran_is_removed(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    state: State,
    reason: int,
    stays: bool,
) -> None:
    """Else somebody may have let its guest run, which has written to them."""
    monkeypatch.setattr(module, "_BEGINS_WITHIN", 0)
    made = tmp_path / "web2_VARS.fd"
    made.touch()
    note(file, new_files=(str(made),))
    raw = Raw(state)
    raw.reason = reason
    incoming = Here(file, raw, asked=False)
    await incoming.kill()
    assert made.exists() == stays
    assert ("may have let run" in incoming.after_kill) == stays
    assert not file.exists()


async def test_what_libvirt_was_not_asked_for_is_not_ended(file: Path) -> None:
    """Its user may have started the definition that is here."""
    raw = Raw(State.PAUSED)
    incoming = Here(file, raw)
    await incoming.offers()
    assert file.exists()
    await incoming.kill()
    assert (raw.told, file.exists()) == ([], False)


@pytest.mark.parametrize(("defined", "told"), [(True, [1]), (False, ["<kept/>", 1])])
async def test_a_definition_that_is_here_stays(
    file: Path,
    defined: bool,  # noqa: FBT001 - a parameter
    told: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "sync_definitions", lambda: None)
    note(file, definition="<kept/>", autostart=True)
    raw = Raw(State.RUNNING, defined=defined)
    await Here(file, raw).persist_definition()
    assert raw.told == told


@pytest.mark.parametrize(("state", "moved"), [(State.RUNNING, ["web1"]), (State.PAUSED, [])])
async def test_the_clock_of_a_guest_that_runs_is_moved_on_last(
    file: Path, monkeypatch: pytest.MonkeyPatch, state: State, moved: list[str]
) -> None:
    asked: list[str] = []

    async def refresh(*_: object) -> None:
        assert asked == []

    async def move_on(_raw: object, name: str) -> None:
        assert not file.exists()
        asked.append(name)

    monkeypatch.setattr(module.volumes, "refresh", refresh)
    monkeypatch.setattr(module.guestclock, "move_on", move_on)
    note(file, resumed=True)
    await Here(file, Raw(state)).finish_arrival()
    assert asked == moved


async def test_a_file_that_is_damaged_is_told_of(file: Path) -> None:
    file.write_bytes(b"{")
    with pytest.raises(HypervisorError, match="cannot be read"):
        await Here(file, None).kill()


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("", Known(migration="failed")),
        ("bad section", Known(migration="failed")),
        ("bad section", Known(ended="it crashed")),
    ],
)
async def test_why_what_was_sent_cannot_be_taken_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, said: str, known: Known
) -> None:
    """As QEMU says in its log, for libvirt says no more than that it failed."""

    async def until(check: Any) -> Any:
        return check(known)

    incoming: Any = Here(file, Raw(State.PAUSED))
    monkeypatch.setattr(incoming, "_last_said", lambda: said)
    incoming._feed = SimpleNamespace(until=until)
    incoming._local = LocalData(socket=str(file.parent / "m.sock"), generation=1, paused=False)
    took: list[Any] = []

    class Taking:
        def __init__(self, *given: Any) -> None:
            self.arrived, server = given[3:]
            server.close()

        async def take(self) -> None:
            took.append(self)
            await self.arrived()

    monkeypatch.setattr(module, "Reception", Taking)
    await incoming.listen()
    with pytest.raises(HypervisorError, match=f"has failed: {said or 'failed'}") as told:
        await incoming.landed()
    assert "see the log" in told.value.remedy
    assert took


async def test_one_that_cannot_be_left_paused_says_how_it_can_be_restored(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it is told on a move, nothing helps here."""

    async def refused(_raw: Any) -> None:
        raise HypervisorError("QEMU says no", remedy="let it run")

    monkeypatch.setattr(module, "take_images", refused)
    incoming: Any = Here(file, Raw(State.PAUSED))
    incoming._restoring = asyncio.get_running_loop().create_future()
    incoming._restoring.set_result(None)
    incoming._reception = SimpleNamespace()
    incoming._local = LocalData(socket="/run/x", generation=1, paused=True)
    with pytest.raises(HypervisorError, match="QEMU says no") as told:
        await incoming.landed()
    assert told.value.remedy == "restore it without --paused"


# What it is built of


def planned(xml: str = XML, *, copied: tuple[str, ...] = (), **more: Any) -> Plan:
    parameters: dict[str, str | int | list[str]] = {Parameter.DEST_XML: xml, **more}
    kept = msgspec.msgpack.encode(LibvirtPlan(parameters=parameters))
    plan = RestorePlan(file="/backup/web1/memory", kept=kept, copied=copied)
    return Plan(msgspec.msgpack.encode(plan))


DISKS = "".join(
    f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/d/{dev}'/>"
    f"<backingStore type='file'><format type='raw'/><source file='/d/base'/></backingStore>"
    f"<target dev='{dev}' bus='virtio'/></disk>"
    for dev in ("vda", "vdb")
)


async def test_a_disk_that_was_copied_is_one_image_elsewhere(file: Path) -> None:
    """One that stayed is built on what it was built on."""
    incoming: Any = Here(file, None)
    places = {"vda": "/new/vda.qcow2", "vdb": "/d/vdb"}
    blocks = tuple(Block(id=dev, path=path, format="qcow2") for dev, path in places.items())
    incoming._domain = msgspec.structs.replace(DOMAIN, block=blocks)
    xml = XML.replace("<devices>", f"<devices>{DISKS}")
    adapted = await incoming._adapted(planned(xml, copied=("vda",)))
    root = parse(str(adapted.parameters[Parameter.DEST_XML]))
    copied, stayed = root.iterfind("devices/disk")
    assert [source.attrib for source in copied.iter("source")] == [{"file": "/new/vda.qcow2"}]
    assert [source.get("file") for source in stayed.iter("source")] == ["/d/vdb", "/d/base"]


async def test_disks_are_on_the_disk_before_libvirt_opens_them(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their servers have ended: each would have its image locked."""
    told: list[str] = []

    class Server:
        def __init__(self, _ledger: Any, socket: str) -> None:
            told.append(socket)

        async def serve(self, path: Path, image_format: str, name: str) -> None:
            told.append(f"{path.name} {image_format} {name}")

        async def end(self) -> None:
            told.append("end")

    monkeypatch.setattr(restored_disks, "NbdServer", Server)

    def sync(_path: Path) -> None:
        told.append("sync")

    def restore(*_: object) -> None:
        told.append("restore")

    monkeypatch.setattr(restored_disks.durable, "sync_file", sync)
    incoming: Any = Here(file, None)
    incoming.raw = SimpleNamespace(restoreFlags=restore)
    image = tmp_path / "d"
    image.touch()
    disk = Block(id="vda", path=str(image), format="qcow2")
    with pytest.raises(HypervisorError, match="nothing is being restored"):
        await incoming.exports.export(disk)
    incoming.exports.stands(LocalData(socket="/run/x", generation=1, paused=False))
    export = await incoming.exports.export(disk)
    assert export.socket == "/run/x.disk.vda"
    incoming._plan = LibvirtPlan(parameters={Parameter.DEST_XML: XML})
    incoming._memory = "/backup/web1/memory"
    await incoming.listen()
    await incoming._restoring
    assert told == ["/run/x.disk.vda", "d qcow2 vda", "end", "sync", "restore"]


async def test_the_xml_has_the_bridge_that_was_named(file: Path) -> None:
    nic = msgspec.structs.replace(NIC, bridge="br7")
    incoming: Any = Here(file, None)
    incoming._domain = msgspec.structs.replace(DOMAIN, net=(nic,))
    adapted = await incoming._adapted(planned())
    assert 'bridge="br7"' in str(adapted.parameters[Parameter.DEST_XML])


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (planned(XML.replace("web1", "web2")), "is not that of web1"),
        (planned(XML, copied=(), **{Parameter.BANDWIDTH: "x"}), "a parameter that is not known"),
        (Plan(msgspec.msgpack.encode(RestorePlan(file="/x", kept=b"\xff"))), "cannot be read"),
        (Plan(b"\xff"), "cannot be read"),
    ],
)
async def test_what_is_not_this_domains_is_refused(file: Path, plan: Plan, says: str) -> None:
    with pytest.raises(HypervisorError, match=says):
        await Here(file, None).host_parts(plan)


async def test_it_comes_from_this_host_alone(file: Path) -> None:
    plane = DataPlane(address="10.0.0.2", ports=(1, 2), secret=None)
    with pytest.raises(HypervisorError, match="by a process of the host"):
        await Here(file, None).build(DOMAIN, plane, planned())
    assert not file.exists()


async def test_lost_is_lost(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A libvirtd that does not come back leaves it in doubt."""
    note(file)
    raw = Raw(State.PAUSED)
    raw.loses = 1
    incoming: Any = Here(file, raw)
    await incoming._connected()

    async def gone(_self: Here, _patience: float = 0) -> Connection:
        raise LostError("libvirtd has not come back")

    monkeypatch.setattr(Here, "_open", gone)
    with pytest.raises(InDoubt, match="has not come back"):
        await incoming.run(paused=False)


async def test_one_that_went_away_before_is_asked_again(file: Path) -> None:
    """Nobody has let the guest run by then."""
    note(file)
    raw = Raw(State.PAUSED)
    incoming: Any = Here(file, raw)
    connection = await incoming._connected()

    async def lost(_uuid: str) -> Raw:
        raise LostError("it went away")

    connection.domain = lost
    await incoming.run(paused=False)
    assert raw.told == ["resume"]


@pytest.mark.parametrize("raw", [None, Raw(State.PAUSED, refuses=True)])
async def test_what_another_process_may_have_let_run_is_in_doubt(
    file: Path, raw: Raw | None
) -> None:
    """Only a first attempt can prove that the guest never ran."""
    note(file, resumed=True)
    with pytest.raises(InDoubt):
        await Here(file, raw).run(paused=False)
    assert noted(file).resumed
