"""The small pieces that everything shown is made of: harmless text, figures, bars."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from entourage.settings.units import format_duration, format_rate, format_size

__all__ = [
    "ASCII",
    "UNICODE",
    "Glyphs",
    "bar",
    "clean",
    "duration",
    "escaped",
    "joined",
    "rate",
    "size",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Glyphs:
    """The signs that are drawn; a terminal that cannot show them gets plain ones."""

    done: str
    failed: str
    mark: str
    full: str
    left: str
    right: str
    grid: str
    axis: tuple[str, str, str, str]
    bar: tuple[str, str, str]
    spinner: str
    arrow: str
    dash: str
    ellipsis: str


UNICODE = Glyphs(
    done="✓",
    failed="✗",
    mark="◆",
    full="█",
    left="▌",
    right="▐",
    grid="·",
    axis=("├", "─", "┼", "┤"),
    bar=("━", "╸", "─"),
    spinner="⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏",
    arrow="→",
    dash="–",  # noqa: RUF001 - a dash is meant
    ellipsis="…",
)
ASCII = Glyphs(
    done="ok",
    failed="failed",
    mark="*",
    full="#",
    left="#",
    right="#",
    grid=".",
    axis=("|", "-", "+", "|"),
    bar=("#", "#", "."),
    spinner="|/-\\",
    arrow="->",
    dash="-",
    ellipsis="...",
)


def clean(text: str) -> str:
    r"""The text without anything that a terminal would obey, on one line.

    A name may hold what moves the cursor or turns the writing direction: it is shown as ``\x9b``.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def escaped(text: str, *, pairs: bool) -> str:
    r"""The same, in a way that JSON and TOML read back: inside of strings, as ``\u009b``.

    Args:
        text: One line of a document whose only odd characters are inside of strings.
        pairs: Write what lies beyond U+FFFF as JSON does (two halves), not as TOML does.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char, pairs=pairs) for char in text)


def _escape(char: str, *, pairs: bool) -> str:
    if ord(char) <= 0xFFFF:  # noqa: PLR2004 - the last one that four digits can name
        return f"\\u{ord(char):04x}"
    if not pairs:
        return f"\\U{ord(char):08x}"
    high, low = divmod(ord(char) - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def duration(seconds: float) -> str:
    """``250 ms``, ``1.5 s``, ``2 min 5 s``."""
    return format_duration(seconds)


def size(value: float) -> str:
    """``1.5 GiB``."""
    return format_size(value)


def rate(value: float) -> str:
    """``100 MiB/s``."""
    return format_rate(value)


def joined(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def bar(part: float, width: int, glyphs: Glyphs) -> tuple[str, str]:
    """What is filled and what is not of a bar that is ``part`` (0 … 1) full."""
    full, half, empty = glyphs.bar
    halves = round(min(max(part, 0.0), 1.0) * width * 2)
    filled = full * (halves // 2) + (half if halves % 2 else "")
    return filled, empty * (width - len(filled))
