from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entourage.events import AnyEvent, GuestResumed, GuestStopped, SpanDone
from entourage.report.metrics import blackout
from entourage.report.text import ASCII
from entourage.report.timeline import timeline
from entourage.steps import Step
from tests.unit.report.test_samples import STOP, rolled_back, started, step, success, until_stop


def drawn(events: list[AnyEvent], width: int = 80) -> list[str]:
    text = timeline(events, width=width)
    assert text is not None
    return text.plain.splitlines()


def test_nothing_is_drawn_without_a_blackout() -> None:
    assert timeline([started()]) is None
    assert timeline([]) is None
    assert timeline([GuestStopped(at=1.0), GuestResumed(at=1.0, host="b", blackout=0.0)]) is None


def test_a_success_is_drawn() -> None:
    lines = drawn(success())
    assert lines[0] == "Blackout 32 ms  (2.5 ms of it without a name)"
    assert lines[1].split() == ["0", "ms", "10", "20", "30"]
    names = [line[3:25].strip() for line in lines[3:]]
    assert names[0] == "net/net0 TRANSFER"
    assert names[-1] == "the guest runs"
    assert names.index("memory has landed") < names.index("GO") < names.index("journal: GO")
    hosts = {line[3:25].strip(): line[0] for line in lines[3:]}
    assert hosts["last memory"] == "a"
    assert hosts["devices load"] == hosts["journal: GO"] == "b"


def test_bars_stand_where_and_as_long_as_things_took() -> None:
    events: list[AnyEvent] = [
        started(),
        GuestStopped(at=1.0),
        SpanDone(at=1.5, name="first", host="a", start=1.0),
        SpanDone(at=2.0, name="second", host="b", start=1.5),
        GuestResumed(at=2.0, host="b", blackout=1.0),
    ]
    lines = drawn(events, 80)
    first = next(line for line in lines if " first " in line)
    second = next(line for line in lines if " second " in line)
    assert first.count("█") == second.count("█") == (first + second).count("█") / 2
    assert first.index("▌") == second.index("▐")  # half a column each
    assert first.endswith(" 500.0")
    assert "without a name" not in lines[0]


def test_a_failed_step_is_marked_and_a_rollback_ends_at_the_source() -> None:
    lines = drawn(rolled_back())
    failed = next(line for line in lines if "tpm/tpm0 TRANSFER" in line)
    assert failed.endswith("30.0 ✗")
    assert lines[-1].startswith("a  the guest runs")


def test_a_guest_that_did_not_resume_is_said_so() -> None:
    assert "has not resumed" in drawn([*until_stop(), *step("net/net0", Step.TRANSFER, STOP, 1)])[0]


def test_what_began_before_the_stop_is_cut_off() -> None:
    events = [*success(), SpanDone(at=STOP + 0.01, name="early", host="a", start=STOP - 5)]
    dark = blackout(events)
    assert dark is not None
    early = next(one for one in dark.stretches if one.name == "early")
    assert (early.start, round(early.end, 6)) == (0.0, 0.01)


def test_many_devices_leave_the_longest() -> None:
    many: list[AnyEvent] = []
    for number in range(64):
        many += step(f"external/dongle{number}", Step.TRANSFER, STOP, 0.0001 * (number + 1))
    lines = drawn([*until_stop(), *many, GuestResumed(at=STOP + 0.01, host="b", blackout=0.01)])
    assert len(lines) == 24 + 4
    assert any("dongle63 " in line for line in lines)
    assert not any("dongle2 " in line for line in lines)
    assert lines[-1].strip() == "and 41 shorter ones"
    assert any("the guest runs" in line for line in lines)


def test_it_can_be_drawn_without_unicode() -> None:
    text = timeline(success(), glyphs=ASCII)
    assert text is not None
    assert text.plain.isascii()


def test_names_cannot_break_the_terminal() -> None:
    span = SpanDone(at=STOP + 0.02, name="\x1b[2J[red]\u202e", host="\x9bx\r", start=STOP)
    lines = drawn([*success(), span])
    assert any("\\x1b[2J[red]\\u202e" in line for line in lines)
    assert all(line.isprintable() for line in lines)


@given(
    spans=st.lists(
        st.tuples(
            st.floats(0, 100, allow_subnormal=False),
            st.floats(0, 100, allow_subnormal=False),
            st.text(min_size=1, max_size=40),
        ),
        max_size=8,
    ),
    seconds=st.floats(1e-6, 1e4, allow_subnormal=False),
    width=st.integers(60, 200),
)
def test_it_always_fits(spans: list[tuple[float, float, str]], seconds: float, width: int) -> None:
    events: list[AnyEvent] = [started(), GuestStopped(at=0.0)]
    events += [
        SpanDone(at=start + length, name=name, host=name[::-1], start=start)
        for start, length, name in spans
    ]
    events.append(GuestResumed(at=seconds, host="b", blackout=seconds))
    text = timeline(events, width=width)
    assert text is not None
    for line in text.split("\n"):
        assert line.cell_len <= width
        assert line.plain.isprintable()


def test_what_has_no_name_in_the_blackout() -> None:
    dark = blackout(success())
    assert dark is not None
    assert dark.seconds == pytest.approx(0.032)
    assert dark.unnamed == pytest.approx(0.0025)
