"""What was seen of each save, checkpoint and restore, and the page that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

_WHERE: Final = {
    "tests/e2e/libvirt/": "libvirt's domains",
    "checkpoint": "Checkpoints",
    "": "Entourage's own machines",
}
_HEAD: Final = """\
# What happens to saves

Made by `make test-checkpoint`, which saves and restores real guests between two hosts of the [lab](../lab/README.md): every case, where `make test` has a core of them.
After each, what the guest was told is written, its TCP connection, its TPM and what is left on either host are looked at from outside ([saving.md](saving.md#what-was-tried)).

{passed} of {all} cases passed.

| Column | Meaning |
| --- | --- |
| case | what is done, or what goes wrong; of a fault who dies, or what fails, the point at which (`tests/e2e/points.py`), and who has the guest then |
| seen | `as it must be`, or what was not |
| s | seconds for all of it, in software emulation on two cores |
"""  # noqa: E501 - a paragraph of Markdown is one line


class Row(NamedTuple):
    """What was seen of one case.

    Attributes:
        path: The file that has it.
        title: What it is about, in words.
        case: Which of several alike; empty where there is one.
        passed: Whether it came out as it must.
        seconds: How long it took.
    """

    path: str
    title: str
    case: str
    passed: bool
    seconds: float


def title_of(name: str, document: str | None) -> str:
    """What a test is about: the first sentence of its text, or its name in words."""
    if document:
        return " ".join(document.strip().split("\n\n")[0].split()).rstrip(".")
    words = name.partition("[")[0].removeprefix("test_").replace("_", " ")
    return words[:1].upper() + words[1:]


def page(rows: Sequence[Row]) -> str:
    """The page."""
    lines = [_HEAD.format(passed=sum(row.passed for row in rows), all=len(rows))]
    groups = sorted(rows, key=lambda row: list(_WHERE.values()).index(_where(row)), reverse=True)
    for where, inside in groupby(groups, _where):
        lines += [f"\n## {where}\n", "| case | seen | s |", "| --- | --- | ---: |"]
        for row in inside:
            case = f"{row.title}: {row.case}" if row.case else row.title
            seen = "as it must be" if row.passed else "**not as it must be**"
            lines.append(f"| {case.replace('|', chr(92) + '|')} | {seen} | {row.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the page."""
    path.write_text(page(rows), encoding="utf-8")


def _where(row: Row) -> str:
    return next(name for part, name in _WHERE.items() if part in row.path)
