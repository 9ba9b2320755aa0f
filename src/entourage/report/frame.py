"""One frame of the live display: a pure function of what is known and of the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from entourage.events import CopyProgress
from entourage.report.text import UNICODE, Glyphs, bar, clean, duration, rate, size
from entourage.report.view import STEPS, Cell, View

_BAR_MAX: Final = 40
_BAR_MIN: Final = 8
_FIGURES: Final = 32
_AROUND: Final = 7
_MOST_COPIES: Final = 8
_SPINS: Final = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Screen:
    """What there is to draw on."""

    width: int = 80
    height: int = 24
    glyphs: Glyphs = UNICODE


def frame(view: View, now: float, screen: Screen) -> RenderableType:
    """What the display shows ``now`` seconds into the migration."""
    copies = _chosen_copies(view)
    parts: list[RenderableType] = [_header(view, now, screen), Text("")]
    parts.append(_devices(view, now, screen, rows=screen.height - _AROUND - len(copies)))
    if copies:
        parts += [Text(""), *_copies(copies, screen)]
    parts += [Text(""), _phase(view, now, screen)]
    return Group(*parts)


def _header(view: View, now: float, screen: Screen) -> Text:
    clock = f"{int(now) // 60}:{int(now) % 60:02}"
    started = view.started
    if started is None:
        return Text(clock, justify="right", style="dim")
    glyphs = screen.glyphs
    text = Text(no_wrap=True)
    text.append(clean(started.domain), style="bold")
    text.append("  ").append(clean(started.source), style="cyan")
    text.append(f" {glyphs.arrow} ", style="dim").append(clean(started.target), style="green")
    room = screen.width - len(clock) - 2
    if text.cell_len > room:
        text.truncate(room, overflow="ellipsis" if glyphs is UNICODE else "crop")
    text.append(" " * (screen.width - text.cell_len - len(clock)))
    return text.append(clock, style="dim")


def _spin(now: float, glyphs: Glyphs) -> str:
    return glyphs.spinner[int(now * _SPINS) % len(glyphs.spinner)]


def _devices(view: View, now: float, screen: Screen, *, rows: int) -> Table:
    """One row a device; where there are too many, those first that somebody waits for."""
    labels = list(view.devices)
    rows = max(rows, 3)
    shown = labels
    if len(labels) > rows:
        by_interest = sorted(labels, key=lambda label: _interest(view, label))
        keep = set(by_interest[: rows - 1])
        shown = [label for label in labels if label in keep]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, max_width=max(screen.width - 52, 12), overflow="ellipsis")
    for _ in STEPS:
        table.add_column(no_wrap=True, min_width=10)
    table.add_row("", *(Text(step.name, style="dim") for step in STEPS))
    for label in shown:
        cells = view.devices[label]
        table.add_row(
            Text(clean(label)),
            *(_cell(view, label, cells.get(step), now, screen.glyphs) for step in STEPS),
        )
    if left_out := len(labels) - len(shown):
        table.add_row(Text(f"and {left_out} more", style="dim"))
    return table


def _interest(view: View, label: str) -> int:
    cells = view.devices[label].values()
    if any(cell.error for cell in cells):
        return 0
    return 1 if any(cell.seconds is None for cell in cells) else 2


def _cell(view: View, label: str, cell: Cell | None, now: float, glyphs: Glyphs) -> Text:
    if cell is None:
        return Text("")
    if cell.seconds is None:
        running = max(now - cell.started, 0.0)
        time = f" {running:.0f} s" if running >= 1 else ""
        return Text(f"{_spin(now, glyphs)}{time}", style="yellow")
    if view.gave_up(label, cell):
        return Text(f"{glyphs.dash} {duration(cell.seconds)}", style="dim")
    sign, style = (glyphs.failed, "bold red") if cell.error else (glyphs.done, "green")
    return Text(sign, style=style).append(f" {duration(cell.seconds)}", style="dim not bold")


def _chosen_copies(view: View) -> list[CopyProgress]:
    """Those under way first; never so many that the rest is pushed off the screen."""
    copies = sorted(view.copies.values(), key=lambda copy: copy.done >= copy.total)
    chosen = {copy.what for copy in copies[:_MOST_COPIES]}
    disks = [label for label in view.devices if label in view.copies]
    order = [*disks, *(what for what in view.copies if what not in disks)]
    return [view.copies[what] for what in order if what in chosen]


def _copies(copies: Sequence[CopyProgress], screen: Screen) -> list[Text]:
    names = min(max(cell_len(clean(copy.what)) for copy in copies), screen.width // 3)
    room = screen.width - names - 2 - len(" 100 %  ") - _FIGURES
    width = max(min(room, _BAR_MAX), _BAR_MIN)
    lines: list[Text] = []
    for copy in copies:
        part = min(copy.done / copy.total, 1.0) if copy.total else 0.0
        filled, empty = bar(part, width, screen.glyphs)
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(set_cell_size(clean(copy.what), names) + "  ")
        line.append(filled, style="green" if part >= 1 else "cyan").append(empty, style="dim")
        line.append(f" {int(part * 100):3} %  ").append(_figures(copy), style="dim")
        lines.append(line)
    return lines


def _figures(copy: CopyProgress) -> str:
    words = [f"{size(copy.done)} of {size(copy.total)}"]
    if copy.what == "memory" and copy.iteration > 1:
        words = [f"round {copy.iteration}", f"dirtied {rate(copy.dirty_rate)}"]
    elif copy.rate and copy.done < copy.total:
        words.append(rate(copy.rate))
        if copy.eta is not None:
            words.append(f"{duration(copy.eta)} left")
    return "  ".join(words)


def _phase(view: View, now: float, screen: Screen) -> Text:
    style = "red" if view.rollback else "yellow"
    text = Text(_spin(now, screen.glyphs), style=style, no_wrap=True, overflow="ellipsis")
    return text.append(f" {clean(view.phase)}", style="red" if view.rollback else "default")
