"""Make sure that a domain that is off is its target's, whatever its hosts say. Stand-ins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from entourage.cli import offline
from entourage.cli.options import Typed
from entourage.errors import EntourageError, InDoubt, Refused, UsageError
from entourage.fleet import whereabouts
from entourage.fleet.ensure import Ensure
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.remote import DomainThere, Ended, RoomThere, StandingThere
from entourage.fleet.values import Move
from entourage.offline import source
from entourage.steps import Refusal

MOVE = Move(name="rests", uuid="u", source="a", target="b", off=True)
LOST = Ended(status=255, events={}, said="connection lost")


class Hosts:
    """Four hosts: who has the domain off, who runs it, and who has a claim of it."""

    def __init__(self, off: str = "a", *, runs: str = "", claims: str = "") -> None:
        self.fleet = FleetFile(host=tuple(HostEntry(name=name) for name in "abcd"))
        self.off, self.runs, self.uuid = off, runs, "u"
        self.claims, self.silent = claims, ""
        self.locked = False
        self.ends: list[Callable[[], Ended]] = []
        self.did: list[str] = []
        self.standings: list[StandingThere] = []

    async def room(self, host: str) -> RoomThere:
        if host == self.silent:
            raise EntourageError("ssh does not reach it", host=host)
        known = DomainThere(name="rests", uuid=self.uuid)
        return RoomThere(
            host=host,
            memory=0,
            free=0,
            domains=[known] if host == self.runs else [],
            off_domains=[known] if host == self.off else [],
            claimed=["u"] if host == self.claims else [],
        )

    async def standing(self, _host: str) -> list[StandingThere]:
        return self.standings

    async def migrate(
        self,
        name: str,
        source: str,
        target: str,
        options: Sequence[str],
        _heard: Callable[[Mapping[str, Any]], None],
    ) -> Ended:
        self.did.append(f"migrate {' '.join(options)} {name} {source} {target}")
        return self.ends.pop(0)()

    async def recover(self, name: str, host: str) -> Ended:
        self.did.append(f"recover {name} {host}")
        if self.locked:
            raise EntourageError("ssh does not reach it", host=host)
        self.standings = []
        return Ended(status=0, events={}, said="")

    def moves(self, end: Ended | None = None) -> Callable[[], Ended]:
        def run() -> Ended:
            self.off, self.claims = "b", ""
            return end or ended("moved")

        return run

    def forgets(self) -> Ended:
        """The source has let go, and the link is lost before the target has defined it."""
        self.off, self.claims = "", "b"
        return ended("failed", message="link lost")


def ended(outcome: str, **more: Any) -> Ended:
    status = {"moved": 0, "refused": 3}.get(outcome, 1)
    return Ended(status=status, events={"outcome": outcome, **more}, said="")


BUSY = Ended(status=3, events={"outcome": "failed", "message": "rests is busy"}, said="")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "LOOK_AGAIN", 0)


def ensure(hosts: Hosts) -> Ensure:
    return Ensure(hosts, ("--bandwidth=1",))  # type: ignore[arg-type]


async def test_it_moves_without_the_options_of_those_that_run() -> None:
    hosts = Hosts()
    hosts.ends = [hosts.moves()]
    assert (await ensure(hosts)(MOVE, first=True)).kind == "moved"
    assert hosts.did == ["migrate --offline rests a b"]


async def test_what_has_moved_is_left_alone() -> None:
    hosts = Hosts(off="b")
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    hosts = Hosts(off="", runs="b")  # and was started there
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert hosts.did == []


@pytest.mark.parametrize("has_moved", [True, False])
async def test_a_lost_connection_is_no_outcome(*, has_moved: bool) -> None:
    hosts = Hosts()
    hosts.ends = [hosts.moves(LOST)] if has_moved else [lambda: LOST, hosts.moves()]
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert len(hosts.did) == (1 if has_moved else 2)


async def test_what_the_source_has_let_go_is_gone_on_with() -> None:
    """Neither host has it: the same command has it defined on the target."""
    hosts = Hosts()
    hosts.ends = [hosts.forgets, hosts.moves()]
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert hosts.did == ["migrate --offline rests a b"] * 2


async def test_what_stays_unsettled_is_in_doubt_and_says_what_to_type() -> None:
    hosts = Hosts()
    hosts.ends = [hosts.forgets] * 4
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.remedy) == ("doubt", "`entourage migrate --offline rests b` on a")


async def test_what_neither_host_has_is_looked_for_in_the_fleet() -> None:
    """And no move of it is tried, unless its target has a claim that may be gone on with."""
    for claims in ("", "b"):
        result = await ensure(Hosts(off="", runs="c", claims=claims))(MOVE)
        assert (result.kind, result.message) == ("elsewhere", "it runs on c")
        result = await ensure(Hosts(off="d", claims=claims))(MOVE)
        assert (result.kind, result.message) == ("elsewhere", "it is on d, off")
    nobody = Hosts(off="")
    result = await ensure(nobody)(MOVE)
    assert (result.kind, result.remedy) == ("off", "`entourage list --all` on a")
    assert result.message == "a does not have it any more, nor has any host that answers"
    nobody.silent = "d"
    result = await ensure(nobody)(MOVE)
    assert (result.kind, result.message) == ("doubt", "it is on no host that answers; d does not")
    assert nobody.did == []


@pytest.mark.parametrize("silent", ["", "d"])
async def test_a_claim_of_a_move_that_another_controller_had_begun_is_gone_on_with(
    silent: str,
) -> None:
    hosts = Hosts(off="", claims="b")
    hosts.silent = silent
    hosts.ends = [hosts.moves()]
    assert (await ensure(hosts)(MOVE)).kind == "moved"


async def test_what_only_its_user_can_know_is_in_doubt_at_once(
    says: Callable[[EntourageError], Awaitable[Callable[[], Ended]]],
) -> None:
    hosts = Hosts(off="", claims="b")
    remedy = "`entourage migrate --offline --no-host-has-it rests b`"
    hosts.ends = [await says(InDoubt("where rests is is not known", remedy=remedy))]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.message) == ("doubt", "where rests is is not known")
    assert result.remedy == remedy
    assert len(hosts.did) == 1


@pytest.fixture
def says(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[EntourageError], Awaitable[Callable[[], Ended]]]:
    """What the command itself says where the move ends with an error."""

    async def say(error: EntourageError) -> Callable[[], Ended]:
        async def move(_asked: object) -> None:
            raise error

        monkeypatch.setattr(source, "move", move)
        wanted = offline.Wanted("rests", "b", None, None, Typed())
        status = await asyncio.to_thread(offline.run, wanted, {}, json=True, dry_run=False)
        told = capfd.readouterr()
        end = Ended(status=status, events=json.loads(told.out.splitlines()[-1]), said=told.err)
        return lambda: end

    return say


async def test_why_it_is_refused_or_fails_is_kept(
    says: Callable[[EntourageError], Awaitable[Callable[[], Ended]]],
) -> None:
    hosts = Hosts()
    against = [
        Refusal("block/disk0", "a", "its disk is a's", "move it as it runs"),
        Refusal("domain", "b", "there is no bridge br9"),
    ]
    hosts.ends = [await says(Refused(against))]
    result = await ensure(hosts)(MOVE)
    assert result.kind == "refused"
    assert result.message == (
        "block/disk0 on a: its disk is a's (move it as it runs);"
        " domain on b: there is no bridge br9"
    )
    hosts.ends = [await says(EntourageError("no room in /var", host="b", remedy="make room"))]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.message) == ("back", "b: no room in /var")
    assert result.remedy == "make room"


async def test_what_was_started_since_moves_as_others_do() -> None:
    hosts = Hosts(off="", runs="a")
    hosts.ends = [lambda: ended("moved", blackout=0.25)]
    result = await ensure(hosts)(MOVE, first=True)
    assert (result.kind, result.blackout) == ("moved", 0.25)
    assert hosts.did == ["migrate --bandwidth=1 rests a b"]


async def test_another_domain_of_that_name_is_not_moved() -> None:
    hosts = Hosts()
    hosts.uuid = "another"
    result = await ensure(hosts)(MOVE)
    assert result.message == "another domain is called rests on a now"
    assert hosts.did == []


async def test_what_is_in_doubt_is_settled_first() -> None:
    hosts = Hosts()
    hosts.standings = [
        StandingThere(domain="rests", uuid="u", role="source", record="armed", settled=False)
    ]
    hosts.ends = [hosts.moves()]
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert hosts.did == ["recover rests a", "migrate --offline rests a b"]


async def test_a_host_that_does_not_answer_at_first_is_no_doubt() -> None:
    hosts = Hosts()

    async def silent(_host: str) -> RoomThere:
        raise EntourageError("ssh does not reach it")

    hosts.room = silent  # type: ignore[method-assign]
    assert (await ensure(hosts)(MOVE)).kind == "back"


async def test_what_another_command_moves_is_waited_for() -> None:
    """A controller was killed, and what it had begun goes on on its host."""
    hosts = Hosts()
    hosts.ends = [lambda: BUSY, hosts.moves(BUSY)]
    assert (await ensure(hosts)(MOVE)).kind == "moved"
    assert len(hosts.did) == 2


async def test_one_that_stays_busy_is_where_it_was() -> None:
    hosts = Hosts()
    hosts.ends = [lambda: BUSY] * 9
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.message) == ("back", "rests is busy")


REMEDY = "`entourage migrate --offline rests b` on a"


async def test_one_that_stays_busy_once_its_source_has_let_go_is_in_doubt() -> None:
    """Its target's lock is another one's: the source has it no more."""
    hosts = Hosts(off="", claims="b")
    hosts.ends = [lambda: BUSY] * 9
    result = await ensure(hosts)(MOVE)
    assert result.kind == "doubt"
    assert result.message == "which host has it is not known: rests is busy"
    assert result.remedy == REMEDY


async def test_one_that_was_busy_on_a_source_that_is_silent_then_is_in_doubt() -> None:
    hosts = Hosts()

    def goes_silent() -> Ended:
        hosts.silent = "a"
        return BUSY

    hosts.ends = [goes_silent]
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.remedy) == ("doubt", REMEDY)
    assert result.message == "which host has it is not known: a: ssh does not reach it"


async def test_what_its_source_had_let_go_is_not_called_back_where_nothing_could_begin() -> None:
    """Another controller had begun it."""
    hosts = Hosts(off="", claims="b")
    hosts.standings = [
        StandingThere(domain="rests", uuid="u", role="source", record="armed", settled=False)
    ]
    hosts.locked = True
    assert (await ensure(hosts)(MOVE)).kind == "doubt"
    assert hosts.did == ["recover rests a"] * 4


async def test_a_claim_on_another_host_is_in_doubt() -> None:
    """Its source gave it to c, and that was cut; a claim says so, whatever the plan says."""
    hosts = Hosts(off="", claims="c")
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.remedy) == ("doubt", "`entourage migrate --offline rests c` on a")
    assert result.message == (
        "c took it on in a move that was cut, and no host that answers has it"
    )
    hosts.silent = "d"
    result = await ensure(hosts)(MOVE)
    assert result.message.endswith("no host that answers has it; d does not answer")
    hosts.silent, hosts.off = "", "d"  # it is what came of an older move
    assert (await ensure(hosts)(MOVE)).kind == "elsewhere"
    assert hosts.did == []


async def test_what_to_do_in_doubt_is_told_once(
    says: Callable[[EntourageError], Awaitable[Callable[[], Ended]]],
) -> None:
    hosts = Hosts(off="", claims="b")
    again = "`entourage migrate --offline rests b` again"
    remedies = {
        f"make room; {again}": f"make room; {again}, on a",
        "make room": f"make room; {REMEDY}",
    }
    for said, told in remedies.items():
        hosts.ends = [await says(EntourageError("no room in /var", host="b", remedy=said))] * 4
        result = await ensure(hosts)(MOVE)
        assert result.message == "which host has it is not known: b: no room in /var"
        assert (result.kind, result.remedy) == ("doubt", told)


@pytest.mark.parametrize("remedy", ["`entourage migrate --offline rests c` again", "look there"])
async def test_what_its_source_gave_to_another_host_is_not_to_be_moved_to_this_one(
    says: Callable[[EntourageError], Awaitable[Callable[[], Ended]]], remedy: str
) -> None:
    """The target kept a claim of an older move."""
    hosts = Hosts(off="", claims="b")
    hosts.ends = [await says(UsageError("rests was given to c", remedy=remedy))] * 4
    result = await ensure(hosts)(MOVE)
    assert (result.kind, result.message) == (
        "doubt",
        "which host has it is not known: rests was given to c",
    )
    assert result.remedy == (remedy if remedy == "look there" else f"{remedy}, on a")
