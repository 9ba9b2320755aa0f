from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from entourage.events import (
    AnyEvent,
    CopyProgress,
    GuestResumed,
    GuestStopped,
    SpanDone,
    ToolSaid,
)
from entourage.report.jsonl import JsonLines
from entourage.report.lines import Teller
from entourage.report.outlet import Outlet
from entourage.report.progress import (
    LiveDisplay,
    PlainDisplay,
    console_for,
    glyphs_for,
    open_display,
)
from entourage.report.stream import Recorder, Stream
from entourage.report.text import ASCII
from entourage.steps import Step
from tests.unit.report.test_samples import rolled_back, started, success, warned


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Outlet, list[bytes]]]:
    """An outlet to a terminal, and what the terminal got."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    ours, theirs = os.openpty()
    got: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                got.append(data)
        except OSError:
            return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
        yield Outlet(stream), got
    os.close(ours)
    reader.join(5)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settled(outlet: Outlet, got: list[bytes]) -> str:
    """What the terminal has got once everything has come through."""
    outlet.close()
    before = -1
    while before != (before := sum(map(len, got))) or not before:
        time.sleep(0.02)
    return b"".join(got).decode()


def test_in_the_blackout_nobody_hears_anything() -> None:
    heard: list[AnyEvent] = []
    stream = Stream(heard.append)
    events = success()
    stop = next(n for n, event in enumerate(events) if isinstance(event, GuestStopped))
    resume = next(n for n, event in enumerate(events) if isinstance(event, GuestResumed))
    for number, event in enumerate(events):
        stream(event)
        assert stream.held == (stop <= number < resume)
        assert heard == events[: stop if stop <= number < resume else number + 1]
    assert heard == events


def test_what_is_held_is_released_at_the_end() -> None:
    heard: list[AnyEvent] = []
    stream = Stream(heard.append)
    for event in (GuestStopped(at=1.0), success()[-1]):
        stream(event)
    assert len(heard) == 2
    stream(GuestStopped(at=1.0))
    stream.release()
    assert len(heard) == 3


def test_a_migration_that_is_not_live_holds_nothing() -> None:
    heard: list[AnyEvent] = []
    stream = Stream(heard.append, hold=False)
    stream(GuestStopped(at=1.0))
    assert heard
    assert not stream.held


def test_a_listener_that_fails_harms_nobody() -> None:
    heard: list[AnyEvent] = []

    def broken(_: AnyEvent) -> None:
        raise ValueError("a bug")

    stream = Stream(broken, heard.append)
    for event in success():
        stream(event)
    assert heard == success()
    assert [str(error) for error in stream.failures] == ["a bug"]


def test_the_recorder_keeps_the_newest_of_each_copy() -> None:
    recorder = Recorder()
    for event in success():
        recorder(event)
    copies = [event for event in recorder.events if isinstance(event, CopyProgress)]
    assert [(copy.what, copy.at) for copy in copies] == [("block/disk0", 8.5), ("memory", 11.0)]
    assert recorder.finished == success()[-1]
    assert Recorder().finished is None


def test_json_lines() -> None:
    file = io.StringIO()
    write = JsonLines(Outlet(file))
    for event in [*success(), warned("\x9b2J\u202e\U000e0001")]:
        write(event)
    lines = file.getvalue().split("\n")
    assert lines.pop() == ""
    assert all(line.isprintable() for line in lines)
    decoded = [json.loads(line) for line in lines]
    assert [line["event"] for line in decoded[:2]] == ["migration-started", "step-started"]
    assert decoded[-1]["message"] == "\x9b2J\u202e\U000e0001"


def test_the_display_that_suits(terminal: tuple[Outlet, list[bytes]], tmp_path: Path) -> None:
    assert isinstance(open_display(terminal[0]), LiveDisplay)
    with (tmp_path / "log").open("w") as log:
        assert isinstance(open_display(Outlet(log)), PlainDisplay)


def test_a_dumb_terminal_gets_lines(
    terminal: tuple[Outlet, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_display(terminal[0]), PlainDisplay)


def test_signs_follow_the_encoding() -> None:
    assert glyphs_for(Outlet(io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))) is ASCII


def test_the_live_display(terminal: tuple[Outlet, list[bytes]]) -> None:
    outlet, got = terminal
    clock = Clock()
    display = LiveDisplay(outlet, console_for(outlet), clock=clock)
    display.tick()
    assert not got  # ssh may ask for a password now
    for event in rolled_back():
        display(event)
        clock.now += 1.0
        while outlet.backlog:
            time.sleep(0.001)
        display.tick()
    display.say("entourage: going back")
    display.close()
    text = settled(outlet, got)
    assert "block/disk0" in text
    assert "tpm/tpm0 TRANSFER: Error: no licence" in text  # scrolled by above
    assert "entourage: going back" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back


def test_taking_events_draws_nothing(terminal: tuple[Outlet, list[bytes]]) -> None:
    outlet, got = terminal
    before = threading.active_count()  # another test's may live on
    display = LiveDisplay(outlet, console_for(outlet))
    for event in rolled_back():
        display(event)
    time.sleep(0.05)
    assert not got
    assert threading.active_count() <= before  # nobody draws in the background


def test_it_draws_no_faster_than_it_should(terminal: tuple[Outlet, list[bytes]]) -> None:
    outlet, got = terminal
    clock = Clock()
    display = LiveDisplay(outlet, console_for(outlet), clock=clock)
    display(started())
    for _ in range(50):
        display.tick()
        clock.now += 0.001
    display.close()
    assert settled(outlet, got).count("reaching the other host") == 2  # and once more at the end


def test_a_tool_that_floods_is_cut_short(terminal: tuple[Outlet, list[bytes]]) -> None:
    outlet, got = terminal
    display = LiveDisplay(outlet, console_for(outlet))
    display(started())
    for number in range(10_000):
        display(warned(f"line {number}"))
    display.close()
    text = settled(outlet, got)
    assert "(9980 lines more)" in text
    assert "line 9999" in text


def test_plain_display() -> None:
    file = io.StringIO()
    display = PlainDisplay(Outlet(file), tell=Teller().tell)
    for event in success():
        display(event)
    display.tick()
    display.say("entourage: x")
    display.close()
    assert file.getvalue().splitlines()[-2:] == [
        "   12.032  the guest runs on b; it stood still for 32 ms",
        "entourage: x",
    ]


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
        outlet = Outlet(stream)
        for _ in range(3):
            outlet.write("x" * 100_000)
        outlet.close()
        assert outlet.broken
        assert outlet.write("more") == 4
        outlet.close()


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
        outlet = Outlet(stream)
        lines = JsonLines(outlet)
        for number in range(3000):
            lines(SpanDone(at=1.0, name="x" * 100, host=str(number), start=0.0))
            lines(CopyProgress(at=1.0, what="memory", done=number, total=1))
        assert outlet.backlog > 1000
        got = bytearray()
        closing = threading.Thread(target=outlet.close)
        closing.start()
        while got.count(b"span-done") < 3000:  # none is lost
            got += os.read(reading, 65536)
        closing.join(5)
        assert got.count(b"copy-progress") < 3000  # these may be
    os.close(reading)


def test_a_descriptor_that_does_not_block_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
        outlet = Outlet(stream)
        outlet.write("x" * 200_000)
        got = 0
        while got < 200_000:
            got += len(os.read(reading, 65536))
        outlet.close()
        assert not outlet.broken
    os.close(reading)


def test_no_stream_at_all() -> None:
    outlet = Outlet(None)
    assert outlet.write("x") == 1
    assert not outlet.isatty()
    outlet.close()
    with pytest.raises(OSError, match="no file"):
        outlet.fileno()


def test_what_a_tool_traces_is_shown_only_with_verbose() -> None:
    """``set -x`` in it: hundreds of lines."""
    said = ToolSaid(at=1.0, device="tpm/tpm0", step=Step.PREPARE, line="busy: trying again")
    traced = ToolSaid(at=1.0, device="tpm/tpm0", step=Step.PREPARE, line="++ echo done")
    assert [bool(Teller().tell(event)) for event in (said, traced)] == [True, False]
    assert "++ echo done" in (Teller(verbose=True).tell(traced) or "")
