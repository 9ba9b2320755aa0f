"""What is off is left, and named; or leaves as well, where its user wants that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from entourage.cli import bulk
from entourage.cli.fleeting import off_of
from entourage.errors import UsageError
from entourage.fleet import survey as module
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.planner import plan
from entourage.fleet.remote import DomainThere, RoomThere
from entourage.fleet.survey import Meant, Survey


class Hosts:
    """a runs one domain and has two that are off; b is empty."""

    def __init__(self) -> None:
        self.fleet = FleetFile(host=tuple(HostEntry(name=name) for name in "ab"))
        self.tested: list[tuple[str, Sequence[str]]] = []

    async def room(self, host: str) -> RoomThere:
        if host == "b":
            return RoomThere(host="b", memory=8, free=8)
        return RoomThere(
            host="a",
            memory=8,
            free=0,
            domains=[DomainThere(name="web1", uuid="u1", memory=2)],
            off=["db1", "rests"],
            off_domains=[
                DomainThere(name="db1", uuid="u2", memory=4),
                DomainThere(name="rests", uuid="u3", memory=2),
            ],
        )

    async def test(
        self,
        names: Sequence[str],
        _source: str,
        _target: str,
        options: Sequence[str],
        _told: Callable[[], None],
    ) -> dict[str, list[tuple[str, str]]]:
        self.tested += [(name, options) for name in names]
        return {name: [] for name in names}


async def found(hosts: Hosts, meant: Meant) -> Survey:
    return await module.survey(hosts, ["a"], ["b"], meant)  # type: ignore[arg-type]


async def test_it_is_left_and_named() -> None:
    seen = await found(Hosts(), Meant())
    assert [one.name for one in seen.leaving] == ["web1"]
    assert seen.off == {"a": ["db1", "rests"]}


async def test_it_leaves_too_with_room_to_run_there() -> None:
    hosts = Hosts()
    seen = await found(hosts, Meant(off=True))
    assert {one.name: one.off for one in seen.leaving} == {
        "web1": False, "db1": True, "rests": True,
    }  # fmt: skip
    assert not seen.off
    await module.tests_of(hosts, seen, lambda _done, _of: None, ("--tls",))  # type: ignore[arg-type]
    assert dict(hosts.tested) == {
        "web1": ("--tls",), "db1": ("--offline",), "rests": ("--offline",),
    }  # fmt: skip
    made = plan(seen.hosts, seen.leaving)
    assert {move.name: move.off for move in made.moves} == {
        "web1": False, "db1": True, "rests": True,
    }  # fmt: skip
    short = plan([seen.hosts[0].__class__(name="b", memory=8, free=6)], seen.leaving)
    assert len(short.stays) == 1


async def test_some_of_them_by_name() -> None:
    seen = await found(Hosts(), Meant(patterns=("r*",), off=True))
    assert [one.name for one in seen.leaving] == ["rests"]
    assert seen.off == {"a": ["db1"]}


@pytest.mark.parametrize("names", ["ab", "ba"])
async def test_what_is_off_and_runs_elsewhere_stays_and_is_named(names: str) -> None:
    """The one that runs leaves as any other; no plan is stopped by the other one."""
    hosts = Hosts()

    async def room(host: str) -> RoomThere:
        one = DomainThere(name="web1", uuid="u1", memory=2)
        if host == "a":
            return RoomThere(host="a", memory=8, free=8, off=["web1"], off_domains=[one])
        return RoomThere(host=host, memory=8, free=8, domains=[one] if host == "b" else [])

    hosts.room = room  # type: ignore[method-assign]
    hosts.fleet = FleetFile(host=tuple(HostEntry(name=name) for name in "abc"))
    seen = await module.survey(hosts, [*names], ["c"], Meant(off=True))  # type: ignore[arg-type]
    assert [(one.host, one.off) for one in seen.leaving] == [("b", False)]
    assert seen.off == {"a": ["web1"]}
    (problem,) = seen.problems
    assert "is off on a, and runs on b" in problem


@pytest.mark.parametrize("names", ["ab", "ba"])
async def test_home_is_restored_from_where_it_runs(names: str) -> None:
    one = DomainThere(name="web1", uuid="u1", memory=2)
    hosts = Hosts()
    hosts.fleet = FleetFile(host=tuple(HostEntry(name=name) for name in names))

    async def room(host: str) -> RoomThere:
        domains, off = ([one], []) if host == "a" else ([], [one])
        return RoomThere(host=host, memory=8, free=8, domains=domains, off_domains=off)

    hosts.room = room  # type: ignore[method-assign]
    assert await bulk._found(hosts, ["u1"]) == {"u1": "a"}  # type: ignore[arg-type]


def test_what_can_be_chosen() -> None:
    assert off_of("move")
    assert not off_of("keep")
    with pytest.raises(UsageError, match="there is no such choice") as refused:
        off_of("save")
    assert "nothing is saved to empty a host" in refused.value.remedy
