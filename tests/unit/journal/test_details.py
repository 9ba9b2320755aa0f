"""What an older Entourage wrote down is read, and gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage import recovery
from entourage.domain import Domain
from entourage.errors import LinkLost
from entourage.handover.values import Guest, Record, Role
from entourage.hypervisors.seams import IncomingSeams, MachineSeams
from entourage.journal import details as details_module
from entourage.journal.details import SourceDetails, TargetDetails, decode, encode
from entourage.journal.journal import Journal
from entourage.journal.lock import domain_lock
from entourage.settings.model import PathSettings, Settings, SshSettings
from entourage.source import ask
from entourage.source import reattach as source_reattach
from entourage.steps import Step
from entourage.target import reattach as target_reattach

OLD = Path(__file__).with_name("data") / "journal-1.sql"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    paths = {name: str(tmp_path / name) for name in ("state", "run", "log")}
    Path(paths["state"]).mkdir()
    journal = Path(paths["state"], "journal.db")
    with contextlib.closing(sqlite3.connect(journal)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(OLD.read_text())
    return Settings(paths=PathSettings(**paths))


@pytest.fixture
def journal(settings: Settings) -> Any:
    with Journal.open(Path(settings.paths.state, "journal.db")) as opened:
        yield opened


def test_a_source_of_the_first_version_is_brought_forward(journal: Journal) -> None:
    decision = journal.decision("m-leaves", Role.SOURCE)
    assert decision is not None
    details = decision.of_source
    assert details.version == details_module.VERSION
    assert isinstance(details.domain, Domain)
    assert (details.domain.name, details.domain.block[0].path) == ("web1", "/srv/web1.qcow2")
    assert (details.hypervisor, details.hypervisor_there) == ("qemu", "qemu")
    assert details.ssh == SshSettings(options=("Port=2222",))
    assert details.step is Step.PREPARE
    assert details.memos["block/disk0"] == {"path": "/srv/web1.qcow2", "id": "123:456"}
    assert not details.peer_is_fenced
    far = journal.decision("m-far", Role.SOURCE)
    assert far is not None
    assert far.of_source.hypervisor_there == "afar qemu+tls://b/system"
    assert (far.of_source.tool, far.of_source.peer_is_fenced) == ("/bin/move", True)


def test_a_target_of_the_first_version_is_brought_forward(journal: Journal) -> None:
    decision = journal.decision("m-comes", Role.TARGET)
    assert decision is not None
    assert decision.of_target.domain is not None
    assert (decision.of_target.domain.name, decision.hypervisor) == ("xen1", "xen")
    unheard = journal.decision("m-unheard", Role.TARGET)
    assert unheard is not None
    assert unheard.of_target == TargetDetails()


def test_status_shows_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_settings: Settings) -> list[Any]:
        return []

    monkeypatch.setattr(recovery, "all_domains", nobody)
    shown = {one.migration: one.record for one in asyncio.run(recovery.status(settings))}
    # The last was fenced, and its target has not been told yet that the domain came back.
    assert shown == {"m-leaves": "armed", "m-comes": "open", "m-unheard": "never", "m-far": "back"}


@pytest.mark.parametrize(
    ("migration", "doing", "meaning"),
    [
        ("m-leaves", "migrates web1 to b: copying memory, 41 %", "it is moving to b"),
        ("m-leaves", "recovers a departure", "a migration to b was begun; whether b was told to"),
        ("m-comes", "a migrates xen1 to this host", "it arrives from "),
    ],
)
def test_what_is_under_way_is_not_said_to_be_in_doubt(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, migration: str, doing: str, meaning: str
) -> None:
    async def nobody(_settings: Settings) -> list[Any]:
        return []

    monkeypatch.setattr(recovery, "all_domains", nobody)
    [uuid] = [
        one.uuid for one in asyncio.run(recovery.status(settings)) if one.migration == migration
    ]
    with domain_lock(Path(settings.paths.run), uuid, doing):
        standings = asyncio.run(recovery.status(settings))
    [shown] = [one for one in standings if one.migration == migration]
    assert shown.meaning.startswith(meaning)
    assert shown.doing.startswith(doing)
    assert dt.datetime.fromisoformat(shown.began) <= dt.datetime.fromisoformat(shown.changed)


class Machine(MachineSeams):
    """A fake: what is left of the domain here, whose guest stands still."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.did: list[str] = []

    async def reattach(self, *, was_running: bool) -> Guest:
        self.did.append(f"reattach {self.domain.name} {was_running}")
        return Guest.STOPPED

    async def close(self) -> None:
        self.did.append("close")


class Incoming(IncomingSeams):
    """A fake: what was being built, and never ran."""

    def __init__(self) -> None:
        self.did: list[str] = []

    async def attach(self) -> Guest:
        return Guest.STOPPED

    async def kill(self) -> None:
        self.did.append("kill")


def test_recover_goes_on_with_them(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    machines: list[Machine] = []
    incoming, opened = Incoming(), list[str]()

    class Hypervisor:
        """A fake."""

        async def reattach_machine(self, domain: Domain) -> Machine:
            machines.append(Machine(domain))
            return machines[-1]

        def incoming(self, _domain: Domain, _ledger: Any) -> Incoming:
            return incoming

    def open_hypervisor(_settings: Settings, name: str) -> Hypervisor:
        opened.append(name)
        return Hypervisor()

    def unreachable(host: str, _name: str, reached: Settings) -> Any:
        raise LinkLost(f"{host} by {reached.ssh.options}")

    monkeypatch.setattr(source_reattach, "open_hypervisor", open_hypervisor)
    monkeypatch.setattr(target_reattach, "open_hypervisor", open_hypervisor)
    monkeypatch.setattr(ask, "agent_link", unreachable)
    done = {one.migration: one for one in asyncio.run(recovery.recover(settings))}
    assert (done["m-leaves"].before, done["m-leaves"].after) == ("armed", "armed")
    assert "b by ('Port=2222',)" in done["m-leaves"].problems[0]
    assert machines[0].did == ["reattach web1 True", "close"]
    assert (done["m-comes"].before, done["m-comes"].after) == ("open", "never")
    assert done["m-comes"].settled
    assert incoming.did == ["kill"]
    assert sorted(opened) == ["qemu", "xen"]
    with Journal.open(Path(settings.paths.state, "journal.db")) as journal:
        assert journal.record("m-comes", Role.TARGET) is Record.NEVER


def test_what_is_written_is_read(tmp_path: Path) -> None:
    source = SourceDetails(
        domain=Domain(name="web1", memory=1 << 28), step=Step.SYNC, memos={"x": {"a": 1}}
    )
    assert decode(Role.SOURCE, encode(source)) == source
    assert msgspec.json.decode(encode(source))["version"] == details_module.VERSION
    assert decode(Role.TARGET, encode(None)) == TargetDetails()
