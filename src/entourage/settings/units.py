"""Durations, sizes and rates as people write them: ``250ms``, ``10G``, ``100MiB/s``.

A plain number is seconds, bytes, or bytes a second. ``K M G T P`` and ``KiB MiB …`` are powers of
1024, as in QEMU and xl; ``KB MB …`` are powers of 1000; ``kbit Mbit …`` are bits, powers of 1000.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

DURATION_FORM = 'a number of seconds, or a text as "250ms", "1.5s", "2m", "1h", "1h30m"'
SIZE_FORM = 'a number of bytes, or a text as "512K", "256M", "10GiB", "1GB"'
RATE_FORM = 'a number of bytes a second, or a text as "100MiB/s", "10G", "1Gbit/s"'

_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
_SECONDS = {
    "us": Fraction(1, 1_000_000),
    "µs": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_PART = re.compile(rf"({_NUMBER})\s*([a-zµ]*)\s*", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER})\s*([kmgtp]?)(i?b)?", re.ASCII | re.IGNORECASE)
_RATE = re.compile(rf"({_NUMBER})\s*([kmgtp]?)(bits?|i?b)?\s*(?:/\s*s)?", re.ASCII | re.IGNORECASE)
# Longer than any sane value; an int of a million digits would take minutes to read.
_LONGEST = 64


def parse_duration(text: str) -> float:
    """Read a duration.

    Args:
        text: ``250ms``, ``1.5s``, ``2m``, ``1h30m``, ``90`` (seconds).

    Returns:
        Seconds.

    Raises:
        ValueError: It is none; the message says what is allowed.
    """
    rest = text.strip()
    if re.fullmatch(_NUMBER, rest, re.ASCII) and len(rest) <= _LONGEST:
        return float(rest)
    total, at = Fraction(0), 0
    while at < len(rest) <= _LONGEST:
        part = _PART.match(rest, at)
        if part is None or part[2] not in _SECONDS:
            break
        total, at = total + Fraction(part[1]) * _SECONDS[part[2]], part.end()
    if not rest or at < len(rest):
        raise ValueError(f"{_shown(text)} is no duration: write {DURATION_FORM}")
    return float(total)


def parse_size(text: str) -> int:
    """Read a size.

    Args:
        text: ``256M``, ``10GiB``, ``1GB``, ``4096`` (bytes).

    Returns:
        Bytes.

    Raises:
        ValueError: It is none, or no whole number of bytes; the message says what is allowed.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError(f"{_shown(text)} is no size: write {SIZE_FORM}")
    base = 1000 if match[2] and (match[3] or "").lower() == "b" else 1024
    size = Fraction(match[1]) * base ** _POWERS[match[2].lower()]
    if size.denominator != 1:
        raise ValueError(f"{_shown(text)} is no whole number of bytes")
    return int(size)


def parse_rate(text: str) -> int:
    """Read a rate.

    Args:
        text: ``100MiB/s``, ``10G``, ``1Gbit/s``, ``0`` (bytes a second).

    Returns:
        Bytes a second, rounded to a whole number.

    Raises:
        ValueError: It is none; the message says what is allowed.
    """
    match = _RATE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError(f"{_shown(text)} is no rate: write {RATE_FORM}")
    kind = (match[3] or "").lower()
    bits = kind.startswith("bit")
    base = 1000 if bits or (match[2] and kind == "b") else 1024
    rate = Fraction(match[1]) * base ** _POWERS[match[2].lower()]
    return round(rate / 8 if bits else rate)


def format_duration(seconds: float) -> str:
    """A duration for people: ``250 ms``, ``1.5 s``, ``2 min 5 s``, ``1 h 30 min``."""
    if not math.isfinite(seconds):
        return "for ever" if seconds > 0 else "?"
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if round(seconds * 1000, 1) < 1000:  # noqa: PLR2004 - ms in a second
        return f"{_figure(seconds * 1000)} ms"
    if round(seconds, 1) < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{_figure(seconds)} s"
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{n} {unit}" for n, unit in zip((days, hours, minutes, rest), ("d", "h", "min", "s"),
                                              strict=True) if n]  # fmt: skip
    return " ".join(parts[:2])


def format_size(size: float) -> str:
    """A size for people, powers of 1024: ``0 B``, ``1.5 KiB``, ``10 GiB``."""
    value, units = float(size), ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    for unit in units[:-1]:
        if round(abs(value)) < 1024:  # noqa: PLR2004 - the next unit begins here
            return f"{_figure(value)} {unit}"
        value /= 1024
    return f"{_figure(value)} {units[-1]}"


def format_rate(rate: float) -> str:
    """A rate for people: ``100 MiB/s``."""
    return f"{format_size(rate)}/s"


def _figure(value: float) -> str:
    """Three significant figures at most, never an exponent."""
    if abs(value) >= 100:  # noqa: PLR2004 - three figures before the point
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else "0"  # noqa: PLR2004


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
