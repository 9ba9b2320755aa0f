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
from entourage.hypervisors.libvirt import arrival as module
from entourage.hypervisors.libvirt import checks
from entourage.hypervisors.libvirt.arrival_notes import Notes, NotesFile
from entourage.hypervisors.libvirt.checkpoints import (
    Checkpoint,
    checkpoint_xml,
    read_checkpoint,
    redefine,
)
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.incoming import LibvirtIncoming
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from tests.unit.hypervisors.libvirt.fakes import FakeDomain, use_fakes

DOMAIN = Domain(name="web1", uuid="5b6e6d0e-0000-4000-8000-000000000001", memory=1 << 28)
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
    use_fakes(monkeypatch, "checkpoints", "arrival")


def test_notes_outlive_their_process(tmp_path: Path) -> None:
    path = tmp_path / "state" / "x.arrival"
    notes = Notes(autostart=True, checkpoints=(read_checkpoint(TEXT),), replaced="<domain/>")
    NotesFile(path).write(notes)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # a definition may have a password in it
    assert NotesFile(path).read() == notes
    NotesFile(path).remove()
    assert NotesFile(path).read() is None


def test_notes_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.arrival"
    path.write_text("{")
    with pytest.raises(HypervisorError, match=r"x\.arrival cannot be read"):
        NotesFile(path).read()


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
    NotesFile(path).write(Notes(autostart=True, checkpoints=(read_checkpoint(TEXT),)))
    await Connected(path, FakeConnection(raw)).finish_arrival()
    assert ("autostart", 1) in raw.told
    assert len(raw.told) == 2
    assert not path.exists()


async def test_a_transient_one_has_no_definition_there_after_a_crash_either(tmp_path: Path) -> None:
    path, raw = tmp_path / "x.arrival", FakeDomain()
    NotesFile(path).write(Notes(transient=True))
    await Connected(path, FakeConnection(raw)).finish_arrival()
    assert raw.told == ["undefine"]


async def test_a_definition_that_was_there_comes_back(tmp_path: Path) -> None:
    path, connection = tmp_path / "x.arrival", FakeConnection(None)
    NotesFile(path).write(Notes(replaced="<domain>old</domain>", replaced_autostart=True))
    await Connected(path, connection).kill()
    assert connection.defined == ["<domain>old</domain>"]
    assert connection.back.told == [("autostart", 1)]
    assert not path.exists()


async def test_one_that_was_never_set_aside_is_left(tmp_path: Path) -> None:
    """The migration was given up before anything was made: what is off there is the user's."""
    raw = FakeDomain(state=State.SHUT_OFF)
    await Connected(tmp_path / "x.arrival", FakeConnection(raw)).kill()
    assert raw.told == []


async def test_it_is_set_aside_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.arrival"
    raw = FakeDomain(kept="<domain>old</domain>", state=State.SHUT_OFF)
    seen: list[Notes | None] = []

    async def set_aside(_raw: Any) -> None:
        seen.append(NotesFile(path).read())

    monkeypatch.setattr(module, "set_aside", set_aside)
    monkeypatch.setattr(raw, "autostart", lambda: 1, raising=False)
    await module.make_way(raw, LibvirtPlan(), NotesFile(path))
    assert [(notes.replaced, notes.replaced_autostart) for notes in seen if notes] == [
        ("<domain>old</domain>", True)
    ]


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
