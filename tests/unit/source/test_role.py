"""The source's half: a guest that ends by itself is an event of the hand-over, and no error."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from entourage.errors import GoneError, HypervisorError
from entourage.handover.rules import Source
from entourage.handover.values import Finding, Input, Record, Role
from entourage.hypervisors.base import Machine
from entourage.journal.journal import Journal
from entourage.source import role
from entourage.source.role import SourceSide
from tests.unit.decisions import ARMED

REFUSED = HypervisorError("QEMU refuses cont: Resetting the Virtual Machine is required")


class Ending:
    """A fake machine that cannot go on; whether because it has ended is what matters."""

    def __init__(self, *, ends: bool, said: HypervisorError = REFUSED) -> None:
        self.kept, self.refuses = 0, False
        self._ends = ends
        self._said = said

    async def abort(self) -> None:
        raise self._said

    async def keep_definition(self) -> None:
        self.kept += 1
        if self.refuses:
            raise HypervisorError("libvirt does not do it")

    async def died(self) -> str:
        if not self._ends:
            await asyncio.get_running_loop().create_future()
        return "QEMU has ended (guest-shutdown)"


def side_of(journal: Journal, machine: Any) -> SourceSide:
    async def nothing() -> list[str]:
        return []

    return SourceSide(
        journal=journal,
        decision=ARMED,
        state=Source(migration="m-1", peer_journal="T"),
        machine=cast("Machine", machine),
        send=lambda _: None,
        recover_first=nothing,
        recover=nothing,
        let_go=nothing,
        on_resumed=lambda _: pytest.fail("it was not resumed"),
    )


GONE = GoneError("the machine of web1 is gone")


@pytest.mark.parametrize(
    "ending",
    [Ending(ends=True), Ending(ends=False, said=GONE)],
    ids=["heard of", "seen as it was to run"],
)
async def test_a_guest_that_ended_comes_back_dead_and_settled(
    tmp_path: Path, ending: Ending
) -> None:
    with Journal.open(tmp_path / "journal.db") as journal:
        side = side_of(journal, ending)
        await side.take(Input.BEGIN)
        await side.take(Input.ABORT)
        assert side.findings == [Finding.CAME_BACK_DEAD]
        decision = journal.decision("m-1", Role.SOURCE)
        assert decision is not None
        assert decision.record is Record.BACK
        assert decision.settled  # nothing to recover: it may be started at once
        assert ending.kept == 1


async def test_a_definition_that_is_not_as_it_was_is_left_to_recover(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.db") as journal:
        ending = Ending(ends=True)
        ending.refuses = True
        side = side_of(journal, ending)
        await side.take(Input.BEGIN)
        await side.take(Input.ABORT)
        assert "libvirt does not do it" in str(side.problems)
        decision = journal.decision("m-1", Role.SOURCE)
        assert decision is not None
        assert decision.record is Record.BACK
        assert not decision.settled


async def test_one_that_only_refuses_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role, "_ENDS_WITHIN", 0.05)
    with Journal.open(tmp_path / "journal.db") as journal:
        side = side_of(journal, Ending(ends=False))
        await side.take(Input.BEGIN)
        with pytest.raises(HypervisorError, match="refuses cont"):
            await side.take(Input.ABORT)
        decision = journal.decision("m-1", Role.SOURCE)
        assert decision is not None
        assert decision.record is Record.ARMED
