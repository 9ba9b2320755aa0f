"""What is known of a migration so far, gathered from its events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

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
    MigrationPlanned,
    MigrationStarted,
    RollbackStarted,
    StepDone,
    StepStarted,
)
from entourage.steps import Step

STEPS: Final = (Step.TEST, Step.PREPARE, Step.TRANSFER, Step.SYNC)


@dataclasses.dataclass(slots=True)
class Cell:
    """One device in one step; ``seconds`` is None while it is under way."""

    started: float
    seconds: float | None = None
    error: str = ""


class View:
    """The state of a migration as its events tell it.

    Attributes:
        started: Who moves where; None before the target was reached.
        devices: Label → step → how it went.
        steps: How long each step took for all devices.
        step: The step under way or last done.
        copies: ``memory`` or a label → how far its copy is.
        stopped, landed, go, resumed: The moments of the switchover, where they have come.
        plan, refusals, rollback, recovered, finished: What the events of these names said.
    """

    def __init__(self) -> None:
        self.started: MigrationStarted | None = None
        self.devices: dict[str, dict[Step, Cell]] = {}
        self.steps: dict[Step, float] = {}
        self.step = Step.NONE
        self.copies: dict[str, CopyProgress] = {}
        self.stopped: GuestStopped | None = None
        self.landed: MemoryLanded | None = None
        self.go: GoSent | None = None
        self.resumed: GuestResumed | None = None
        self.plan: MigrationPlanned | None = None
        self.refusals: list[DeviceRefused] = []
        self.rollback: RollbackStarted | None = None
        self.recovered: list[DeviceRecovered] = []
        self.finished: Finished | None = None

    @classmethod
    def of(cls, events: Iterable[AnyEvent]) -> View:
        """What all these events together say."""
        view = cls()
        for event in events:
            view.apply(event)
        return view

    def apply(self, event: AnyEvent) -> None:
        """Take one event in."""
        match event:
            case MigrationStarted():
                self.started = event
                self.devices = {label: {} for label in event.devices}
            case StepStarted():
                self.step = event.step
            case StepDone():
                self.steps[event.step] = event.seconds
            case DeviceStepStarted():
                self._cells(event.device)[event.step] = Cell(event.at)
            case DeviceStepDone():
                self._cells(event.device)[event.step] = Cell(
                    event.at - event.seconds, event.seconds, event.error
                )
            case CopyProgress():
                self.copies[event.what] = event
            case GuestStopped():
                self.stopped, self.landed, self.go, self.resumed = event, None, None, None
            case MemoryLanded():
                self.landed = event
            case GoSent():
                self.go = event
            case GuestResumed():
                self.resumed = event
            case MigrationPlanned():
                self.plan = event
            case DeviceRefused():
                self.refusals.append(event)
            case RollbackStarted():
                self.rollback = event
            case DeviceRecovered():
                self.recovered.append(event)
            case Finished():
                self.finished = event
            case _:
                pass

    @property
    def phase(self) -> str:
        """What happens now, in a few words."""
        if self.rollback is not None:
            return f"going back: {self.rollback.reason}"
        if self.resumed is not None:
            return f"it runs on {self.resumed.host}; cleaning up"
        if self.go is not None:
            return "handing over"
        if self.landed is not None:
            return "memory is there; waiting for the devices"
        if self.stopped is not None:
            return "the guest stands still: moving the rest"
        memory = self.copies.get("memory")
        if self.step == Step.PREPARE and Step.PREPARE in self.steps:
            nth = f", round {memory.iteration}" if memory and memory.iteration > 1 else ""
            return f"copying memory{nth}"
        if self.step == Step.PREPARE:
            return "preparing the devices"
        return "asking the devices" if self.step == Step.TEST else "reaching the other host"

    def gave_up(self, label: str, cell: Cell) -> bool:
        """Whether a device stopped in a step only because another one had failed."""
        culprit = self.rollback.device if self.rollback else label
        return bool(cell.error) and culprit != label

    def _cells(self, label: str) -> dict[Step, Cell]:
        return self.devices.setdefault(label, {})
