"""The blackout's stretches: nothing of it is without a name."""

from __future__ import annotations

import time

from entourage.clock import Clock
from entourage.events import AnyEvent, GuestResumed, GuestStopped, SpanDone
from entourage.source.blackout import Blackout


def test_a_stretch_without_a_beginning_follows_the_one_before() -> None:
    events: list[AnyEvent] = []
    clock = Clock()
    blackout = Blackout(clock, events.append, None)
    blackout.begin(time.monotonic_ns())
    blackout.name("heard", "a", until=clock.now())
    with blackout.span("memory", "a"):
        pass
    blackout.name("GO", "b", until=clock.now())
    blackout.end(clock.now(), "b")
    stopped, heard, memory, go, resumed = events
    assert isinstance(stopped, GuestStopped)
    assert isinstance(heard, SpanDone)
    assert isinstance(memory, SpanDone)
    assert isinstance(go, SpanDone)
    assert isinstance(resumed, GuestResumed)
    assert heard.start == stopped.at
    assert heard.at <= memory.start <= memory.at
    assert go.start == memory.at


def test_a_stretch_that_ended_early_does_not_move_the_next_ones_beginning_back() -> None:
    events: list[AnyEvent] = []
    blackout = Blackout(Clock(), events.append, None)
    blackout.name("long", "a", since=1.0, until=5.0)
    blackout.name("beside it", "a", since=1.0, until=2.0)
    blackout.name("after both", "b", until=6.0)
    last = events[-1]
    assert isinstance(last, SpanDone)
    assert (last.start, last.at) == (5.0, 6.0)
    # Another host's clock is known to within half a round trip: never less than nothing.
    blackout.name("before it began", "b", until=5.5)
    late = events[-1]
    assert isinstance(late, SpanDone)
    assert late.start == late.at == 5.5
