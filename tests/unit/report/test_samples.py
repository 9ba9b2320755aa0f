"""Streams of events that the other tests draw; itself it tests that they are such streams."""

from __future__ import annotations

import msgspec
import pytest

from entourage.events import (
    AnyEvent,
    CopyProgress,
    DeviceRecovered,
    DeviceRefused,
    DeviceStepDone,
    DeviceStepStarted,
    Finished,
    GoSent,
    GuestResumed,
    GuestStopped,
    MemoryLanded,
    MigrationStarted,
    PolicyChanged,
    RollbackStarted,
    SpanDone,
    StepDone,
    StepStarted,
    ToolSaid,
    Warned,
)
from entourage.steps import Step

TEST, PREPARE, TRANSFER, SYNC = Step.TEST, Step.PREPARE, Step.TRANSFER, Step.SYNC
DEVICES = ("block/disk0", "net/net0", "tpm/tpm0")
STOP = 12.0


def started(domain: str = "web1", devices: tuple[str, ...] = DEVICES) -> MigrationStarted:
    return MigrationStarted(
        at=0.0,
        migration="4f0e",
        domain=domain,
        uuid="u",
        source="a",
        target="b",
        hypervisor="qemu",
        devices=devices,
        time="2026-01-01T00:00:00+00:00",
    )


def step(device: str, which: Step, start: float, seconds: float, error: str = "") -> list[AnyEvent]:
    return [
        DeviceStepStarted(at=start, device=device, step=which),
        DeviceStepDone(at=start + seconds, device=device, step=which, seconds=seconds, error=error),
    ]


def until_stop() -> list[AnyEvent]:
    return [
        started(),
        StepStarted(at=0.0, step=TEST),
        *step("block/disk0", TEST, 0.0, 0.010),
        *step("net/net0", TEST, 0.0, 0.020),
        *step("tpm/tpm0", TEST, 0.0, 0.040),
        StepDone(at=0.04, step=TEST, seconds=0.04),
        StepStarted(at=0.05, step=PREPARE),
        *step("net/net0", PREPARE, 0.05, 0.012),
        *step("tpm/tpm0", PREPARE, 0.05, 0.030),
        CopyProgress(at=2.0, what="block/disk0", done=512 << 20, total=2 << 30, rate=100 << 20),
        *step("block/disk0", PREPARE, 0.05, 8.4),
        StepDone(at=8.45, step=PREPARE, seconds=8.4),
        CopyProgress(at=8.5, what="block/disk0", done=2 << 30, total=2 << 30),
        CopyProgress(
            at=11.0, what="memory", done=540 << 20, total=512 << 20, dirty_rate=4 << 20, iteration=4
        ),
        PolicyChanged(at=11.1, stage=1, downtime_limit=0.1, throttle=True),
        GuestStopped(at=STOP),
        StepStarted(at=STOP, step=TRANSFER),
    ]


def success() -> list[AnyEvent]:
    return [
        *until_stop(),
        *step("net/net0", TRANSFER, STOP, 0.0002),
        *step("block/disk0", TRANSFER, STOP, 0.008),
        *step("tpm/tpm0", TRANSFER, STOP, 0.001),
        SpanDone(at=STOP + 0.020, name="last memory", host="a", start=STOP + 0.008),
        SpanDone(at=STOP + 0.023, name="devices load", host="b", start=STOP + 0.018),
        MemoryLanded(at=STOP + 0.0235),
        *step("block/disk0", SYNC, STOP + 0.008, 0.0004),
        *step("net/net0", SYNC, STOP + 0.008, 0.0001),
        *step("tpm/tpm0", SYNC, STOP + 0.008, 0.0001),
        StepDone(at=STOP + 0.024, step=SYNC, seconds=0.016),
        GoSent(at=STOP + 0.024),
        SpanDone(at=STOP + 0.029, name="journal: GO", host="b", start=STOP + 0.0245),
        SpanDone(at=STOP + 0.031, name="guest resumes", host="b", start=STOP + 0.029),
        GuestResumed(at=STOP + 0.032, host="b", blackout=0.032),
        Finished(at=13.1, outcome="moved", seconds=13.1, runs_on="b", blackout=0.032),
    ]


def rolled_back(reason: str = "the tool said Error: no licence") -> list[AnyEvent]:
    return [
        *until_stop(),
        *step("net/net0", TRANSFER, STOP, 0.0002),
        *step("block/disk0", TRANSFER, STOP, 0.008),
        ToolSaid(at=STOP + 0.01, device="tpm/tpm0", step=TRANSFER, line="Error: no licence"),
        *step("tpm/tpm0", TRANSFER, STOP, 0.030, reason),
        *step("net/net0", SYNC, STOP + 0.008, 0.022, "given up, because something else failed"),
        RollbackStarted(at=STOP + 0.030, reason=reason, device="tpm/tpm0", host="a"),
        GuestResumed(at=STOP + 0.034, host="a", blackout=0.034),
        DeviceRecovered(at=12.1, device="block/disk0", last_good=TRANSFER, seconds=0.05),
        DeviceRecovered(at=12.1, device="net/net0", last_good=TRANSFER, seconds=0.01),
        DeviceRecovered(
            at=12.1, device="tpm/tpm0", last_good=PREPARE, seconds=0.02, error="exit status 1"
        ),
        Finished(
            at=12.5,
            outcome="rolled-back",
            seconds=12.5,
            runs_on="a",
            blackout=0.034,
            message=reason,
            problems=("tpm/tpm0: exit status 1",),
        ),
    ]


def refused() -> list[AnyEvent]:
    return [
        started(),
        StepStarted(at=0.0, step=TEST),
        DeviceRefused(
            at=0.1,
            device="net/net0",
            host="b",
            reason="there is no bridge br0",
            remedy="--net br0=br1",
        ),
        DeviceRefused(
            at=0.1, device="tpm/tpm0", host="b", reason="swtpm is not installed", remedy=""
        ),
        Finished(at=0.2, outcome="refused", seconds=0.2, runs_on="a", message="refused"),
    ]


def warned(text: str) -> Warned:
    return Warned(at=1.0, message=text, device="block/disk0", host="b")


@pytest.mark.parametrize("events", [success(), rolled_back(), refused()])
def test_that_samples_survive_json(events: list[AnyEvent]) -> None:
    lines = [msgspec.json.encode(event) for event in events]
    assert [msgspec.json.decode(line, type=AnyEvent) for line in lines] == events
