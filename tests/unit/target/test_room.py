"""Whether a host takes one more domain: its cordons and its limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from entourage import cordon
from entourage.domain import Domain, Pci
from entourage.errors import Refused, UsageError
from entourage.handover.values import Record, Role
from entourage.hypervisors.values import DomainState
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.settings.model import AgentSettings, PathSettings, Settings
from entourage.target import room

GIB = 1 << 30
UUID = "a241103c-2c3e-4756-88b0-63e73f621ee2"
OTHER = "b241103c-2c3e-4756-88b0-63e73f621ee2"
THIRD = "c241103c-2c3e-4756-88b0-63e73f621ee2"


def settings(
    tmp_path: Path, *, domains_memory: int | None = None, arrivals: int | None = None
) -> Settings:
    paths = PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run"))
    return Settings(
        paths=paths, agent=AgentSettings(domains_memory=domains_memory, arrivals=arrivals)
    )


def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "state" / "journal.db")


def domain(uuid: str = UUID, memory: int = GIB) -> Domain:
    return Domain(name="web1", uuid=uuid, memory=memory)


def arrival(domain: Domain) -> Decision:
    """That of a domain which is on its way here."""
    return Decision(
        migration="m",
        role=Role.TARGET,
        domain=str(domain.uuid),
        name="app",
        generation=1,
        record=Record.OPEN,
        peer_host="a",
        peer_journal="j",
        details=TargetDetails(domain=domain),
    )


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> list[DomainState]:
    """The domains of this host: a stand-in for its hypervisors."""
    found: list[DomainState] = []

    async def all_domains(_: Settings) -> list[DomainState]:
        return found

    monkeypatch.setattr(room, "all_domains", all_domains)
    return found


def test_a_cordon_stays_until_it_is_lifted(tmp_path: Path) -> None:
    here = settings(tmp_path)
    cordon.put_up(here, "evacuate-1", "its memory is replaced")
    cordon.put_up(here, cordon.BY_HAND, "")
    cordon.put_up(here, cordon.BY_HAND, "said later")
    assert [(one.name, one.reason) for one in cordon.cordons(here)] == [
        ("by-hand", ""),
        ("evacuate-1", "its memory is replaced"),
    ]
    assert cordon.lift(here, "evacuate-1")
    assert not cordon.lift(here, "evacuate-1")
    assert [one.name for one in cordon.cordons(here)] == ["by-hand"]


def test_a_cordon_that_cannot_be_understood_counts(tmp_path: Path) -> None:
    here = settings(tmp_path)
    cordon.put_up(here, "x", "")
    (tmp_path / "state" / "cordons" / "x.json").write_text("{")
    (tmp_path / "state" / "cordons" / ".y.json.new").write_text("{}")
    assert [str(one) for one in cordon.cordons(here)] == ["x"]


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x" * 64])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name"):
        cordon.put_up(settings(tmp_path), name, "")


async def test_a_cordon_refuses_and_says_who_and_why(tmp_path: Path) -> None:
    here = settings(tmp_path)
    cordon.put_up(here, "evacuate-1", "its memory is replaced")
    with journal(tmp_path) as book:
        (found,) = await room.no_room(here, book, domain(), "b")
        with pytest.raises(Refused):
            async with room.admitted(here, book, domain(), "b"):
                raise AssertionError
    assert "domain on b: it takes no domains (cordon evacuate-1 since " in str(found)
    assert str(found).endswith(
        "its memory is replaced) (another host, or `entourage uncordon` there)"
    )


async def test_memory_of_what_runs_and_of_what_arrives_counts(
    tmp_path: Path, here: list[DomainState]
) -> None:
    limited = settings(tmp_path, domains_memory=3 * GIB)
    here += [
        DomainState(name="db", uuid=OTHER, state="running", memory=GIB),
        DomainState(name="off", uuid="x", state="shut off", memory=9 * GIB),
    ]
    coming = arrival(domain(THIRD))
    with journal(tmp_path) as book:
        book.begin(coming)
        assert await room.no_room(limited, book, domain(memory=2 * GIB), "b") == []
        with domain_lock(tmp_path / "run", THIRD, "it arrives"):
            assert await room.no_room(limited, book, domain(), "b") == []
            (found,) = await room.no_room(limited, book, domain(memory=2 * GIB), "b")
            # Of itself it is in nobody's way: TEST is done again when it is opened.
            assert await room.no_room(limited, book, domain(THIRD, 2 * GIB), "b") == []
    assert "2 GiB needed, 1 GiB of 3 GiB left" in str(found)
    unlimited = msgspec.structs.replace(limited, agent=AgentSettings())
    with journal(tmp_path) as book:
        assert await room.no_room(unlimited, book, domain(memory=99 * GIB), "b") == []


async def test_two_that_come_at_once_are_looked_at_one_after_the_other(tmp_path: Path) -> None:
    limited = settings(tmp_path, domains_memory=GIB)
    order: list[str] = []

    async def come(name: str, inside: asyncio.Event, leave: asyncio.Event) -> None:
        with journal(tmp_path) as book:
            async with room.admitted(limited, book, domain(), "b"):
                order.append(f"{name} in")
                inside.set()
                await leave.wait()
                order.append(f"{name} out")

    first_in, may_leave, second_in = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(come("first", first_in, may_leave))
        await first_in.wait()
        may_leave_too = asyncio.Event()
        may_leave_too.set()
        group.create_task(come("second", second_in, may_leave_too))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second_in.wait(), 0.1)
        may_leave.set()
    assert order == ["first in", "first out", "second in", "second out"]


def test_so_many_arrive_at_once(tmp_path: Path) -> None:
    limited = settings(tmp_path, arrivals=1)
    with (
        room.arrivals_slot(limited, "b"),
        pytest.raises(UsageError, match="1 domains arrive there already"),
        room.arrivals_slot(limited, "b"),
    ):
        raise AssertionError
    with room.arrivals_slot(limited, "b"):
        pass
    free = settings(tmp_path)
    with room.arrivals_slot(free, "b"), room.arrivals_slot(free, "b"):
        pass


async def test_a_device_that_is_promised_to_another_one_on_its_way(tmp_path: Path) -> None:
    """TEST of both found it free; the second to be opened is refused."""
    here = settings(tmp_path)

    def with_nic(uuid: str, plug: str | None) -> Domain:
        nic = Pci(id="nic", host="0000:01:00.0", plug=plug)
        return msgspec.structs.replace(domain(uuid), pci=(nic,))

    coming = arrival(with_nic(THIRD, "3b:00.0"))
    with journal(tmp_path) as book:
        book.begin(coming)
        with domain_lock(tmp_path / "run", THIRD, "it arrives"):
            with pytest.raises(Refused) as refused:
                async with room.admitted(here, book, with_nic(UUID, "0000:3b:00.0"), "b"):
                    raise AssertionError
            async with room.admitted(here, book, with_nic(UUID, "0000:3b:00.1"), "b"):
                pass
            async with room.admitted(here, book, with_nic(THIRD, "0000:3b:00.0"), "b"):
                pass
        async with room.admitted(here, book, with_nic(UUID, "0000:3b:00.0"), "b"):
            pass
    (found,) = refused.value.refusals
    assert str(found).startswith("pci/nic on b: 0000:3b:00.0 is promised to web1, which is on")
