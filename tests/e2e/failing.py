"""A device fails in a step, on either host; the guest stays, and each recovers as it has to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.e2e.run import far
from tests.e2e.world import FAULTY, World

STEPS = {"prepare": 1, "transfer": 2, "sync": 3}
# The ways to fail take turns.
KINDS = ("error", "bug", "os", "early")


def fail(fault: str, side: str) -> tuple[list[str], dict[str, str]]:
    """Options and environment of a migration in which something fails."""
    if side == "source":
        return [], {"FAULT_ASK": "1", "FAULT": fault}
    return ["--remote-command", far(PYTHONPATH=str(FAULTY), FAULT=fault)], {"FAULT_ASK": "1"}


@dataclass(frozen=True)
class Fault:
    """A fault in a device.

    Attributes:
        cls: The class of the device.
        half: The step that it fails in, as its controllers call it.
        side: ``source`` or ``target``.
        kind: How it fails.
    """

    cls: str
    half: str
    side: str
    kind: str

    def __str__(self) -> str:
        return f"{self.cls}-{self.half}-{self.side}"


def fails_in_device(world: World, devices: Mapping[str, str], fault: Fault) -> None:
    """One device fails in one step; all are told the last step that each came through.

    Args:
        world: Both hosts.
        devices: The label of the device of each class.
        fault: The one that fails, where and how.
    """
    half = fault.half
    name = half if fault.side == "source" else f"{half}_there"
    options, env = fail(f"{fault.cls} {name} {fault.kind}", fault.side)
    run = world.migrate(*options, env=env)
    world.stayed(run)
    assert "this fault is injected" in run.finished["message"], str(run)
    step = STEPS.get(half, 1)
    failed = [one for one in run.of("device-step-done") if "injected" in one["error"]]
    assert [(one["device"], one["step"]) for one in failed] == [(devices[fault.cls], step)], str(
        run
    )
    # Each is told the last step that it came through: the one that failed, the step before.
    assert set(run.recovered) == set(devices.values())
    assert run.recovered[devices[fault.cls]] == step - 1
    assert set(run.recovered.values()) <= {step - 1, step}
