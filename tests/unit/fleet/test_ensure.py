"""Make sure that a domain runs on its target, whatever its hosts say. They are stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from entourage.errors import EntourageError
from entourage.fleet import ensure as module
from entourage.fleet import whereabouts
from entourage.fleet.ensure import Ensure
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.remote import DomainThere, Ended, RoomThere, StandingThere
from entourage.fleet.values import Move

MOVE = Move(name="web1", uuid="u", source="a", target="b")
UNDER_WAY = StandingThere(
    domain="web1", uuid="u", role="source", record="armed", settled=False, doing="migrates web1"
)
IN_DOUBT = StandingThere(domain="web1", uuid="u", role="source", record="armed", settled=False)


class Hosts:
    """Three hosts that say what they are told to."""

    def __init__(self, on: str = "a") -> None:
        self.fleet = FleetFile(host=tuple(HostEntry(name=name) for name in "abc"))
        self.on = on
        self.standings: list[list[StandingThere]] = []
        self.ends: list[Callable[[], Ended]] = []
        self.did: list[str] = []
        self.asked: list[str] = []
        self.uuid = ""

    async def room(self, host: str) -> RoomThere:
        self.asked.append(f"room {host}")
        domains = [DomainThere(name="web1", uuid="u")] if host == self.on else []
        return RoomThere(host=host, memory=0, free=0, domains=domains)

    async def standing(self, host: str) -> list[StandingThere]:
        assert host == "a"
        self.asked.append(f"status {host}")
        return self.standings.pop(0) if self.standings else []

    async def migrate(
        self,
        name: str,
        source: str,
        target: str,
        options: Sequence[str],
        heard: Callable[[Mapping[str, Any]], None],
    ) -> Ended:
        self.did.append(f"migrate {name} {source} {target} {' '.join(options)}".strip())
        for _ in range(2 if self.uuid else 0):  # a host may say it again
            heard({"event": "migration-started", "uuid": self.uuid})
        return self.ends.pop(0)()

    async def abort(self, name: str, host: str) -> Ended:
        self.did.append(f"abort {name} {host}")
        return Ended(status=0, events={}, said="")

    async def recover(self, name: str, host: str) -> Ended:
        self.did.append(f"recover {name} {host}")
        return Ended(status=0, events={}, said="")


def ended(status: int, **finished: Any) -> Ended:
    return Ended(status=status, events=finished, said="ssh said this")


def ensure(hosts: Hosts) -> Ensure:
    return Ensure(hosts, ("--bandwidth=1",))  # type: ignore[arg-type]


def moves(hosts: Hosts) -> Callable[[], Ended]:
    def run() -> Ended:
        hosts.on = "b"
        return ended(0, outcome="moved", blackout=0.25)

    return run


async def test_it_moves() -> None:
    hosts = Hosts()
    hosts.ends = [moves(hosts)]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.blackout) == ("moved", 0.25)
    assert hosts.did == ["migrate web1 a b --bandwidth=1"]


async def test_what_has_moved_is_left_alone() -> None:
    hosts = Hosts(on="b")
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert hosts.did == []


async def test_what_is_under_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0)
    hosts = Hosts()
    hosts.standings = [[UNDER_WAY], [UNDER_WAY]]

    async def standing(host: str) -> list[StandingThere]:
        if not hosts.standings:
            hosts.on = "b"
            return []
        return hosts.standings.pop()

    hosts.standing = standing  # type: ignore[method-assign]
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert hosts.did == []


async def test_what_is_in_doubt_is_settled_first() -> None:
    hosts = Hosts()
    hosts.standings = [[IN_DOUBT]]
    hosts.ends = [moves(hosts)]
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert hosts.did == ["recover web1 a", "migrate web1 a b --bandwidth=1"]


async def test_what_cannot_be_settled_is_in_doubt() -> None:
    hosts = Hosts()
    hosts.standings = [[IN_DOUBT]] * 9
    result = await ensure(hosts)(MOVE)
    assert result.kind == "doubt"
    assert "`entourage status` on a and b" in result.remedy
    assert set(hosts.did) == {"recover web1 a"}


async def test_a_link_that_is_lost_says_nothing_of_the_move() -> None:
    """ssh has ended: the migration goes on, and both hosts are asked again."""
    hosts = Hosts()

    def lost() -> Ended:
        hosts.on = "b"
        return ended(255)

    hosts.ends = [lost]
    assert (await ensure(hosts)(MOVE)).kind == "moved"


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (ended(3, outcome="refused", message="no bridge"), "refused"),
        (ended(4, outcome="rolled-back", message="no bridge"), "back"),
        (ended(7, outcome="guest-ended", message="no bridge"), "off"),
        (ended(5, outcome="clean-up-incomplete", problems=["no bridge"]), "moved"),
        (Ended(status=2, events={}, said="no bridge"), "back"),
    ],
)
async def test_how_it_ended(end: Ended, kind: str) -> None:
    hosts = Hosts()
    hosts.ends = [lambda: end]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.message) == (kind, "no bridge")


async def test_refused_because_another_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0)
    hosts = Hosts()
    hosts.ends = [lambda: ended(3, outcome="refused", message="process 7 works on it")]
    hosts.standings = [[], [UNDER_WAY], [UNDER_WAY]]

    async def room(host: str) -> RoomThere:
        if not hosts.standings:
            hosts.on = "b"
        return await Hosts.room(hosts, host)

    hosts.room = room  # type: ignore[method-assign]
    assert (await ensure(hosts)(MOVE)).kind == "moved"


async def test_it_is_on_neither() -> None:
    assert (await ensure(Hosts(on="c"))(MOVE)).kind == "elsewhere"
    assert (await ensure(Hosts(on=""))(MOVE)).kind == "off"


async def test_a_source_that_is_gone_after_it_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may move, or have moved: that it runs where it did is not known."""
    monkeypatch.setattr(whereabouts, "LOOK_AGAIN", 0)
    hosts = Hosts()

    async def silent(host: str) -> list[StandingThere]:
        raise EntourageError("ssh does not reach it", host=host, remedy="look")

    def lost() -> Ended:
        hosts.standing = silent  # type: ignore[method-assign]
        return ended(255)

    hosts.ends = [lost]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.remedy) == ("doubt", "look; `entourage status` on a and b")
    assert result.message == "what became of it is not known: a: ssh does not reach it"


async def test_a_host_that_does_not_answer() -> None:
    hosts = Hosts()

    async def silent(host: str) -> RoomThere:
        raise EntourageError("ssh does not reach it", host=host, remedy="look")

    hosts.room = silent  # type: ignore[method-assign]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.remedy) == ("back", "look")
    assert result.message in {"a: ssh does not reach it", "b: ssh does not reach it"}


@pytest.mark.parametrize("outcome", ["failed", ""])
async def test_what_to_do_is_kept_beside_why(outcome: str) -> None:
    hosts = Hosts()
    hosts.ends = [lambda: ended(1, outcome=outcome, message="no room", remedy="make room")]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.message, result.remedy) == ("back", "no room", "make room")


QUESTIONS = ["status a", "room a", "room b"]


async def test_nothing_is_asked_where_nothing_was_ever_begun() -> None:
    """And where something may have been, both hosts are asked first."""
    hosts = Hosts()
    hosts.ends = [moves(hosts)]
    assert (await ensure(hosts)(MOVE, first=True)).kind == "moved"
    assert hosts.asked == []
    hosts = Hosts()
    hosts.ends = [moves(hosts)]
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert hosts.asked == QUESTIONS


@pytest.mark.parametrize(
    ("on", "kind"), [("b", "moved"), ("c", "elsewhere"), ("", "off"), ("a", "refused")]
)
async def test_at_first_it_is_asked_why_it_was_not_begun(on: str, kind: str) -> None:
    """Somebody has moved it since it was planned, or it has ended; or there is nothing to be seen.

    It is not begun twice.
    """
    hosts = Hosts(on=on)
    hosts.ends = [lambda: ended(3, outcome="refused", message="no bridge")]
    result = await ensure(hosts)(MOVE, first=True)
    assert result.kind == kind
    assert ("no bridge" in result.message) == (kind != "moved")
    assert hosts.asked[:3] == QUESTIONS
    assert len(hosts.did) == 1


async def test_what_test_refuses_at_first_is_asked_no_more_of() -> None:
    """It was there, and nobody else had it."""
    hosts = Hosts()
    hosts.uuid = "u"
    hosts.ends = [lambda: ended(3, outcome="refused", message="no bridge")]
    result = await ensure(hosts)(MOVE, first=True)
    assert (result.kind, result.message) == ("refused", "no bridge")
    assert hosts.asked == ["status a"]


@pytest.mark.parametrize("first", [True, False])
async def test_a_migration_that_was_killed_there_is_settled(*, first: bool) -> None:
    """It had started, and ended without a word: that it runs where it did is not known."""
    hosts = Hosts()
    hosts.uuid = "u"
    hosts.ends = [lambda: ended(137), moves(hosts)]
    hosts.standings = [[IN_DOUBT]] if first else [[], [IN_DOUBT]]
    assert (await ensure(hosts)(MOVE, first=first)).kind == "moved"
    moved = "migrate web1 a b --bandwidth=1"
    assert hosts.did == [moved, "recover web1 a", moved]


@pytest.mark.parametrize("standing", [UNDER_WAY, IN_DOUBT])
async def test_at_first_what_others_have_begun_is_seen_to(
    monkeypatch: pytest.MonkeyPatch, standing: StandingThere
) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0)
    hosts = Hosts()
    hosts.ends = [lambda: ended(1, outcome="failed", message="another works on it"), moves(hosts)]
    hosts.standings = [[standing]]
    assert (await ensure(hosts)(MOVE, first=True)).kind == "moved"
    between = [] if standing.doing else ["recover web1 a"]
    moved = "migrate web1 a b --bandwidth=1"
    assert hosts.did == [moved, *between, moved]


@pytest.mark.parametrize(("said", "kind"), [("", "back"), ("u", "doubt")])
async def test_at_first_a_source_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, said: str, kind: str
) -> None:
    """What has said nothing is tried again, and asked then; what had begun may have moved."""
    monkeypatch.setattr(whereabouts, "LOOK_AGAIN", 0)
    hosts = Hosts()
    hosts.uuid = said

    async def silent(host: str) -> list[StandingThere]:
        raise EntourageError("ssh does not reach it", host=host)

    hosts.standing = silent  # type: ignore[method-assign]
    hosts.ends = [lambda: ended(255)]
    result = await ensure(hosts)(MOVE, first=True)
    assert (result.kind, "ssh does not reach it" in result.message) == (kind, True)


@pytest.mark.parametrize("first", [True, False])
async def test_another_domain_of_its_name_is_told_to_stay(*, first: bool) -> None:
    """It was made after the plan; that of the plan has ended meanwhile."""
    hosts = Hosts(on="" if first else "a")
    hosts.uuid = "v"
    hosts.ends = [lambda: ended(4, outcome="rolled-back", message="given up")]
    result = await ensure(hosts)(MOVE, first=first)
    assert hosts.did == ["migrate web1 a b --bandwidth=1", "abort web1 a"]
    assert result.kind == ("off" if first else "back")
    assert "another domain is called web1 on a now, v, and was not to move" in result.message


async def test_the_same_uuid_in_capitals_is_no_other_domain() -> None:
    hosts = Hosts()
    hosts.uuid = "U"
    hosts.ends = [moves(hosts)]
    assert (await ensure(hosts)(MOVE, first=True)).kind == "moved"
    assert len(hosts.did) == 1
