"""The guest's notice: what it is told, on either host, and what it says to that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from entourage.devices.notice import Notice, NoticeController
from entourage.domain import Domain
from entourage.errors import DeviceError, HypervisorError
from entourage.hypervisors.seams import Objection
from entourage.steps import Refusal, Step
from tests.unit.devices.test_harness import TwoHosts

NOTICE = Notice(id="app", program="/etc/moved")
DOMAIN = Domain(
    name="web1", memory=1 << 26, added={"notice": ({"id": "app", "program": "/etc/moved"},)}
)


class Agent:
    """The guest's, on one host."""

    def __init__(self, objection: Objection | None = None) -> None:
        self.objection = objection
        self.told: list[str] = []
        self.refuses = False

    async def objections(self) -> Sequence[Objection]:
        return [self.objection] if self.objection else []

    async def run(self, program: str, words: Sequence[str]) -> None:
        self.told.append(" ".join((program, *words)))
        if self.refuses:
            raise HypervisorError("/etc/moved ended with 1: a backup is under way")


class Move:
    """A guest that has an agent on both hosts."""

    def __init__(self, place: Path, objection: Objection | None = None) -> None:
        self.hosts = TwoHosts(DOMAIN, place)
        self.here, self.there = Agent(objection), Agent()
        self.hosts.machine.agent, self.hosts.incoming.agent = self.here, self.there
        self.controller = NoticeController(NOTICE)
        self.source = self.hosts.here(self.controller.test_there)

    async def test(self) -> list[Refusal]:
        return list(await self.controller.test(self.source))


async def test_it_is_told_before_and_after(tmp_path: Path) -> None:
    move = Move(tmp_path)
    assert await move.test() == []
    assert move.here.told == []
    await move.controller.connect(move.source)
    assert move.here.told == ["/etc/moved before b"]
    await move.controller.arrived(move.hosts.there)
    await move.controller.finish_arrival(move.hosts.there)
    assert move.there.told == ["/etc/moved after a"]


@pytest.mark.parametrize("crashed", [False, True])
async def test_it_is_told_that_it_stays(tmp_path: Path, *, crashed: bool) -> None:
    move = Move(tmp_path)
    await move.controller.recover(move.source, Step.TEST)
    assert move.here.told == []  # it knows of nothing
    if crashed:
        move.controller.recall(move.controller.memo())
    else:
        await move.controller.connect(move.source)
    await move.controller.recover(move.source, Step.PREPARE)
    assert move.here.told[-1] == "/etc/moved back b"


async def test_it_may_say_no(tmp_path: Path) -> None:
    move = Move(tmp_path)
    move.here.refuses = True
    with pytest.raises(DeviceError, match="a backup is under way") as told:
        await move.controller.connect(move.source)
    assert told.value.remedy
    with pytest.raises(DeviceError, match="not told that it stayed"):
        await move.controller.recover(move.source, Step.TEST)


async def test_one_that_does_not_hear_of_it_afterwards_is_told_of(tmp_path: Path) -> None:
    move = Move(tmp_path)
    move.there.refuses = True
    await move.controller.arrived(move.hosts.there)
    with pytest.raises(DeviceError, match="not told that it has moved"):
        await move.controller.finish_arrival(move.hosts.there)


async def test_a_guest_without_an_agent_is_refused(tmp_path: Path) -> None:
    (refusal,) = await Move(tmp_path, ("no guest agent answers in it", "install one")).test()
    assert str(refusal) == "notice/app on a: no guest agent answers in it (install one)"


@pytest.mark.parametrize("where", ["a", "b"])
async def test_nor_is_one_told_whose_hypervisor_cannot(tmp_path: Path, where: str) -> None:
    move = Move(tmp_path)
    if where == "a":
        move.hosts.machine.agent = None
    else:
        move.hosts.incoming.agent = None
    (refusal,) = await move.test()
    assert (refusal.host, refusal.no_way) == (where, True)


async def test_a_save_tells_nobody(tmp_path: Path) -> None:
    move = Move(tmp_path)
    move.hosts.incoming.agent = None
    move.hosts.incoming.is_save = True
    assert await move.test() == []
