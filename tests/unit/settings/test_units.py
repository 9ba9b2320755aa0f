from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entourage.settings.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("2 min", 120.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("1h 30m 5s", 5405.0),
        ("1d", 86400.0),
        ("90", 90.0),
        (" 0.5 ", 0.5),
        (".5s", 0.5),
        ("100us", 0.0001),
        ("100µs", 0.0001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512K", 512 << 10),
        ("256M", 256 << 20),
        ("256MiB", 256 << 20),
        ("256mib", 256 << 20),
        ("10G", 10 << 30),
        ("10 GiB", 10 << 30),
        ("1GB", 10**9),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0),
        ("100MiB/s", 100 << 20),
        ("100M", 100 << 20),
        ("10G", 10 << 30),
        ("10GB/s", 10**10),
        ("1Gbit/s", 125_000_000),
        ("1 Gbit", 125_000_000),
        ("800kbit/s", 100_000),
        ("8bit/s", 1),
        ("5B/s", 5),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", " ", "5 parsecs", "1e9", "-1s", "s", "1h30", "1s1", "٣s", "inf"]
)
def test_what_is_no_duration_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="250ms"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "M", "-1M", "1X", "1MM", "1 M B", "1Mbit", "٣M", "9" * 5000])
def test_what_is_no_size_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="256M"):
        parse_size(text)


def test_a_size_is_a_whole_number_of_bytes() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("1.0001K")


@pytest.mark.parametrize("text", ["", "fast", "-1M/s", "1M/h", "1M/s/s", "1Mbps"])
def test_what_is_no_rate_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="100MiB/s"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12.3 ms"),
        (0.25, "250 ms"),
        (0.99996, "1 s"),
        (1.5, "1.5 s"),
        (59.96, "1 min"),
        (61, "1 min 1 s"),
        (3725, "1 h 2 min"),
        (604800, "7 d"),
        (-2, "-2 s"),
        (math.inf, "for ever"),
        (math.nan, "?"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1023.9 * 1024, "1 MiB"),
        (10 << 30, "10 GiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_size(size) == text
    assert format_rate(size) == f"{text}/s"


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_rate):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value >= 0
        assert math.isfinite(value)


@settings(deadline=None)
@given(st.integers(0, 1 << 50))
def test_sizes_and_rates_in_plain_bytes_are_themselves(size: int) -> None:
    assert parse_size(str(size)) == size
    assert parse_rate(str(size)) == size


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1e9))
@example(93599.0)  # 1 d 1 h 59 min 59 s
def test_what_is_shown_of_a_duration_can_be_read(seconds: float) -> None:
    """Two units of it: what is left out is the most of just over a day and an hour."""
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.04, abs=1e-6)
