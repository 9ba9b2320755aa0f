"""The target's half: what it does when its hands fail."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.devices.base import AnyController, There
from entourage.devices.notice import Notice, NoticeController
from entourage.domain import Domain
from entourage.errors import EntourageError, HypervisorError, JournalError
from entourage.handover.rules import Target
from entourage.handover.values import (
    Flush,
    Guest,
    Heard,
    Input,
    Message,
    MessageKind,
    Record,
    Role,
)
from entourage.hosts.allowed import Allowed
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.seams import NoGuest
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.settings.model import AgentSettings, PathSettings, Settings
from entourage.target import reattach
from entourage.target.reattach import reattach_target
from entourage.target.role import TargetSide
from tests.unit.eventually import eventually

OPEN = Decision(
    migration="m-1",
    role=Role.TARGET,
    domain="5b6e6d0e-0000-4000-8000-000000000001",
    name="web1",
    generation=1,
    record=Record.OPEN,
    peer_host="a",
    peer_journal="S",
)


@dataclass
class Disk:
    """An incoming machine on a host whose disk may be full."""

    full: bool = True
    is_save: bool = False
    did: list[str] = field(default_factory=list[str])
    agentless: None = None
    after_kill = ""

    async def run(self, *, paused: bool) -> int:
        self.did.append("run")
        return int(paused)

    async def persist_definition(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.did.append("own")

    async def finish_arrival(self) -> None:
        self.did.append("settle in")


def side_of(
    journal: Journal,
    incoming: Any,
    told: list[EntourageError],
    said: list[Message],
    state: Target | None = None,
    *,
    controllers: Sequence[AnyController] = (),
) -> TargetSide:
    """A target's side that has nothing but this machine."""
    there = There(
        migration="m-1",
        host="b",
        domain=Domain(name="web1", memory=1 << 28),
        incoming=incoming,
        ledger=MemoryLedger(),
        settings=Settings(),
        run_dir="",
        state_dir="",
        allowed=Allowed(AgentSettings()),
    )
    return TargetSide(
        journal=journal,
        decision=OPEN,
        state=state or Target(migration="m-1"),
        there=there,
        controllers=controllers,
        send=said.append,
        on_failure=told.append,
        on_resumed=lambda _: None,
    )


def test_a_domain_that_cannot_be_written_down_is_told_and_not_said_to_have_run(
    tmp_path: Path,
) -> None:
    incoming: Any = Disk()
    told: list[EntourageError] = []
    said: list[Message] = []

    async def go(journal: Journal) -> None:
        side = side_of(journal, incoming, told, said)
        await side.take(Input.BEGIN)
        await side.take(Input.MEMORY_LANDED)
        with pytest.raises(OSError, match="No space left"):
            await side.take(Heard(Message(MessageKind.GO, "m-1")))
        assert journal.record("m-1", Role.TARGET) is Record.GO
        await side.take(Heard(Message(MessageKind.ASK, "m-1")))
        assert Message(MessageKind.RAN, "m-1") not in said
        assert isinstance(told[-1], HypervisorError)
        assert "no space left on device" in told[-1].message
        assert "entourage recover web1" in told[-1].remedy

    with Journal.open(tmp_path / "journal.db") as journal:
        asyncio.run(go(journal))
    assert incoming.did == ["run"]


def test_what_shows_that_the_guest_has_run_goes_once_that_is_written_down(tmp_path: Path) -> None:
    class Watched(Disk):
        async def finish_arrival(self) -> None:
            self.did.append(f"settle in, {record()}")

    incoming: Any = Watched(full=False)

    async def go(journal: Journal) -> None:
        side = side_of(journal, incoming, [], [])
        await side.take(Input.BEGIN)
        await side.take(Input.MEMORY_LANDED)
        await side.take(Heard(Message(MessageKind.GO, "m-1")))
        await side.take(Heard(Message(MessageKind.GONE, "m-1")))

    with Journal.open(tmp_path / "journal.db") as journal:

        def record() -> str:
            return str(journal.record("m-1", Role.TARGET))

        asyncio.run(go(journal))
    assert incoming.did == ["run", "own", f"settle in, {Record.RAN}"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_program_in_the_guest_does_not_hold_up_what_both_hosts_write_down(
    tmp_path: Path, *, fails: bool
) -> None:
    """And what becomes of it is told nevertheless, before the target is idle."""
    goes_on, told, said = asyncio.Event(), list[EntourageError](), list[Message]()

    class Sleeping(NoGuest):
        async def run(self, program: str, words: Sequence[str]) -> None:
            await goes_on.wait()
            if fails:
                raise HypervisorError(f"{program} {words[0]}: no")

    class Guest(Disk):
        guest_agent = Sleeping()

    async def go(journal: Journal) -> None:
        notice = NoticeController(Notice(id="app", program="/etc/moved"))
        side = side_of(journal, Guest(full=False), told, said, controllers=[notice])
        await side.take(Input.BEGIN)
        await side.take(Input.MEMORY_LANDED)
        going = asyncio.create_task(side.take(Heard(Message(MessageKind.GO, "m-1"))))
        await eventually(lambda: Message(MessageKind.RAN, "m-1") in said)
        assert journal.record("m-1", Role.TARGET) is Record.RAN
        assert not going.done()
        goes_on.set()
        await going
        assert [error.device for error in told] == (["notice/app"] if fails else [])

    with Journal.open(tmp_path / "journal.db") as journal:
        asyncio.run(go(journal))


@pytest.mark.parametrize("record", [Record.GO, Record.RAN])
def test_a_guest_is_told_also_where_its_agent_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    """And where it came from, which the journal knows; once RAN is written it has been."""
    told: list[str] = []

    class Told(NoGuest):
        async def run(self, program: str, words: Sequence[str]) -> None:
            told.append(" ".join((program, *words)))

    class Running(Disk):
        guest_agent = Told()

        async def attach(self) -> Guest:
            return Guest.RUNNING

    def incoming(_domain: Domain, _ledger: Any) -> Running:
        return Running(full=False)

    def hypervisor(_settings: Settings, _name: str) -> Any:
        return SimpleNamespace(incoming=incoming)

    domain = Domain(
        name="web1", memory=1 << 28, added={"notice": ({"id": "app", "program": "/etc/moved"},)}
    )
    decision = dataclasses.replace(OPEN, details=TargetDetails(domain=domain))
    monkeypatch.setattr(reattach, "open_hypervisor", hypervisor)

    async def go(journal: Journal) -> None:
        settings = Settings(paths=PathSettings(run=str(tmp_path)))
        async with reattach_target(journal, settings, "m-1", send=lambda _: None) as side:
            assert side.record is Record.RAN

    with Journal.open(tmp_path / "journal.db") as journal:
        journal.flush(decision, Flush(None, Record.OPEN))
        journal.advance("m-1", Role.TARGET, expected={Record.OPEN}, new=Record.GO)
        if record is Record.RAN:
            journal.advance("m-1", Role.TARGET, expected={Record.GO}, new=Record.RAN)
        asyncio.run(go(journal))
    assert told == (["/etc/moved after a"] if record is Record.GO else [])


@pytest.mark.parametrize("guest", [Guest.STOPPED, Guest.RUNNING, Guest.DEAD])
def test_what_an_agent_left_of_an_arrival_is_settled_by_the_next_one(
    tmp_path: Path, guest: Guest
) -> None:
    """Its user may have paused the guest, or it may be off: it is this host's all the same."""
    incoming: Any = Disk(full=False)
    state = Target(migration="m-1", record=Record.RAN, guest=guest)

    async def go(journal: Journal) -> None:
        await side_of(journal, incoming, [], [], state=state).take(Input.RESTARTED)

    with Journal.open(tmp_path / "journal.db") as journal:
        asyncio.run(go(journal))
    assert incoming.did == ["settle in"]


def test_a_row_that_cannot_be_marked_keeps_no_other_from_being_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Disk):
        agentless = None

        async def kill(self) -> None:
            self.did.append("kill")

    files = [tmp_path / "one", tmp_path / "two"]
    incoming: Any = Killed()

    async def go(journal: Journal) -> None:
        side = side_of(journal, incoming, [], [])
        await side.take(Input.BEGIN)
        for path in files:
            journal.ledger_add("m-1", Role.TARGET, "scratch", {"path": str(path)})
            path.touch()
        assert side.left == ()
        marked: list[int] = []

        def cannot(row: int) -> None:
            marked.append(row)
            raise JournalError("disk I/O error")

        with monkeypatch.context() as broken:
            broken.setattr(journal, "ledger_undone", cannot)
            await side.take(Input.ABORT)
        assert len(marked) == 2
        assert len(side.left) == len(files)
        assert all("disk I/O error" in problem for problem in side.left)
        decision = journal.decision("m-1", Role.TARGET)
        assert decision is not None
        assert not decision.settled  # `recover` marks them

    with Journal.open(tmp_path / "journal.db") as journal:
        asyncio.run(go(journal))
    assert not any(path.exists() for path in files)


def test_what_nobody_can_remove_is_told_once_and_holds_nobody_up(tmp_path: Path) -> None:
    class Left(Disk):
        after_kill = "/srv/x is left"

        async def kill(self) -> None:
            self.did.append("kill")

    incoming: Any = Left()

    async def go(journal: Journal) -> None:
        side = side_of(journal, incoming, [], [])
        await side.take(Input.BEGIN)
        await side.take(Input.ABORT)
        assert (side.problems, side.notes, side.left) == (
            [],
            ["/srv/x is left"],
            ("/srv/x is left",),
        )
        decision = journal.decision("m-1", Role.TARGET)
        assert decision is not None
        assert decision.settled

    with Journal.open(tmp_path / "journal.db") as journal:
        asyncio.run(go(journal))


def test_nothing_is_told_as_left_of_what_another_agent_has_cleaned(tmp_path: Path) -> None:
    """Nor of a migration that was never heard of here."""

    async def go(journal: Journal) -> None:
        incoming: Any = Disk()
        side = side_of(journal, incoming, [], [])
        await side.take(Heard(Message(MessageKind.ASK, "m-1")))
        assert side.record is Record.NEVER
        assert side.left == ()
        known = Target(migration="m-1", record=Record.NEVER, clean=True)
        assert side_of(journal, incoming, [], [], known).left == ()

    with Journal.open(tmp_path / "journal.db") as journal:
        asyncio.run(go(journal))


def test_an_undoing_that_was_broken_off_is_told_as_left(tmp_path: Path) -> None:
    class Broken(Disk):
        agentless = None

        async def kill(self) -> None:
            raise KeyError("x")

    incoming: Any = Broken()

    async def go(journal: Journal) -> None:
        side = side_of(journal, incoming, [], [])
        await side.take(Input.BEGIN)
        with pytest.raises(KeyError):
            await side.take(Input.ABORT)
        await side.take(Input.ABORT)  # by the source, which asks what is left
        assert side.left == (
            "not all that was made for it is undone: `entourage recover web1` there",
        )

    with Journal.open(tmp_path / "journal.db") as journal:
        asyncio.run(go(journal))
