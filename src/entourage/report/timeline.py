"""The blackout drawn in the terminal: what was under way, on which host, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from entourage.events import AnyEvent
from entourage.report.metrics import Blackout, Stretch, blackout
from entourage.report.text import UNICODE, Glyphs, clean, duration
from entourage.report.view import View

_GAP: Final = "  "
_FIGURES: Final = 6
_MIN_BAR: Final = 16
_TICK_EVERY: Final = 8
_IN_SECONDS: Final = 10.0
_ROWS: Final = 24

_HOST_COLOURS: Final = ("cyan", "green", "magenta", "yellow")


def timeline(
    events: Iterable[AnyEvent],
    *,
    width: int = 80,
    rows: int = _ROWS,
    glyphs: Glyphs = UNICODE,
) -> Text | None:
    """Draw the blackout.

    Args:
        events: All events of a migration.
        width: How many columns there are.
        rows: How many stretches are drawn at most, the longest ones.
        glyphs: The signs to draw with.

    Returns:
        The drawing, which can be read without colour too (``.plain``); None without a blackout.
    """
    events = tuple(events)
    dark = blackout(events)
    if dark is None or dark.seconds <= 0:
        return None
    view = View.of(events)
    hosts = (view.started.source, view.started.target) if view.started else ()
    return _Drawing(dark, hosts, width, glyphs).draw(rows)


class _Drawing:
    """The measures of one drawing."""

    def __init__(self, dark: Blackout, hosts: Sequence[str], width: int, glyphs: Glyphs) -> None:
        self._dark = dark
        self._glyphs = glyphs
        self._unit = 1.0 if dark.seconds >= _IN_SECONDS else 1e-3
        seen = dict.fromkeys([*hosts, *(one.host for one in dark.stretches)])
        self._colours = dict(zip(seen, _HOST_COLOURS, strict=False))
        names = [cell_len(clean(one.name)) for one in dark.stretches]
        self._host = min(max((cell_len(clean(host)) for host in seen), default=0), width // 8)
        self._name = min(max(names, default=0), width * 2 // 5)
        failed = len(glyphs.failed) + 1 if any(one.error for one in dark.stretches) else 0
        self._figures = max(len(f"{dark.seconds / self._unit:.1f}"), _FIGURES)
        taken = self._host + self._name + self._figures + failed + 3 * len(_GAP)
        self._bar = max(width - taken, _MIN_BAR)
        self._ticks = self._make_ticks()

    def draw(self, rows: int) -> Text:
        """All of it."""
        shown = self._choose(rows)
        lines = [self._heading(), *self._axis(), *map(self._row, shown)]
        if left_out := len(self._dark.stretches) - len(shown):
            lines.append(Text(f"{self._margin()}and {left_out} shorter ones", style="dim"))
        return Text("\n").join(lines)

    def _choose(self, rows: int) -> Sequence[Stretch]:
        """The moments, and the longest stretches, still in the order of their beginning."""
        stretches = self._dark.stretches
        by_length = sorted(
            stretches, key=lambda one: (one.kind != "mark", not one.error, -one.seconds)
        )
        keep = {id(one) for one in by_length[:rows]}
        return [one for one in stretches if id(one) in keep]

    def _heading(self) -> Text:
        dark = self._dark
        text = Text("Blackout ", style="bold").append(duration(dark.seconds), style="bold")
        if not dark.resumed:
            text.append(" and the guest has not resumed", style="red")
        if dark.unnamed >= dark.seconds / 100:
            text.append(f"  ({duration(dark.unnamed)} of it without a name)", style="dim not bold")
        return text

    def _margin(self) -> str:
        return " " * (self._host + self._name + 2 * len(_GAP))

    def _make_ticks(self) -> list[tuple[int, str]]:
        """Columns of the axis with their figures: 1, 2 or 5 times a power of ten apart."""
        total = self._dark.seconds
        most = max(self._bar // _TICK_EVERY, 1)
        step = 1e-6
        while True:
            for times in (1, 2, 5):
                if total / (step * times) <= most:
                    count = int(total / (step * times) + 1e-9)
                    apart = step * times
                    return [
                        (self._column(n * apart), f"{n * apart / self._unit:.10g}")
                        for n in range(count + 1)
                    ]
            step *= 10

    def _axis(self) -> list[Text]:
        """The figures, and the line below them."""
        start, line, cross, end = self._glyphs.axis
        unit = " ms" if self._unit < 1 else " s"
        figures = [" "] * self._bar
        rule = [line] * self._bar
        for column, figure in self._ticks:
            rule[column] = cross
            label = figure + unit if column == 0 else figure
            left = max(column - len(figure) // 2, 0)
            if left + len(label) <= self._bar:
                figures[left : left + len(label)] = label
        rule[0], rule[-1] = start, end
        return [
            Text(self._margin() + "".join(figures).rstrip(), style="dim"),
            Text(self._margin() + "".join(rule), style="dim"),
        ]

    def _row(self, one: Stretch) -> Text:
        colour = self._colours.get(one.host, "")
        style = Style(color="red", bold=True) if one.error else Style(color=colour or None)
        mark = one.kind == "mark"
        text = Text(no_wrap=True)
        text.append(self._fit(one.host, self._host), style=style)
        text.append(_GAP)
        text.append(self._fit(one.name, self._name), style="bold" if mark else "")
        text.append(_GAP)
        cells = self._mark(one) if mark else self._cells(one)
        for cell in cells:
            text.append(cell, style="dim" if cell == self._glyphs.grid else style)
        text.append(_GAP)
        text.append(self._value(one.start if mark else one.seconds), style="dim" if mark else "")
        if one.error:
            text.append(f" {self._glyphs.failed}", style=style)
        return text

    def _value(self, seconds: float) -> str:
        """In the unit of the axis, so that figures stand below each other."""
        return f"{seconds / self._unit:{self._figures}.1f}"

    def _ground(self) -> list[str]:
        cells = [" "] * self._bar
        for column, _ in self._ticks[1:]:
            cells[column] = self._glyphs.grid
        return cells

    def _mark(self, one: Stretch) -> list[str]:
        cells = self._ground()
        cells[self._column(one.start)] = self._glyphs.mark
        return cells

    def _column(self, seconds: float) -> int:
        return min(int(seconds / self._dark.seconds * self._bar + 1e-9), self._bar - 1)

    def _cells(self, one: Stretch) -> list[str]:
        """Half a column is the smallest that is drawn; whatever is short still gets that."""
        scale = 2 * self._bar / self._dark.seconds
        first = min(int(one.start * scale), 2 * self._bar - 1)
        last = min(max(round(one.end * scale), first + 1), 2 * self._bar)
        cells = self._ground()
        for column in range(first // 2, (last + 1) // 2):
            left = first <= 2 * column < last
            right = first <= 2 * column + 1 < last
            cells[column] = (
                self._glyphs.full
                if left and right
                else self._glyphs.left
                if left
                else self._glyphs.right
            )
        return cells

    def _fit(self, text: str, width: int) -> str:
        text = clean(text)
        if cell_len(text) > width:
            short = self._glyphs.ellipsis
            text = set_cell_size(text, width - len(short)) + short
        return set_cell_size(text, width)
