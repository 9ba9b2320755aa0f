"""Giving a libvirt domain's migration up, where libvirt does not go along."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import handle, rollback
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.job import Job
from entourage.hypervisors.libvirt.rollback import Rollback

DOMAIN = Domain(
    name="web1",
    uuid="5b6e6d0e-0000-4000-8000-000000000001",
    memory=1 << 28,
    block=(Block(id="vda", path="/srv/web1.img"),),
)
FOR_EVER = 1000  # looks: more than there is time for


class Stubborn:
    """A fake of ``virDomain``: its job does not end."""

    def __init__(self) -> None:
        self.asked = 0

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's
        return [1]

    def abortJob(self) -> None:  # noqa: N802 - libvirt's
        self.asked += 1

    def state(self, _flags: int) -> tuple[int, int]:
        return State.RUNNING, 0

    def suspend(self) -> None:
        """Nothing: nor does this wake it up."""


class Quiet:
    """A fake of a feed: the guest has not stopped."""

    def __init__(self) -> None:
        self._known = Known()
        self._changed = asyncio.Event()
        self.asked = asyncio.Event()

    @property
    def known(self) -> Known:
        return self._known

    @known.setter
    def known(self, known: Known) -> None:
        self._known = known
        self._changed.set()

    async def until(self, check: Any) -> Any:
        while (found := check(self.known)) is None:
            self.asked.set()
            self._changed.clear()
            await self._changed.wait()
        return found


class GivingUp:
    """A migration whose Perform does not return."""

    def __init__(self, raw: Stubborn, *, performing: bool) -> None:
        connection: Any = None
        loop = asyncio.get_running_loop()
        self.job = Job()
        self.feed = Quiet()
        feed: Any = self.feed
        self.job.feed = feed
        one = Handle(connection, raw, DOMAIN, was_running=True, transient=False)
        self.abort = Rollback(one, self.job).abort
        if performing:
            self.job.beginning = loop.create_future()
            self.job.beginning.set_result(("", b""))
            self.job.performing = loop.create_future()

    def sends(self, calls: Any, port: int, carried: dict[str, bool]) -> None:
        self.job.calls, self.job.port = calls, port
        for disk in DOMAIN.block:
            if disk.id in carried:
                self.job.disks.carry(disk, top_only=carried[disk.id])

    @property
    def performing(self) -> asyncio.Future[bytes]:
        return self.job.performed()


@pytest.mark.parametrize("performing", [True, False])
async def test_a_job_that_does_not_end_is_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
    performing: bool,  # noqa: FBT001 - a case
) -> None:
    """Of this process or of one before it: asked again and again, and then it is an error."""
    monkeypatch.setattr(rollback, "_ENDS_WITHIN", 0.3)
    monkeypatch.setattr(rollback, "_AGAIN", 0.001)
    told: list[str] = []

    async def tell_qemu(_raw: Any, command: str, **arguments: Any) -> None:
        told.append(" ".join([command, *(end["type"] for end in arguments.get("instances", ()))]))

    monkeypatch.setattr(handle, "tell_qemu", tell_qemu)
    raw = Stubborn()
    with pytest.raises(HypervisorError, match="has not ended its migration job of web1") as caught:
        await asyncio.wait_for(GivingUp(raw, performing=performing).abort(), 5)
    assert raw.asked > 1
    # A target that is gone without a word is hung up on; and in the end the guest runs, whatever.
    assert {"yank migration", "yank block-node"} <= set(told)
    assert told[-1] == "cont"
    assert "entourage recover web1" in caught.value.remedy


class Late(Stubborn):
    """Its job ends while libvirt is still busy with the last thing that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []
        self.end: Any = None

    def abortJob(self) -> None:  # noqa: N802 - libvirt's
        if self.end is not None:
            self.end()
        time.sleep(0.05)  # in libvirt's thread
        self.did.append("told")

    def state(self, _flags: int) -> tuple[int, int]:
        self.did.append("looked at")
        return State.RUNNING, 0


async def test_what_libvirt_was_told_last_comes_before_the_guest_is_looked_at() -> None:
    """It could stop a guest that was just let run, and nobody would look again."""
    raw = Late()
    giving_up = GivingUp(raw, performing=True)
    loop, performing = asyncio.get_running_loop(), giving_up.performing
    failed = HypervisorError("cancelled")
    raw.end = lambda: loop.call_soon_threadsafe(performing.set_exception, failed)
    await asyncio.wait_for(giving_up.abort(), 5)
    assert raw.did == ["told", "looked at"]


class Memory:
    """A fake of ``Calls``: what becomes of a migration whose memory is cut off."""

    def __init__(self, giving_up: GivingUp, *, may_touch: bool = True) -> None:
        self.cut: list[str] = []
        self._giving_up = giving_up
        self._may_touch = may_touch

    def hang_up(self, port: int | None = None) -> int:
        if self._may_touch:
            self.fails(f"kernel {port or 'all'}")
        return int(self._may_touch)

    def hang_up_on_silence(self, _patience: float, *, held_up: bool, **_: Any) -> int:
        """Nobody is silent."""
        return 0

    async def tell_qemu(self, _raw: Any, command: str, **arguments: Any) -> dict[str, Any]:
        [end] = arguments["instances"]
        if not self._giving_up.performing.done():
            self.fails(f"{command} {end.get('node-name', end['type'])}")
        return {}

    def fails(self, by: str) -> None:
        self.cut.append(by)
        self._giving_up.performing.set_exception(HypervisorError("broken pipe"))


@pytest.mark.parametrize("carried", [{}, {"vda": False}], ids=["memory", "disk"])
@pytest.mark.parametrize("may_touch", [True, False], ids=["kernel", "monitor"])
async def test_memory_that_is_sent_is_cut_off_and_not_cancelled(
    monkeypatch: pytest.MonkeyPatch,
    may_touch: bool,  # noqa: FBT001 - a case
    carried: dict[str, bool],
) -> None:
    """Cancelled then, QEMU may let the guest run without its disks; by the kernel, or by QEMU."""
    raw = Stubborn()
    giving_up = GivingUp(raw, performing=True)
    giving_up.feed.known = Known(migration="device", stopped_at=1)
    memory = Memory(giving_up, may_touch=may_touch)
    monkeypatch.setattr(handle, "tell_qemu", memory.tell_qemu)
    giving_up.sends(memory, 49152, carried)
    await asyncio.wait_for(giving_up.abort(), 5)
    assert memory.cut == ["kernel 49152" if may_touch else "yank migration"]
    assert not raw.asked


async def test_copies_are_cancelled_and_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off with memory, the target's QEMU ends, and a copy may stay behind here."""
    monkeypatch.setattr(handle, "tell_qemu", Left("active", looks=FOR_EVER).tell_qemu)
    raw = Late()
    giving_up = GivingUp(raw, performing=True)
    giving_up.feed.known = Known(migration="active")
    loop, performing = asyncio.get_running_loop(), giving_up.performing
    failed = HypervisorError("cancelled")
    raw.end = lambda: loop.call_soon_threadsafe(performing.set_exception, failed)
    memory = Memory(giving_up)
    giving_up.sends(memory, 49152, {"vda": False})
    await asyncio.wait_for(giving_up.abort(), 5)
    assert not memory.cut
    assert raw.did[-2:] == ["told", "looked at"]


@pytest.mark.parametrize("lost", ["", "libvirtd has closed it"])
async def test_what_was_heard_last_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The guest has stopped, libvirt ends the copies, and nothing is heard of that."""
    raw = Stubborn()
    giving_up = GivingUp(raw, performing=True)
    giving_up.feed.known = Known(migration="active", lost=lost)
    monkeypatch.setattr(rollback, "_COPIES_END_WITHIN", 20)
    left = Left("pre-switchover", looks=3)
    performing = giving_up.performing

    async def tell_qemu(raw: Any, command: str, **arguments: Any) -> Any:
        answer = await left.tell_qemu(raw, command, **arguments)
        if left.told and not performing.done():
            performing.set_exception(HypervisorError("broken pipe"))
        return answer

    monkeypatch.setattr(handle, "tell_qemu", tell_qemu)
    giving_up.sends(Memory(giving_up), 49152, {"vda": False})
    await asyncio.wait_for(giving_up.abort(), 5)
    assert left.told == ["yank migration"]
    assert not raw.asked


async def test_nothing_is_cancelled_while_libvirt_ends_the_copies_of_a_stopped_guest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It lets QEMU go on with memory the moment they have ended: then memory is cut off."""
    monkeypatch.setattr(rollback, "_COPIES_END_WITHIN", 20)
    raw = Stubborn()
    giving_up = GivingUp(raw, performing=True)
    giving_up.feed.known = Known(migration="pre-switchover", stopped_at=1)
    memory = Memory(giving_up)
    giving_up.sends(memory, 49152, {"vda": False})
    aborting = asyncio.ensure_future(giving_up.abort())
    await asyncio.wait_for(giving_up.feed.asked.wait(), 5)
    assert not memory.cut
    giving_up.feed.known = Known(migration="device", stopped_at=1)
    await asyncio.wait_for(aborting, 5)
    assert memory.cut == ["kernel 49152"]
    assert not raw.asked


@pytest.mark.parametrize("may_touch", [True, False], ids=["kernel", "monitor"])
async def test_copies_that_do_not_end_are_cut_off(
    monkeypatch: pytest.MonkeyPatch,
    may_touch: bool,  # noqa: FBT001 - a case
) -> None:
    """The target is gone without a word: libvirt finds that they fail, and gives up by itself."""
    monkeypatch.setattr(rollback, "_COPIES_END_WITHIN", 0.01)
    raw = Stubborn()
    giving_up = GivingUp(raw, performing=True)
    giving_up.feed.known = Known(migration="pre-switchover", stopped_at=1)
    memory = Memory(giving_up, may_touch=may_touch)
    monkeypatch.setattr(handle, "tell_qemu", memory.tell_qemu)
    giving_up.sends(memory, 49152, {"vda": False})
    await asyncio.wait_for(giving_up.abort(), 5)
    assert memory.cut == ["kernel all" if may_touch else "yank migration-vda-storage"]
    assert not raw.asked


class Left:
    """A fake of a QEMU whose migration was begun by a process that is gone."""

    def __init__(self, at: str, *, looks: int) -> None:
        self.told: list[str] = []
        self._at = at
        self._looks = looks  # at its copies, until they have ended

    async def tell_qemu(self, _raw: Any, command: str, **arguments: Any) -> Any:
        if command == "query-block-jobs":
            self._looks -= 1
            return [{"device": "vda"}] if self._looks >= 0 else []
        if command == "query-migrate":
            return {"status": self._at}
        ends = [end.get("node-name", end["type"]) for end in arguments.get("instances", ())]
        self.told.append(" ".join([command, *ends]))
        return {}


class Ended(Stubborn):
    """Its job is gone once its QEMU was told something."""

    def __init__(self, left: Left) -> None:
        super().__init__()
        self._left = left

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's
        return [0 if self._left.told or self.asked else 1]


@pytest.mark.parametrize(
    ("at", "looks", "told", "asked"),
    [
        ("active", FOR_EVER, [], 1),
        ("active", 0, ["yank migration"], 0),
        ("pre-switchover", 3, ["yank migration"], 0),
        ("pre-switchover", FOR_EVER, ["yank migration-vda-storage", "yank migration"], 0),
    ],
)
async def test_the_same_of_a_process_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, at: str, looks: int, told: list[str], asked: int
) -> None:
    monkeypatch.setattr(rollback, "_COPIES_END_WITHIN", 0.1 if looks == FOR_EVER else 20)
    left = Left(at, looks=looks)
    monkeypatch.setattr(handle, "tell_qemu", left.tell_qemu)
    raw = Ended(left)
    await asyncio.wait_for(GivingUp(raw, performing=False).abort(), 5)
    assert left.told == told
    assert raw.asked == asked


@pytest.mark.parametrize("performing", [True, False])
async def test_a_qemu_that_does_not_answer_keeps_nobody_from_ending_the_job(
    monkeypatch: pytest.MonkeyPatch,
    performing: bool,  # noqa: FBT001 - a case
) -> None:
    """It waits for a target that is gone; a question to it has no end, cancelled or not."""
    silent = asyncio.get_running_loop().create_future()

    async def tell_qemu(_raw: Any, _command: str, **_arguments: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(silent)
        await silent

    monkeypatch.setattr(rollback, "_STUCK_AFTER", 0.01)
    monkeypatch.setattr(rollback, "_COPIES_END_WITHIN", 0.01)
    monkeypatch.setattr(rollback, "_ENDS_WITHIN", 0.3)
    monkeypatch.setattr(rollback, "_AGAIN", 0.001)
    monkeypatch.setattr(handle, "tell_qemu", tell_qemu)
    raw = Stubborn()
    giving_up = GivingUp(raw, performing=performing)
    giving_up.feed.known = Known(migration="device", stopped_at=1)
    try:
        with pytest.raises(HypervisorError, match="has not ended its migration job"):
            await asyncio.wait_for(giving_up.abort(), 5)
    finally:
        silent.set_result(None)
        await asyncio.sleep(0)
    assert raw.asked


class HeldUp(Stubborn):
    """Its QEMU waits for a target that is silent, and libvirt for QEMU."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def abortJob(self) -> None:  # noqa: N802 - libvirt's
        self.goes_on.wait(10)


class SilentCalls:
    """Connections of QEMU's to a target that is silent."""

    def __init__(self, raw: HeldUp) -> None:
        self.held_up_at = 0.0
        self._raw = raw

    def hang_up_on_silence(self, _patience: float, *, held_up: bool, **_: Any) -> int:
        if held_up and not self.held_up_at:
            self.held_up_at = time.monotonic()
            self._raw.goes_on.set()
        return held_up

    def hang_up(self, port: int | None = None) -> int:
        raise AssertionError(f"{port}: not before the target was silent for long enough")


async def test_a_silent_target_that_holds_qemu_up_is_hung_up_on_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guest stands still meanwhile."""
    monkeypatch.setattr(rollback, "_LOOK_EVERY", 0.001)
    monkeypatch.setattr(rollback, "_SILENT_AFTER", 0.2)
    monkeypatch.setattr(rollback, "_STUCK_AFTER", 20)
    raw = HeldUp()
    going = GivingUp(raw, performing=True)
    calls = SilentCalls(raw)
    going.sends(calls, 49152, {"vda": False})

    async def tell_qemu(_raw: Any, _command: str, **_arguments: Any) -> None:
        while not raw.goes_on.is_set():  # noqa: ASYNC110 - it is held up as well
            await asyncio.sleep(0.001)

    monkeypatch.setattr(handle, "tell_qemu", tell_qemu)
    loop = asyncio.get_running_loop()

    def fails() -> None:
        going.performing.set_exception(HypervisorError("a copy has failed"))

    asyncio.get_running_loop().run_in_executor(
        None, lambda: raw.goes_on.wait(10) and loop.call_soon_threadsafe(fails)
    )
    began = time.monotonic()
    await asyncio.wait_for(going.abort(), 10)
    assert calls.held_up_at - began > 0.2  # only once it had its time
