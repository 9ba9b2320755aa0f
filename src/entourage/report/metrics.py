"""The figures of a migration, from its events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from entourage.events import AnyEvent, DeviceStepDone, SpanDone
from entourage.report.view import View
from entourage.steps import Step

_IN_BLACKOUT: Final = (Step.TRANSFER, Step.SYNC)


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """Something that took its time in the blackout; seconds since the guest stopped.

    Attributes:
        kind: A device in a step, a named stretch of the engine's own, or a moment (no length).
    """

    name: str
    host: str
    start: float
    end: float
    kind: Literal["device", "span", "mark"]
    error: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True, slots=True)
class Blackout:
    """From the guest's stop to its resume.

    Attributes:
        seconds: How long; up to the last event where the guest did not resume.
        resumed: The host that resumed it; empty where none did.
        stretches: What happened in it, in the order of its beginning.
        unnamed: Seconds in which nothing that has a name was under way.
    """

    seconds: float
    resumed: str
    stretches: tuple[Stretch, ...]
    unnamed: float


def blackout(events: Iterable[AnyEvent]) -> Blackout | None:
    """What happened between the guest's stop and its resume; None where it never stopped."""
    events = tuple(events)
    view = View.of(events)
    if view.stopped is None:
        return None
    stop = view.stopped.at
    end = view.resumed.at if view.resumed else max(event.at for event in events)
    source = view.started.source if view.started else ""
    found = [
        Stretch(
            one.name, one.host, max(one.start, stop) - stop, min(one.end, end) - stop,
            one.kind, one.error,
        )
        for one in (*_spans(events, source), *_marks(view, source))
        if (one.end > stop or one.kind == "mark") and one.start <= end
    ]  # fmt: skip
    found.sort(key=lambda one: (one.start, one.end))
    return Blackout(
        seconds=end - stop,
        resumed=view.resumed.host if view.resumed else "",
        stretches=tuple(found),
        unnamed=_unnamed(found, end - stop),
    )


def _spans(events: Sequence[AnyEvent], source: str) -> Iterable[Stretch]:
    for event in events:
        if isinstance(event, SpanDone):
            yield Stretch(event.name, event.host, event.start, event.at, "span")
        elif isinstance(event, DeviceStepDone) and event.step in _IN_BLACKOUT:
            name = f"{event.device} {event.step.name}"
            start = event.at - event.seconds
            yield Stretch(name, source, start, event.at, "device", event.error)


def _marks(view: View, source: str) -> Iterable[Stretch]:
    for event, name, host in (
        (view.landed, "memory has landed", source),
        (view.go, "GO", source),
        (view.resumed, "the guest runs", view.resumed.host if view.resumed else ""),
    ):
        if event is not None:
            yield Stretch(name, host, event.at, event.at, "mark")


def _unnamed(stretches: Sequence[Stretch], total: float) -> float:
    """Seconds that no stretch covers; they are sorted by their beginning."""
    reached = gap = 0.0
    for one in stretches:
        if one.kind != "mark":
            gap += max(0.0, one.start - reached)
            reached = max(reached, one.end)
    return gap + max(0.0, total - reached)
