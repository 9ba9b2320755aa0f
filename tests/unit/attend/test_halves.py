"""The two halves of a machine that somebody else migrates, with a toolstack that does as told."""

from __future__ import annotations

import asyncio
import time

import pytest

from entourage.domain import Domain, External, Tpm
from entourage.errors import GoneError, HypervisorError, InDoubt, LinkLost
from entourage.handover.values import Guest
from entourage.hypervisors.attended import incoming as incoming_module
from entourage.hypervisors.attended import looks as looks_module
from entourage.hypervisors.attended import machine as machine_module
from entourage.hypervisors.attended.hypervisor import AttendedHypervisor
from entourage.hypervisors.attended.incoming import AttendedIncoming
from entourage.hypervisors.attended.machine import AttendedMachine
from entourage.hypervisors.attended.switchover import (
    SourceSwitchover,
    TargetSwitchover,
    state_of,
)
from entourage.hypervisors.attended.toolstack import Shown
from entourage.hypervisors.base import Ticket
from tests.unit.attend.standins import StandInToolstack, StandInWatch
from tests.unit.eventually import eventually

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 28, external=(External(id="x", type="x"),))
TICKET = Ticket(uri="attended")


class FakeToolstack(StandInToolstack):
    def __init__(self, shown: Shown | Exception = Shown.RUNNING, *, job: bool = True) -> None:
        super().__init__(UUID, shown)
        self.job = job
        self.jobs = 0

    async def migrates(self, uuid: str) -> bool:
        self.jobs += 1
        return await super().migrates(uuid)


def source(
    stack: FakeToolstack, watch: StandInWatch | None
) -> tuple[AttendedMachine, SourceSwitchover]:
    switchover = SourceSwitchover("00ff")
    machine = AttendedMachine(stack, DOMAIN, switchover=switchover, watch=watch)
    return machine, switchover


def target(
    stack: FakeToolstack, watch: StandInWatch | None
) -> tuple[AttendedIncoming, TargetSwitchover]:
    switchover = TargetSwitchover("00ff")
    return AttendedIncoming(stack, DOMAIN, switchover, watch), switchover


# The source's


async def test_no_state_is_given_before_the_devices_are_prepared() -> None:
    machine, switchover = source(FakeToolstack(), StandInWatch())
    with pytest.raises(HypervisorError, match="not prepared"):
        await switchover.save()
    await machine.start(TICKET, live=True)
    saving = asyncio.create_task(switchover.save())
    assert await machine.stopped() == switchover.saved_at
    await machine.continue_switchover()
    assert await saving == state_of("00ff")
    assert await machine.landed() == b""


async def test_the_stop_is_heard_of_before_qemu_calls() -> None:
    watch = StandInWatch()
    machine, switchover = source(FakeToolstack(), watch)
    await machine.start(TICKET, live=True)
    watch.stopped.set_result(4711)
    assert await machine.stopped() == 4711
    assert not switchover.saved_at


async def test_a_stop_without_a_moment_is_now() -> None:
    watch = StandInWatch()
    machine, _ = source(FakeToolstack(), watch)
    watch.stopped.set_result(0)
    before = time.monotonic_ns()
    assert before <= await machine.stopped() <= time.monotonic_ns()


@pytest.mark.parametrize("half", ["stopped", "landed"])
async def test_a_libvirtd_that_goes_away_is_a_failure(half: str) -> None:
    """It gives up whatever it migrated when it comes back."""
    watch = StandInWatch()
    machine, _ = source(FakeToolstack(), watch)
    for each in (watch.stopped, watch.word):
        each.set_exception(HypervisorError("libvirtd has gone"))
    with pytest.raises(HypervisorError, match="has gone"):
        await getattr(machine, half)()


@pytest.mark.parametrize("half", ["stopped", "landed"])
async def test_a_migration_that_qemu_gives_up_is_a_failure(half: str) -> None:
    watch = StandInWatch()
    machine, _ = source(FakeToolstack(), watch)
    watch.word.set_result("cancelled")
    with pytest.raises(HypervisorError, match="cancelled"):
        await getattr(machine, half)()


async def test_a_job_that_is_gone_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_LOOK_EVERY", 0.001)
    stack = FakeToolstack()
    machine, _ = source(stack, StandInWatch())
    stopping = asyncio.create_task(machine.stopped())
    await eventually(lambda: stack.jobs)
    stack.job = False
    with pytest.raises(HypervisorError, match="given up by who began it"):
        await stopping


async def test_a_job_that_never_begins_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_LOOK_EVERY", 0.001)
    monkeypatch.setattr(machine_module, "_BEGINS_WITHIN", 0.02)
    machine, _ = source(FakeToolstack(job=False), StandInWatch())
    with pytest.raises(HypervisorError, match="was not begun within"):
        await machine.stopped()


async def test_the_way_back_while_the_guest_runs_ends_the_job() -> None:
    stack = FakeToolstack()
    machine, switchover = source(stack, StandInWatch())
    await machine.start(TICKET, live=True)
    await machine.abort()
    assert stack.gave_up == 1
    with pytest.raises(HypervisorError, match="could not be moved"):
        await switchover.save()


async def test_the_way_back_of_a_stopped_guest_waits_for_it() -> None:
    stack = FakeToolstack(Shown.HELD)
    machine, switchover = source(stack, StandInWatch())
    await machine.start(TICKET, live=True)
    saving = asyncio.create_task(switchover.save())
    await eventually(lambda: switchover.saved_at)
    aborting = asyncio.create_task(machine.abort())
    with pytest.raises(HypervisorError, match="could not be moved"):
        await saving
    assert not aborting.done()
    assert not stack.gave_up  # QEMU's own failure brings it back
    stack.now = Shown.RUNNING
    await aborting


async def test_what_qemu_does_not_give_up_by_itself_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has sent all, and waits for a target whose power was cut."""
    monkeypatch.setattr(machine_module, "_FAILS_WITHIN", 0.02)
    stack = FakeToolstack(Shown.HELD)
    machine, switchover = source(stack, StandInWatch())
    await machine.start(TICKET, live=True)
    switchover.go_on()
    await switchover.save()
    await machine.abort()
    assert stack.gave_up == 1


async def test_a_guest_that_has_ended_does_not_come_back() -> None:
    with pytest.raises(GoneError):
        await AttendedMachine(FakeToolstack(Shown.OFF), DOMAIN).abort()


async def test_one_that_stands_still_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_FAILS_WITHIN", 0.02)
    monkeypatch.setattr(machine_module, "_RUNS_WITHIN", 0.02)
    stack = FakeToolstack(Shown.HELD)
    monkeypatch.setattr(stack, "give_up", stack.shown)  # does nothing
    machine = AttendedMachine(stack, DOMAIN)
    with pytest.raises(HypervisorError, match="stands still") as told:
        await machine.abort()
    assert "resume web1" in told.value.remedy


async def test_a_copy_that_stays_behind_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_ENDS_WITHIN", 0.02)
    machine, _ = source(FakeToolstack(Shown.HELD), StandInWatch())
    with pytest.raises(HypervisorError, match="has not been ended"):
        await machine.release()
    gone, _ = source(FakeToolstack(Shown.ABSENT), StandInWatch())
    await gone.release()


@pytest.mark.parametrize(
    ("shown", "guest"),
    [
        (Shown.RUNNING, Guest.RUNNING),
        (Shown.PAUSED, Guest.RUNNING),
        (Shown.HELD, Guest.STOPPED),
        (Shown.OFF, Guest.DEAD),
        (Shown.ABSENT, Guest.DEAD),
    ],
)
async def test_what_a_crash_has_left_on_the_source(shown: Shown, guest: Guest) -> None:
    machine = AttendedMachine(FakeToolstack(shown), DOMAIN)
    assert await machine.reattach(was_running=True) is guest


# The target's


async def test_the_guest_may_run_once_load_is_answered() -> None:
    watch = StandInWatch()
    machine, switchover = target(FakeToolstack(Shown.HELD), watch)
    assert not switchover.listening.is_set()
    await machine.listen()
    assert switchover.listening.is_set()
    loading = asyncio.create_task(switchover.load(state_of("00ff")))
    await machine.landed()
    assert not loading.done()
    running = asyncio.create_task(machine.run(paused=False))
    await loading
    watch.running.set_result(4711)
    assert await running == 4711


async def test_the_state_of_another_migration_is_refused() -> None:
    _, switchover = target(FakeToolstack(Shown.HELD), StandInWatch())
    for state in (state_of("0000"), b"", b"\xff" * 100):
        with pytest.raises(HypervisorError, match="another migration"):
            await switchover.load(state)


@pytest.mark.parametrize("shown", [Shown.ABSENT, Shown.OFF, Shown.IDLE, Shown.FAILED])
async def test_a_driver_that_gives_up_at_the_very_end(
    monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    """Also where it has an old definition: nothing was heard of a guest that runs."""
    monkeypatch.setattr(looks_module, "LOOK_EVERY", 0.001)
    machine, _ = target(FakeToolstack(shown), StandInWatch())
    with pytest.raises(HypervisorError, match="at its very end"):
        await machine.run(paused=False)


async def test_what_was_not_heard_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "LOOK_EVERY", 0.001)
    watch = StandInWatch()
    watch.running.set_exception(HypervisorError("its daemon is off"))
    machine, _ = target(FakeToolstack(Shown.RUNNING), watch)
    assert await machine.run(paused=False)


async def test_what_nobody_says_is_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "LOOK_EVERY", 0.001)
    monkeypatch.setattr(incoming_module, "_RUNS_WITHIN", 0.02)
    machine, _ = target(FakeToolstack(HypervisorError("its daemon is off")), StandInWatch())
    with pytest.raises(InDoubt):
        await machine.run(paused=False)


@pytest.mark.parametrize("shown", [Shown.IDLE, Shown.ABSENT])
@pytest.mark.parametrize(
    ("there", "raised"),
    [
        (Shown.RUNNING, HypervisorError),
        (Shown.PAUSED, HypervisorError),
        (Shown.HELD, InDoubt),
        (LinkLost("no answer"), InDoubt),
        (TimeoutError(), InDoubt),
        (Shown.OFF, None),
        (Shown.IDLE, None),
        (Shown.ABSENT, None),
    ],
)
async def test_a_host_that_was_booted_since_asks_the_source(
    shown: Shown, there: Shown | Exception, raised: type[Exception] | None
) -> None:
    """Nothing here says whether the guest ran for a moment; its source's toolstack has decided."""

    async def ask() -> Shown:
        if isinstance(there, Exception):
            raise there
        return there

    machine = AttendedIncoming(FakeToolstack(shown), DOMAIN, source=ask)
    if raised is None:
        assert await machine.run(paused=False)
        return
    with pytest.raises(raised):
        await machine.run(paused=False)


async def test_whose_last_start_failed_needs_nobody_to_ask() -> None:
    async def ask() -> Shown:
        raise AssertionError

    machine = AttendedIncoming(FakeToolstack(Shown.FAILED), DOMAIN, source=ask)
    with pytest.raises(HypervisorError, match="at its very end"):
        await machine.run(paused=False)


async def test_nobody_polls_while_the_guest_waits() -> None:
    """What is heard says when to look; a look takes a thread."""
    stack, watch = FakeToolstack(Shown.HELD), StandInWatch()
    machine, switchover = source(stack, watch)
    switchover.saved_at = 1
    aborting = asyncio.create_task(machine.abort())
    await eventually(lambda: stack.looks)
    stack.now = Shown.RUNNING
    watch.more.set()
    async with asyncio.timeout(looks_module.LOOK_EVERY / 2):
        await aborting
    assert stack.looks == 2


async def test_what_is_not_heard_is_seen_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "LOOK_EVERY", 0.001)
    stack = FakeToolstack(Shown.RUNNING)
    machine, _ = source(stack, StandInWatch())
    releasing = asyncio.create_task(machine.release())
    await eventually(lambda: stack.looks > 2)
    stack.now = Shown.OFF
    await releasing


async def test_a_guest_that_stands_still_is_known_to() -> None:
    """Nothing that takes its time is begun meanwhile."""
    watch = StandInWatch()
    machine, switchover = source(FakeToolstack(), watch)
    assert not switchover.stands_still
    watch.stopped.set_result(4711)
    await machine.stopped()
    assert switchover.stands_still
    _, there = target(FakeToolstack(Shown.HELD), StandInWatch())
    loading = asyncio.create_task(there.load(state_of("00ff")))
    await there.loaded()
    assert there.stands_still
    loading.cancel()


async def test_what_is_given_up_is_never_loaded() -> None:
    machine, switchover = target(FakeToolstack(Shown.ABSENT), StandInWatch())
    loading = asyncio.create_task(switchover.load(state_of("00ff")))
    await machine.landed()
    await machine.kill()
    with pytest.raises(HypervisorError, match="did not come"):
        await loading


@pytest.mark.parametrize(
    ("shown", "guest"),
    [
        (Shown.RUNNING, Guest.RUNNING),
        (Shown.PAUSED, Guest.RUNNING),
        (Shown.HELD, Guest.STOPPED),
        (Shown.OFF, Guest.DEAD),
        (Shown.IDLE, Guest.STOPPED),
        (Shown.FAILED, Guest.STOPPED),
        (Shown.ABSENT, Guest.STOPPED),
    ],
)
async def test_what_a_crash_has_left_on_the_target(shown: Shown, guest: Guest) -> None:
    machine = AttendedIncoming(FakeToolstack(shown), DOMAIN)
    assert await machine.attach() is guest


async def test_only_what_is_ours_is_taken() -> None:
    switchover = TargetSwitchover("00ff")
    hypervisor = AttendedHypervisor("attended:x", FakeToolstack(), switchover, uuid=UUID)
    assert not await hypervisor.test_incoming(DOMAIN, "b", {})
    more = Domain(name="web1", uuid=UUID, memory=1 << 28, tpm=(Tpm(id="tpm0"),))
    [refusal] = await hypervisor.test_incoming(more, "b", {})
    assert refusal.device == "tpm/tpm0"
    other = Domain(name="web1", uuid=UUID[::-1], memory=1 << 28)
    [refusal] = await hypervisor.test_incoming(other, "b", {})
    assert refusal.device == "domain"


async def test_a_stranger_has_no_domain_attended() -> None:
    """A key for the agent is none for the daemon."""
    hypervisor = AttendedHypervisor("attended:x", FakeToolstack())
    [refusal] = await hypervisor.test_incoming(DOMAIN, "b", {})
    assert "no daemon attends" in refusal.reason
