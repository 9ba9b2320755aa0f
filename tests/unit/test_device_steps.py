"""Steps, deadlines and recoveries, with controllers made for the occasion (fakes, and said so)."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import pytest

from entourage.device_steps import DeviceSteps
from entourage.devices.base import Controller, Here
from entourage.domain import External
from entourage.errors import DeadlineError, DeviceError, EntourageError
from entourage.events import AnyEvent, DeviceRecovered, DeviceStepDone
from entourage.settings.model import MigrationSettings
from entourage.source.tasks import first_cause
from entourage.steps import Refusal, Step


@dataclasses.dataclass
class Plan:
    """What a fake device does: in which half it fails, hangs or waits, and what it was told."""

    fails: str = ""
    hangs: str = ""
    settles_early: bool = False
    calls: list[str] = dataclasses.field(default_factory=list[str])
    told: list[Step] = dataclasses.field(default_factory=list[Step])


class Fake(Controller[External]):
    device_class: ClassVar[str] = "external"

    def __init__(
        self, name: str, plan: Plan, *, settles: bool = False, first: bool = False
    ) -> None:
        super().__init__(External(id=name, type="fake"))
        self.plan = plan
        self.settles = settles  # pyright: ignore[reportAttributeAccessIssue]
        self.recovers_first = first  # pyright: ignore[reportAttributeAccessIssue]

    async def _do(self, half: str) -> None:
        self.plan.calls.append(half)
        if self.plan.hangs == half:
            await asyncio.get_running_loop().create_future()
        if self.plan.fails == half:
            raise DeviceError(f"{half} failed")

    def _early(self, here: Here) -> None:
        if self.plan.settles_early:
            cast("Any", here)()

    async def test(self, here: Here) -> Sequence[Refusal]:
        await self._do("test")
        return ()

    async def prepare(self, here: Here) -> None:
        await self._do("prepare")

    async def connect(self, here: Here) -> None:
        await self._do("connect")

    async def transfer(self, here: Here) -> None:
        self._early(here)
        await self._do("transfer")

    async def sync(self, here: Here) -> None:
        await self._do("sync")

    async def recover(self, here: Here, last_good: Step) -> None:
        self.plan.told.append(last_good)
        await self._do("recover")

    async def let_go(self, here: Here) -> None:
        await self._do("let_go")


def conduct(
    *fakes: Fake, timeouts: MigrationSettings | None = None
) -> tuple[DeviceSteps, list[AnyEvent]]:
    events: list[AnyEvent] = []
    device_steps = DeviceSteps(
        fakes,
        lambda _c, _h, settled: cast("Any", settled),
        timeouts or MigrationSettings(recover_timeout=0.1, recover_first_timeout=0.1),
        events.append,
        lambda: 0.0,
    )
    return device_steps, events


async def nothing() -> None:
    """A target's machine that builds at once."""


async def through(device_steps: DeviceSteps) -> None:
    await device_steps.test()
    await device_steps.prepare(nothing)
    await device_steps.transfer()
    await device_steps.sync()


@pytest.mark.parametrize(
    ("half", "failed_is_told", "other_is_told"),
    [
        ("prepare", Step.TEST, Step.TEST),
        ("connect", Step.TEST, Step.PREPARE),
        ("transfer", Step.PREPARE, Step.TRANSFER),
        ("sync", Step.TRANSFER, Step.SYNC),
    ],
)
async def test_each_device_is_told_the_last_step_that_went_well(
    half: str, failed_is_told: Step, other_is_told: Step
) -> None:
    bad, good = Plan(fails=half), Plan()
    # The good one comes first: it has finished when the bad one fails.
    device_steps, _ = conduct(Fake("good", good), Fake("bad", bad))
    with pytest.raises((EntourageError, BaseExceptionGroup)) as caught:
        await through(device_steps)
    cause = first_cause(caught.value)
    assert isinstance(cause, EntourageError)
    assert cause.device == "external/bad"
    assert await device_steps.recover() == []
    assert (bad.told, good.told) == ([failed_is_told], [other_is_told])


async def test_a_device_that_never_began_is_not_called() -> None:
    plan = Plan()
    device_steps, _ = conduct(Fake("a", plan))
    await device_steps.test()
    assert await device_steps.recover() == []
    assert plan.told == []


async def test_a_recovery_that_fails_or_hangs_stops_no_other_and_is_told() -> None:
    plans = [Plan(fails="recover"), Plan(hangs="recover"), Plan()]
    device_steps, events = conduct(
        *(Fake(name, plan) for name, plan in zip("abc", plans, strict=True))
    )
    await device_steps.test()
    await device_steps.prepare(nothing)
    problems = await device_steps.recover()
    late = "recovery did not end within 0.1 s (see what keeps it, or raise"
    assert problems == [
        "external/a: recover failed",
        f"external/b: {late} migration.recover-timeout)",
    ]
    assert all(plan.told == [Step.PREPARE] for plan in plans)
    assert [e.device for e in events if isinstance(e, DeviceRecovered) and not e.error] == [
        "external/c"
    ]


async def test_nobody_is_told_twice() -> None:
    first, later = Plan(), Plan()
    device_steps, _ = conduct(Fake("first", first, first=True), Fake("later", later))
    await device_steps.test()
    await device_steps.prepare(nothing)
    await device_steps.recover_first()
    assert (first.told, later.told) == ([Step.PREPARE], [])
    await device_steps.recover()
    await device_steps.recover()
    assert (first.told, later.told) == ([Step.PREPARE], [Step.PREPARE])


async def test_the_machine_is_built_between_prepare_and_connect_of_all() -> None:
    plans = [Plan(), Plan()]
    seen: list[list[str]] = []

    async def build() -> None:
        seen.extend(list(plan.calls) for plan in plans)

    device_steps, _ = conduct(*(Fake(name, plan) for name, plan in zip("ab", plans, strict=True)))
    await device_steps.prepare(build)
    assert seen == [["prepare"], ["prepare"]]
    assert [plan.calls for plan in plans] == [["prepare", "connect"]] * 2


async def test_a_build_that_fails_ends_the_step() -> None:
    async def build() -> None:
        raise EntourageError("no such bridge")

    device_steps, _ = conduct(Fake("a", Plan()))
    with pytest.raises(BaseExceptionGroup) as caught:
        await device_steps.prepare(build)
    assert str(first_cause(caught.value)) == "no such bridge"


async def test_memory_waits_only_for_the_devices_that_settle() -> None:
    device_steps, _ = conduct(
        Fake("disk", Plan(), settles=True), Fake("slow", Plan(hangs="transfer"))
    )
    transfer = asyncio.create_task(device_steps.transfer())
    await asyncio.wait_for(device_steps.settled(), 1)
    assert device_steps.unfinished() == ["external/disk", "external/slow"]
    transfer.cancel()
    await asyncio.gather(transfer, return_exceptions=True)


async def test_memory_does_not_follow_a_disk_that_has_not_settled() -> None:
    device_steps, _ = conduct(Fake("disk", Plan(hangs="transfer"), settles=True))
    transfer = asyncio.create_task(device_steps.transfer())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(device_steps.settled(), 0.05)
    transfer.cancel()
    await asyncio.gather(transfer, return_exceptions=True)


async def test_a_device_that_has_settled_need_not_be_through() -> None:
    plan = Plan(hangs="transfer", settles_early=True)
    device_steps, _ = conduct(Fake("disk", plan, settles=True))
    transfer = asyncio.create_task(device_steps.transfer())
    await asyncio.wait_for(device_steps.settled(), 1)
    transfer.cancel()
    await asyncio.gather(transfer, return_exceptions=True)


async def test_a_deadline_names_the_device_and_the_step() -> None:
    timeouts = MigrationSettings(prepare_timeout=0.05)
    device_steps, events = conduct(Fake("a", Plan(hangs="prepare")), timeouts=timeouts)
    with pytest.raises(BaseExceptionGroup) as caught:
        await device_steps.prepare(nothing)
    cause = first_cause(caught.value)
    assert isinstance(cause, DeadlineError)
    assert str(cause).startswith("external/a: step 1 (PREPARE) did not end within 0.05 s")
    done = [event for event in events if isinstance(event, DeviceStepDone)]
    assert [event.error for event in done] == ["step 1 (PREPARE) did not end within 0.05 s"]


async def test_a_time_out_of_a_controllers_own_is_no_deadline() -> None:
    """TRANSFER has none for a device by itself."""

    class Waits(Fake):
        async def transfer(self, here: Here) -> None:
            del here
            raise TimeoutError

    device_steps, _ = conduct(Waits("a", Plan()))
    with pytest.raises(BaseExceptionGroup) as caught:
        await device_steps.transfer()
    cause = first_cause(caught.value)
    assert isinstance(cause, DeviceError)
    assert cause.message == "it took too long"
    assert "the way" in cause.remedy


async def test_a_device_that_fails_at_test_refuses_and_the_others_are_still_asked() -> None:
    good = Plan()
    device_steps, _ = conduct(Fake("bad", Plan(fails="test")), Fake("good", good))
    refusals = await device_steps.test()
    assert [(r.device, r.reason) for r in refusals] == [("external/bad", "test failed")]
    assert good.calls == ["test"]


async def test_let_go_collects_what_is_left() -> None:
    device_steps, _ = conduct(Fake("a", Plan(fails="let_go")), Fake("b", Plan()))
    assert await device_steps.let_go() == ["external/a is not cleaned up: let_go failed"]


async def test_what_another_process_began_is_recovered() -> None:
    plan = Plan()
    device_steps, _ = conduct(Fake("a", plan))
    device_steps.reattach(Step.PREPARE, {})
    await device_steps.recover()
    assert plan.told == [Step.PREPARE]
