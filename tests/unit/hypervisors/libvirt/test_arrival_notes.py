"""What libvirt does not carry: made so on arrival, by whichever process finishes it."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import DataPlane, Plan
from entourage.hypervisors.libvirt import arrival as module
from entourage.hypervisors.libvirt import checks
from entourage.hypervisors.libvirt.arrival_notes import Notes, arrival_notes
from entourage.hypervisors.libvirt.checkpoints import (
    Checkpoint,
    checkpoint_xml,
    checkpoints_of,
    read_checkpoint,
    redefine,
)
from entourage.hypervisors.libvirt.connection import LostError
from entourage.hypervisors.libvirt.constants import NO_DOMAIN, NO_SUPPORT, Parameter, State
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.incoming import LibvirtIncoming
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from tests.unit.hypervisors.libvirt.fakes import Failed, FakeDomain, use_fakes

DOMAIN = Domain(name="web1", uuid="5b6e6d0e-0000-4000-8000-000000000001", memory=1 << 28)
XML = f"<domain><name>{DOMAIN.name}</name><uuid>{DOMAIN.uuid}</uuid></domain>"
PLAN = Plan(msgspec.msgpack.encode(LibvirtPlan(parameters={Parameter.DEST_XML: XML})))
TEXT = """
<domaincheckpoint>
  <name>second</name>
  <parent><name>first</name></parent>
  <creationTime>1525889631</creationTime>
  <disks><disk name='vda' checkpoint='bitmap' bitmap='second'/><disk name='sda' checkpoint='no'/>
  </disks>
</domaincheckpoint>
"""


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, "checkpoints")


def test_notes_outlive_their_process(tmp_path: Path) -> None:
    path = tmp_path / "state" / "x.arrival"
    notes = Notes(autostart=True, checkpoints=(read_checkpoint(TEXT),), replaced="<domain/>")
    arrival_notes(path).write(notes)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # a definition may have a password in it
    assert arrival_notes(path).read() == notes
    arrival_notes(path).remove()
    assert arrival_notes(path).read() is None


def test_notes_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.arrival"
    path.write_text("{")
    with pytest.raises(HypervisorError, match=r"x\.arrival cannot be read"):
        arrival_notes(path).read()


def test_a_checkpoint_is_the_same_there() -> None:
    made = parse(checkpoint_xml(read_checkpoint(TEXT), "<domain><name>web1</name></domain>"))
    assert made.findtext("domain/name") == "web1"
    made.remove(made.find("domain") or made)
    assert read_checkpoint(checkpoint_xml(read_checkpoint(TEXT), "<domain/>")) == read_checkpoint(
        TEXT
    )
    assert [disk.get("bitmap") for disk in made.iterfind("disks/disk")] == ["second", None]


@pytest.mark.parametrize("name", ["../up", "a/b", ".x", ""])
def test_a_name_that_is_a_path_is_none(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name}, Checkpoint)


def test_checkpoints_are_known_there_once_each() -> None:
    raw = FakeDomain(checkpoints=[TEXT])
    found = [read_checkpoint(TEXT), Checkpoint(name="unknown"), Checkpoint(name="third")]
    problems = redefine(raw, found)
    assert ["unknown" in text or "third" in text for text, _ in raw.told] == [True, True]
    assert {flags for _, flags in raw.told} == {1}
    assert len(problems) == 1
    assert "unknown is not known here" in problems[0]


class Connected(LibvirtIncoming):
    """One whose libvirtd is a fake."""

    def __init__(self, notes: Path, connection: Any) -> None:
        super().__init__("qemu:///system", DOMAIN, notes)
        self._feed: Any = SimpleNamespace()  # nothing is heard
        self._fake = connection

    async def _connected(self) -> Any:
        return self._fake


class FakeConnection:
    """A libvirtd that has this domain, or none."""

    def __init__(self, domain: FakeDomain | None) -> None:
        self._domain = domain
        self.raw = SimpleNamespace(listAllStoragePools=self._pools, defineXML=self._define)
        self.defined: list[str] = []
        self.back = FakeDomain()

    @staticmethod
    def _pools(_flags: int) -> list[Any]:
        return []

    def _define(self, text: str) -> FakeDomain:
        if "refused" in text:
            raise Failed
        self.defined.append(text)
        return self.back

    async def domain(self, _uuid: str) -> FakeDomain | None:
        return self._domain

    async def named(self, _name: str) -> FakeDomain | None:
        return self._domain

    async def alive(self) -> bool:
        return True


async def test_another_process_finishes_the_arrival(tmp_path: Path) -> None:
    path, raw = tmp_path / "x.arrival", FakeDomain()
    arrival_notes(path).write(Notes(autostart=True, checkpoints=(read_checkpoint(TEXT),)))
    await Connected(path, FakeConnection(raw)).finish_arrival()
    assert ("autostart", 1) in raw.told
    assert len(raw.told) == 2
    assert not path.exists()


async def test_a_transient_one_has_no_definition_there_after_a_crash_either(tmp_path: Path) -> None:
    path, raw = tmp_path / "x.arrival", FakeDomain()
    arrival_notes(path).write(Notes(transient=True))
    await Connected(path, FakeConnection(raw)).finish_arrival()
    assert raw.told == [("undefine", 1 << 3 | 1 << 6)]  # NVRAM and the TPM's state stay


async def test_a_definition_that_was_there_comes_back(tmp_path: Path) -> None:
    path, connection = tmp_path / "x.arrival", FakeConnection(None)
    arrival_notes(path).write(Notes(replaced="<domain>old</domain>", replaced_autostart=True))
    await Connected(path, connection).kill()
    assert connection.defined == ["<domain>old</domain>"]
    assert connection.back.told == [("autostart", 1)]
    assert not path.exists()


async def test_one_that_was_never_set_aside_is_left(tmp_path: Path) -> None:
    """The migration was given up before anything was made: what is off there is the user's."""
    raw = FakeDomain(state=State.SHUT_OFF)
    await Connected(tmp_path / "x.arrival", FakeConnection(raw)).kill()
    assert raw.told == []


OLD = "<domain>old</domain>"


def off(**given: Any) -> FakeDomain:
    """A definition that is here already."""
    return FakeDomain(kept=OLD, state=State.SHUT_OFF, **given)


async def test_it_is_written_down_before_it_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "x.arrival", list[Notes | None]()

    async def set_aside(_raw: Any) -> None:
        seen.append(arrival_notes(path).read())

    monkeypatch.setattr(module, "set_aside", set_aside)
    await module.make_way(off(), LibvirtPlan(), arrival_notes(path))
    assert [(notes.replaced, notes.replaced_autostart) for notes in seen if notes] == [(OLD, True)]


async def test_one_that_was_started_since_test_is_neither_set_aside_nor_ended(
    tmp_path: Path,
) -> None:
    raw = FakeDomain(kept=OLD, state=State.RUNNING)
    path = tmp_path / "x.arrival"
    incoming = Connected(path, FakeConnection(raw))
    with pytest.raises(HypervisorError, match="web1 here by now, running"):
        await incoming.build(DOMAIN, DataPlane(address="", ports=(1, 2), secret=None), PLAN)
    await incoming.kill()
    assert raw.told == []
    assert not path.exists()


async def test_one_that_libvirt_does_not_set_aside_is_left_with_all_that_it_has(
    tmp_path: Path,
) -> None:
    """It has a snapshot since TEST, say: what ends a machine would forget that."""
    raw = off(refuses=True)
    connection = FakeConnection(raw)
    incoming = Connected(tmp_path / "x.arrival", connection)
    with pytest.raises(HypervisorError):
        await incoming.build(DOMAIN, DataPlane(address="", ports=(1, 2), secret=None), PLAN)
    raw.told.clear()
    await incoming.kill()
    assert raw.told == []


async def test_after_a_crash_one_that_is_here_still_is_left(tmp_path: Path) -> None:
    """Killed right before it was set aside, or right after it was put back."""
    path, raw = tmp_path / "x.arrival", off()
    arrival_notes(path).write(Notes(replaced=OLD))
    await Connected(path, FakeConnection(raw)).kill()
    assert raw.told == []
    assert not path.exists()


async def test_one_that_libvirtd_ends_meanwhile_is_gone(tmp_path: Path) -> None:
    raw = FakeDomain(refuses=True)
    raw.state = raw.isPersistent = fails(NO_DOMAIN)
    connection = FakeConnection(raw)
    shown = iter([raw])

    async def domain(_uuid: str) -> FakeDomain | None:
        return next(shown, None)

    connection.domain = domain
    path = tmp_path / "x.arrival"
    arrival_notes(path).write(Notes())
    await Connected(path, connection).kill()
    assert not path.exists()


async def test_what_finish_has_left_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "x.arrival"
    raw = FakeDomain(kept="<domain>new</domain>", state=State.SHUT_OFF)
    arrival_notes(path).write(Notes(replaced=OLD))
    with pytest.raises(HypervisorError, match="does not end web1"):  # the fake does not
        await Connected(path, FakeConnection(raw)).kill()
    assert [what for what, _ in raw.told] == ["undefine"]
    assert arrival_notes(path).read() == Notes(replaced=OLD)


async def test_the_next_arrival_does_not_lose_what_could_not_be_put_back(tmp_path: Path) -> None:
    path = tmp_path / "x.arrival"
    arrival_notes(path).write(Notes(replaced=OLD, replaced_autostart=True))
    await module.make_way(None, LibvirtPlan(autostart=True), arrival_notes(path))
    assert arrival_notes(path).read() == Notes(
        autostart=True, replaced=OLD, replaced_autostart=True
    )


async def test_what_libvirt_does_not_take_back_is_kept_and_told(tmp_path: Path) -> None:
    path, connection = tmp_path / "x.arrival", FakeConnection(None)
    arrival_notes(path).write(Notes(replaced="<domain>refused</domain>"))
    with pytest.raises(HypervisorError, match="take back the definition of web1") as caught:
        await Connected(path, connection).kill()
    assert str(path) in caught.value.remedy
    assert path.exists()


async def test_its_definition_is_on_the_disk_before_the_notes_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "x.arrival", list[bool]()
    arrival_notes(path).write(Notes(replaced=OLD))
    monkeypatch.setattr(module, "sync_definitions", lambda: seen.append(path.exists()))
    await Connected(path, FakeConnection(None)).kill()
    assert seen == [True]


async def test_what_was_replaced_is_never_put_back_by_a_later_arrival(tmp_path: Path) -> None:
    """Also where libvirtd goes away right after the guest was let run."""
    path, raw = tmp_path / "x.arrival", FakeDomain()
    raw.setAutostart = fails(6)  # the connection is closed
    arrival_notes(path).write(Notes(autostart=True, replaced=OLD))
    with pytest.raises(LostError):
        await Connected(path, FakeConnection(raw)).finish_arrival()
    assert arrival_notes(path).read() == Notes(autostart=True)


async def test_a_transient_one_that_keeps_its_definition_is_told(tmp_path: Path) -> None:
    path, raw = tmp_path / "x.arrival", FakeDomain(refuses=True)
    arrival_notes(path).write(Notes(transient=True))
    with pytest.raises(HypervisorError, match="web1 keeps a definition here"):
        await Connected(path, FakeConnection(raw)).finish_arrival()


def test_notes_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.arrival"
    path.mkdir()
    with pytest.raises(HypervisorError, match=r"x\.arrival cannot be written"):
        arrival_notes(path).write(Notes())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_only_a_libvirt_that_knows_no_checkpoints_has_none() -> None:
    raw = FakeDomain()
    raw.listAllCheckpoints = fails(NO_SUPPORT)
    assert checkpoints_of(raw) == ()
    raw.listAllCheckpoints = fails(1)
    with pytest.raises(Failed):
        checkpoints_of(raw)
    [problem] = redefine(raw, [read_checkpoint(TEXT)])
    assert "not known here" in problem


def fails(code: int) -> Any:
    """Stand for a call that libvirt refuses so."""

    def call(*_flags: int) -> Any:
        raise Failed("no", code)

    return call


@pytest.mark.parametrize(
    ("raw", "warns", "reason"),
    [
        (FakeDomain(state=State.SHUT_OFF), True, "is replaced"),
        (FakeDomain(state=State.RUNNING), False, "here already, running"),
        (FakeDomain(state=State.SHUT_OFF, snapshots=["s"]), False, "keeps a saved state"),
    ],
)
async def test_its_own_definition_that_is_off_is_in_nobodys_way(
    raw: FakeDomain, reason: str, *, warns: bool
) -> None:
    connection: Any = FakeConnection(raw)
    [found] = await checks.taken(connection, DOMAIN, "b")
    assert found.only_warns is warns
    assert reason in found.reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (FakeDomain(state=State.SHUT_OFF, snapshots=["s"]), ""),  # it stays as it is
        (FakeDomain(state=State.SHUT_OFF, managed=True), "virsh start` would go on from"),
        (FakeDomain(state=State.RUNNING), "here already, running"),
    ],
)
async def test_a_restore_leaves_it_as_it_is(raw: FakeDomain, reason: str) -> None:
    connection: Any = FakeConnection(raw)
    found = await checks.taken(connection, DOMAIN, "b", restores=True)
    assert [one.only_warns for one in found] == [False] * bool(reason)
    assert reason in "".join(one.reason for one in found)
