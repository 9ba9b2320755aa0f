"""The deadman: who dies, who says what, and what is done to the guest then."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hosts.resources import marked_processes
from entourage.hypervisors.deadman import Deadman
from entourage.hypervisors.qemu.arming import arm_deadman
from entourage.hypervisors.qemu.paths import Places
from tests.unit.eventually import eventually
from tests.unit.hypervisors.qemu.test_qmp import FakeQmp, refuse

CUT = ("stop", "block-job-cancel", "blockdev-del")
"""What is done to a mirror, or to a copy of changes that may be about to begin."""
NAME = f"test-{os.getpid()}"
"""Its processes are found by their name, and others may run these tests as well."""


class Guest(FakeQmp):
    """A QEMU that stands in pre-switchover."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.status = "finish-migrate"
        self.migration = "pre-switchover"
        self.answers |= {
            "query-status": lambda _: {"status": self.status},
            "query-migrate": lambda _: {"status": self.migration} if self.migration else {},
            "migrate_cancel": self._cancel,
            "cont": self._cont,
            "yank": refuse("there is no such instance"),
        }
        self.runs = asyncio.Event()
        self.not_finalized = 0

    def _cancel(self, _: dict[str, Any]) -> dict[str, Any]:
        self.migration = "cancelled"
        asyncio.get_running_loop().call_later(
            0.01, lambda: self.say("MIGRATION", status="cancelled")
        )
        return {}

    def _cont(self, _: dict[str, Any]) -> dict[str, Any]:
        if self.migration in {"pre-switchover", "device"}:
            raise ValueError("Migration is not finalized yet")
        if self.not_finalized:
            self.not_finalized -= 1
            raise ValueError("Migration is not finalized yet")
        self.status = "running"
        self.runs.set()
        return {}

    @property
    def did(self) -> list[str]:
        return [name for name, _ in self.commands if not name.startswith("q")]


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncGenerator[Guest]:
    (tmp_path / "run").mkdir()
    fake = Guest(tmp_path / "run" / "guard.sock")
    async with fake.serving():
        yield fake


def freeze(hand: Deadman) -> None:
    """Its process says nothing any more."""
    hand.fall_silent()


async def arm(
    guest: Guest,
    *,
    run_again: bool = True,
    lock: int | None = None,
    budget: float | None = None,
) -> Deadman:
    where = Places(guest.path.parent, guest.path.parent, guest.path.parent.parent / "log")
    return await arm_deadman(
        where,
        name=NAME,
        run_again=run_again,
        budget=budget,
        mirrors=["m0-disk0"],
        lock=lock,
    )


async def test_its_parents_death_lets_the_guest_run(guest: Guest) -> None:
    hand = await arm(guest)
    assert guest.did == []
    hand.close()  # the descriptor is the parent's alone: this is what its death looks like
    await asyncio.wait_for(guest.runs.wait(), 5)
    assert guest.did == ["yank", *CUT, "cont", "migrate_cancel", "cont"]


async def test_the_guest_writes_nothing_beside_a_copy_of_its_changes(guest: Guest) -> None:
    """QEMU would fail its writes for what it cannot copy before them."""
    jobs = [[{"device": "m0-disk0", "type": "backup"}]] * 3
    begun = [True]

    def drop(_: dict[str, Any]) -> dict[str, Any]:
        if begun.pop() if begun else False:  # since it was looked
            jobs.append([{"device": "m0-disk0", "type": "backup"}])
            raise ValueError("Node m0-disk0 is in use")
        return {}

    guest.answers["query-block-jobs"] = lambda _: jobs.pop() if jobs else []
    guest.answers["blockdev-del"] = drop
    (await arm(guest)).close()
    await asyncio.wait_for(guest.runs.wait(), 5)
    names = [name for name, _ in guest.commands]
    before = names[: names.index("cont")]
    assert before.count("query-block-jobs") == 6
    assert before.count("blockdev-del") == 2


async def test_one_that_sends_the_last_is_cut_off_and_not_cancelled(guest: Guest) -> None:
    """Cancelled then, QEMU may let the guest run without its disks."""

    def yank(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["instances"] != [{"type": "migration"}]:
            raise ValueError("there is no such instance")
        guest.migration = "failed"
        asyncio.get_running_loop().call_later(0.01, lambda: guest.say("MIGRATION", status="failed"))
        return {}

    guest.migration = "device"
    guest.answers["yank"] = yank
    (await arm(guest)).close()
    await asyncio.wait_for(guest.runs.wait(), 5)
    assert guest.did == ["yank", *CUT, "cont", "yank", "cont"]


async def test_a_migration_that_takes_long_to_end(guest: Guest) -> None:
    guest.not_finalized = 3
    (await arm(guest)).close()
    await asyncio.wait_for(guest.runs.wait(), 5)
    assert guest.did.count("cont") == 5


async def test_nothing_to_cancel(guest: Guest) -> None:
    guest.migration = ""
    guest.status = "paused"
    (await arm(guest)).close()
    await asyncio.wait_for(guest.runs.wait(), 5)
    assert "migrate_cancel" not in guest.did


async def test_a_guest_that_its_user_had_paused(guest: Guest, tmp_path: Path) -> None:
    (await arm(guest, run_again=False)).close()
    await eventually((tmp_path / "log").read_text)
    assert "stays paused" in (tmp_path / "log").read_text()
    assert guest.did == ["yank", *CUT, "migrate_cancel"]
    assert guest.status == "finish-migrate"


async def free(lock: Path) -> bool:
    """Whether the lock is free, or becomes so within a moment."""
    descriptor = os.open(lock, os.O_RDONLY)
    deadline = time.monotonic() + 3
    try:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.01)
            else:
                return True
        return False
    finally:
        os.close(descriptor)


async def test_disarmed_it_never_resumes(guest: Guest, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    hand = await arm(guest, lock=descriptor)
    await hand.disarm()
    hand.close()
    os.close(descriptor)
    assert await free(lock)  # it has ended
    assert guest.did == []


async def test_dismissed_it_gives_up_the_lock(guest: Guest, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    hand = await arm(guest, lock=descriptor)
    os.close(descriptor)
    other = os.open(lock, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    await hand.dismiss()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    assert guest.did == []
    await hand.dismiss()


async def test_a_deadman_that_is_dead_is_noticed(guest: Guest) -> None:
    hand = await arm(guest)
    for pid in marked_processes(f"{NAME}.deadman"):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(HypervisorError, match="would resume the guest"):
        await hand.disarm()
    hand.close()


async def test_a_parent_that_lives_may_hold_the_guest_and_a_frozen_one_may_not(
    guest: Guest, tmp_path: Path
) -> None:
    """Only once its budget has run out; and GO cannot be said after that."""
    hand = await arm(guest, budget=0.1)
    guest.say("STOP")
    guest.say("MIGRATION", status="pre-switchover")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(guest.runs.wait(), 1.2)  # time enough for one that heard nothing
    freeze(hand)
    await asyncio.wait_for(guest.runs.wait(), 5)
    with pytest.raises(HypervisorError, match="would resume the guest"):
        await hand.disarm()
    hand.close()
    await eventually((tmp_path / "log").read_text)
    assert "held for too long by a process that is frozen" in (tmp_path / "log").read_text()


async def test_a_parent_that_goes_on_waits_until_it_has_acted(guest: Guest, tmp_path: Path) -> None:
    """Both at once would be too much for the hypervisor."""
    hand = await arm(guest, budget=0.1)
    guest.not_finalized = 3  # it takes its time
    guest.say("STOP")
    guest.say("MIGRATION", status="pre-switchover")
    freeze(hand)
    await eventually(lambda: guest.did)
    assert guest.status != "running"
    await hand.not_acting()
    assert guest.status == "running"
    assert "the guest runs again" in (tmp_path / "log").read_text()
    await hand.not_acting()
    hand.close()


async def test_a_parent_that_dies_as_it_asks_whether_it_acts(guest: Guest) -> None:
    hand: Any = await arm(guest)
    hand._end.send(b"w")
    hand.close()
    await asyncio.wait_for(guest.runs.wait(), 5)


async def test_asked_whether_it_acts_it_watches_on(guest: Guest) -> None:
    hand = await arm(guest)
    await asyncio.wait_for(hand.not_acting(), 5)
    assert guest.did == []
    hand.close()
    await asyncio.wait_for(guest.runs.wait(), 5)


@pytest.mark.parametrize(
    ("budget", "said"),
    [(60, ["STOP", "pre-switchover"]), (0.1, ["STOP", "device", "RESUME"]), (0.1, ["STOP"])],
    ids=["in time", "runs again", "paused by its user"],
)
async def test_a_frozen_parent_has_its_budget(guest: Guest, budget: float, said: list[str]) -> None:
    """It is counted while the migration holds the guest."""
    hand = await arm(guest, budget=budget)
    freeze(hand)
    guest.say("MIGRATION", status="active")
    for word in said:
        if word.isupper():
            guest.say(word)
        else:
            guest.say("MIGRATION", status=word)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(guest.runs.wait(), 1.2)
    await hand.disarm()
    hand.close()


async def test_no_guest_no_deadman(tmp_path: Path) -> None:
    where = Places(tmp_path, tmp_path, tmp_path / "log")
    with pytest.raises(HypervisorError, match="would resume the guest"):
        await arm_deadman(where, name="t", run_again=True, budget=None, mirrors=[], lock=None)
    assert "FileNotFoundError" in (tmp_path / "log").read_text()


async def test_what_was_meant_for_another_is_skipped(guest: Guest) -> None:
    guest.before_greeting = b'e": 1}\n{"event": "STOP"}\n'
    guest.before_answer = b'{"event": "RESUME"}\n{"return": {"status": "running"}, "id": 77}\n'
    (await arm(guest)).close()
    await asyncio.wait_for(guest.runs.wait(), 5)
