"""A domain that is about to belong elsewhere does not start with its host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import attending, machine
from entourage.hypervisors.libvirt import autostart as module
from entourage.hypervisors.libvirt.autostart import Autostart
from entourage.hypervisors.libvirt.connection import LostError, RefusedError
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.job import Job
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.saving import LibvirtSaving

DOMAIN = Domain(name="web1", uuid="5b6e6d0e-0000-4000-8000-000000000001", memory=1 << 28)


class Raw:
    """A fake of ``virDomain``.

    Args:
        file: That of what is noted; looked at whenever something is switched.
        on: Whether it starts with its host.
        fails: What libvirt raises.
    """

    def __init__(self, file: Path, *, on: bool = True, fails: Exception | None = None) -> None:
        self._file, self.on, self._fails = file, on, fails
        self.told: list[Any] = []
        self.persistent = True

    def autostart(self) -> int:
        return int(self.on)

    def isPersistent(self) -> bool:  # noqa: N802 - libvirt's
        return self.persistent

    def setAutostart(self, on: int) -> None:  # noqa: N802 - libvirt's
        if self._fails is not None:
            raise self._fails
        self.told.append((on, self._file.exists()))
        self.on = bool(on)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.autostart"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(module, "sync_definitions", lambda: told.append("synced"))
    return told


async def test_it_is_noted_then_off_and_on_again_by_another_process(
    file: Path, synced: list[str]
) -> None:
    raw = Raw(file)
    await Autostart(file).hold(raw)
    assert (raw.told, synced) == ([(0, True)], ["synced"])
    await Autostart(file).give_back(raw)
    assert raw.told == [(0, True), (1, True)]
    assert synced == ["synced"] * 2
    assert not file.exists()
    await Autostart(file).give_back(raw)
    assert len(raw.told) == 2


async def test_one_that_does_not_start_is_left_alone(file: Path, synced: list[str]) -> None:
    raw = Raw(file, on=False)
    await Autostart(file).hold(raw)
    await Autostart(file).give_back(raw)
    assert (raw.told, synced) == ([], [])


@pytest.mark.parametrize("how", ["undefined", "undefined meanwhile", "gone"])
async def test_one_without_definition_is_settled(file: Path, synced: list[str], how: str) -> None:
    raw = Raw(file)
    await Autostart(file).hold(raw)
    raw = Raw(file, fails=RefusedError("no domain", module.NO_DOMAIN))
    raw.persistent = how != "undefined"
    await Autostart(file).give_back(None if how == "gone" else raw)
    assert not raw.told
    assert not file.exists()
    assert synced


async def test_what_libvirt_refuses_is_noted_still(file: Path, synced: list[str]) -> None:
    await Autostart(file).hold(Raw(file))
    with pytest.raises(RefusedError):
        await Autostart(file).give_back(Raw(file, fails=RefusedError("read-only", 1)))
    assert file.exists()
    assert synced == ["synced"]


@pytest.mark.parametrize("transient", [False, True])
@pytest.mark.parametrize("lost", [False, True])
async def test_a_save_is_handed_over_after_that(
    file: Path, monkeypatch: pytest.MonkeyPatch, synced: list[str], *, lost: bool, transient: bool
) -> None:
    """A libvirtd that went away is asked once more."""
    raw, seen = Raw(file), list[bool]()
    gone = Raw(file, fails=LostError("gone"))

    async def disarmed(_self: LibvirtMachine) -> None:
        seen.append(raw.on)

    async def find_again(self: Handle) -> None:
        self.raw = raw

    monkeypatch.setattr(LibvirtMachine, "disarm_deadman", disarmed)
    monkeypatch.setattr(Handle, "find_again", find_again)
    connection: Any = SimpleNamespace(raw=None, uri="qemu:///system")
    first = gone if lost else raw
    handle = Handle(
        connection, first, DOMAIN, was_running=True, transient=transient, autostart=Autostart(file)
    )
    saving: Any = LibvirtSaving(handle, Path("/x.log"), "a")
    saving._job.feed = SimpleNamespace(known=Known())
    await saving.disarm_deadman()
    assert seen == [transient]
    assert len(synced) == (not transient)


@pytest.mark.parametrize("on", [False, True])
async def test_a_move_begins_after_that(
    file: Path, monkeypatch: pytest.MonkeyPatch, synced: list[str], *, on: bool
) -> None:
    """Libvirt changes nothing of a domain that has a job; the target's starts as this one did."""
    raw, seen = Raw(file, on=on), list[bool]()

    async def begin(_self: Job, handle: Handle, *_: object) -> tuple[str, bytes]:
        seen.append(handle.raw.on)
        return "<domain/>", b""

    async def withdraw(_: object) -> None:
        pass

    def checkpoints_of(_: object) -> tuple[()]:
        return ()

    monkeypatch.setattr(Job, "begin", begin)
    monkeypatch.setattr(attending, "withdraw", withdraw)
    monkeypatch.setattr(machine, "checkpoints_of", checkpoints_of)
    connection: Any = SimpleNamespace(raw=None, uri="qemu:///system")
    handle = Handle(
        connection, raw, DOMAIN, was_running=True, transient=False, autostart=Autostart(file)
    )
    plan = await LibvirtMachine(handle, Path("/x.log")).plan(DOMAIN)
    assert seen == [False]
    assert msgspec.msgpack.decode(plan, type=LibvirtPlan).autostart == on
    assert (len(synced), file.exists()) == (on, on)


def moving(raw: Any, file: Path) -> LibvirtMachine:
    connection: Any = SimpleNamespace(raw=None, uri="qemu:///system")
    handle = Handle(
        connection, raw, DOMAIN, was_running=True, transient=False, autostart=Autostart(file)
    )
    return LibvirtMachine(handle, Path("/x.log"))


@pytest.mark.parametrize("lost", [False, True])
async def test_one_that_stays_starts_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, synced: list[str], *, lost: bool
) -> None:
    """Another process gives it back as well; a libvirtd that went away is asked once more."""
    raw = Raw(file)
    await Autostart(file).hold(raw)
    assert synced
    again: list[Raw] = []
    gone = Raw(file, fails=LostError("gone"))

    async def find_again(self: Handle) -> None:
        again.append(raw)
        self.raw = raw

    monkeypatch.setattr(Handle, "find_again", find_again)
    await moving(gone if lost else raw, file).keep_definition()
    assert (raw.on, len(again), file.exists()) == (True, lost, False)


async def test_what_keeps_it_from_that_is_told(file: Path, synced: list[str]) -> None:
    await Autostart(file).hold(Raw(file))
    refusing = Raw(file, fails=RefusedError("read-only", 1))
    with pytest.raises(HypervisorError, match="web1 does not start with this host") as told:
        await moving(refusing, file).keep_definition()
    assert "virsh autostart web1" in told.value.remedy
    assert synced == ["synced"]


async def test_one_that_has_left_is_forgotten(
    file: Path, monkeypatch: pytest.MonkeyPatch, synced: list[str]
) -> None:
    raw = Raw(file)
    await Autostart(file).hold(raw)

    async def destroyed(_: Handle) -> None:
        pass

    monkeypatch.setattr(Handle, "destroy", destroyed)
    await moving(raw, file).release()
    assert (raw.on, file.exists(), synced) == (False, False, ["synced"])


async def test_an_older_note_is_not_believed(file: Path, synced: list[str]) -> None:
    """Its user has switched it off since."""
    file.write_text("{}")
    raw = Raw(file, on=False)
    assert not await Autostart(file).hold(raw)
    await Autostart(file).give_back(raw)
    assert (raw.on, synced) == (False, [])


async def test_a_libvirtd_that_went_away_once_it_had_done_it_is_believed(
    file: Path, synced: list[str]
) -> None:
    """The note is kept, for whoever has the domain come back."""
    raw, held = Raw(file), Autostart(file)
    switch = raw.setAutostart

    def away(on: int) -> None:
        switch(on)
        raise LostError("gone")

    raw.setAutostart = away  # type: ignore[method-assign] - a fake's
    with pytest.raises(LostError):
        await held.hold(raw)
    assert (raw.on, synced) == (False, [])
    assert await held.hold(raw)
    assert synced == ["synced"]
    raw.setAutostart = switch  # type: ignore[method-assign] - the same
    await held.give_back(raw)
    assert (raw.on, file.exists()) == (True, False)


async def test_a_disk_that_fails_is_told_as_such(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "sync_definitions", fail)
    with pytest.raises(HypervisorError, match="input/output error"):
        await Autostart(file).hold(Raw(file))
