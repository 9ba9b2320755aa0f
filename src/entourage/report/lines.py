"""Events as plain lines: what scrolls above the live display, or is all there is without one."""

from __future__ import annotations

import re
from typing import Final

from entourage.events import (
    AnyEvent,
    CopyProgress,
    DeviceRecovered,
    DeviceStepDone,
    GoSent,
    GuestResumed,
    GuestStopped,
    MigrationStarted,
    PolicyChanged,
    RollbackStarted,
    StepDone,
    StepStarted,
    ToolSaid,
    Warned,
)
from entourage.report.text import clean, duration, joined, rate, size
from entourage.steps import Step

_EVERY: Final = 10.0
_TRACE: Final = re.compile(r"\++ ")
"""How a line of ``set -x`` begins: xend's own tools have hundreds, from Xen 3.3 on."""


def note(event: AnyEvent) -> str | None:
    """The line for what a person should read even beside the live display; None for the rest."""
    match event:
        case Warned():
            where = " on ".join(part for part in (event.device, event.host) if part)
            return clean(
                f"warning: {where}: {event.message}" if where else f"warning: {event.message}"
            )
        case ToolSaid() if not _TRACE.match(event.line):
            return _said(event)
        case _:
            return None


def _said(event: ToolSaid) -> str:
    return clean(f"{event.device} {event.step.name}: {event.line}")


class Teller:
    """Turns events into lines, one for each that means something.

    Args:
        verbose: Also each device in each step, and the convergence policy.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._told_at: dict[str, float] = {}

    def tell(self, event: AnyEvent) -> str | None:
        """The line for this event; None where there is nothing to say."""
        line = note(event) or self._plain(event) or (self._detail(event) if self._verbose else None)
        return f"{event.at:9.3f}  {clean(line)}" if line else None

    def _plain(self, event: AnyEvent) -> str | None:
        match event:
            case MigrationStarted():
                devices = joined(event.devices) if event.devices else "no devices"
                return f"{event.domain}: {event.source} -> {event.target}, with {devices}"
            case StepStarted(step=Step.TEST | Step.PREPARE):
                return f"{event.step.name} begins"
            case StepDone():
                return f"{event.step.name} done in {duration(event.seconds)}"
            case DeviceStepDone() if event.error:
                return f"{event.device} {event.step.name} failed: {event.error}"
            case CopyProgress():
                return self._copy(event)
            case GuestStopped():
                return "the guest stands still"
            case GoSent():
                return "handed over"
            case GuestResumed():
                return (
                    f"the guest runs on {event.host}; it stood still for {duration(event.blackout)}"
                )
            case RollbackStarted():
                return f"going back: {event.reason}"
            case DeviceRecovered():
                result = f"is not put back: {event.error}" if event.error else "is put back"
                return f"{event.device} {result} ({duration(event.seconds)})"
            case _:
                return None

    def _copy(self, event: CopyProgress) -> str | None:
        """Every ten seconds is often enough for a log."""
        if event.at - self._told_at.get(event.what, 0.0) < _EVERY:
            return None
        self._told_at[event.what] = event.at
        if event.what == "memory" and event.iteration > 1:
            return f"memory: round {event.iteration}, dirtied {rate(event.dirty_rate)}"
        words = [f"{event.what}: {size(event.done)} of {size(event.total)}"]
        if event.rate:
            words.append(rate(event.rate))
        if event.eta:
            words.append(f"{duration(event.eta)} left")
        return ", ".join(words)

    def _detail(self, event: AnyEvent) -> str | None:
        match event:
            case DeviceStepDone():
                return f"{event.device} {event.step.name} {duration(event.seconds)}"
            case ToolSaid():
                return _said(event)
            case PolicyChanged():
                throttle = ", slowing the guest down" if event.throttle else ""
                return (
                    f"convergence stage {event.stage}: up to {duration(event.downtime_limit)}"
                    f" of blackout{throttle}"
                )
            case _:
                return None
