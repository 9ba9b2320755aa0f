"""Writing results to standard output: plain text that a pipe can take too."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from entourage.report.outlet import Outlet
from entourage.report.text import clean, escaped


def put(*lines: str) -> None:
    """Write lines, with nothing in them that a terminal would obey."""
    _write([clean(line) for line in lines])


def put_json(value: Any) -> None:
    """Write a value as JSON that people can read too."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    _write([escaped(line, pairs=True) for line in text.split("\n")])


def put_toml(text: str) -> None:
    """Write TOML, so that it can be read back and still nothing in it moves the cursor."""
    _write([escaped(line, pairs=False) for line in text.rstrip("\n").split("\n")])


def _write(lines: Sequence[str]) -> None:
    """A reader that has gone (``| head``) is no error."""
    outlet = Outlet(sys.stdout)
    outlet.write("".join(f"{line}\n" for line in lines))
    outlet.close()


def columns(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()
) -> list[str]:
    """Lines in which the columns stand below each other.

    Args:
        header: The columns' names.
        rows: Their cells.
        right: Which columns are aligned to the right.
    """
    table = [tuple(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(_width(row[n]) for row in table) for n in range(len(header))]
    lines: list[str] = []
    for row in table:
        cells: list[str] = []
        for n, cell in enumerate(row):
            space = " " * (widths[n] - _width(cell))
            cells.append(space + cell if n in right else cell + space)
        lines.append("   ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """How many columns of a terminal it takes."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )
