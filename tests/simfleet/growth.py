"""Draws how time and memory grow with a fleet, as an SVG; both axes are logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

_WIDTH, _HEIGHT = 760, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 46, 48
_SERIES = (
    ("plan_s", "plan, s", "#2a7f9e"),
    ("campaign_s", "both campaigns, s", "#c98b3c"),
    ("peak_mib", "memory, MiB", "#6b6b8d"),
)
Row = Mapping[str, float]


def growth(rows: Sequence[Row]) -> str:
    """Draw it.

    Args:
        rows: For each size, ``machines``, ``plan_s``, ``campaign_s`` and ``peak_mib``.
    """
    sizes = [row["machines"] for row in rows]
    values = [max(row[key], 0.01) for row in rows for key, _, _ in _SERIES]
    across = _Scale(min(sizes), max(sizes), _LEFT, _WIDTH - _RIGHT)
    up = _Scale(min(values), max(values), _HEIGHT - _BOTTOM, _TOP)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}"'
        f' viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">'
    )
    title = "Planning and running two campaigns, by the number of domains"
    body = [
        head,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="14" font-weight="bold">{title}</text>',
        *_grid(across, up),
    ]
    for key, name, colour in _SERIES:
        body += _line([(row["machines"], max(row[key], 0.01)) for row in rows], across, up, colour)
        last = max(rows[-1][key], 0.01)
        text = f"{name}: {last:.3g}"
        body.append(
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{up(last) + 4:.1f}" fill="{colour}">{text}</text>'
        )
    return "\n".join([*body, "</svg>"]) + "\n"


class _Scale:
    """From a value to a place, by whole powers of ten."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        self._first, self._last = first, last

    def __call__(self, value: float) -> float:
        span = max(1, self.powers[-1] - self.powers[0])
        part = (math.log10(value) - self.powers[0]) / span
        return self._first + part * (self._last - self._first)


def _grid(across: _Scale, up: _Scale) -> Iterable[str]:
    line = '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="#dddddd"/>'
    for power in up.powers:
        y = up(10.0**power)
        yield line.format(_LEFT, y, _WIDTH - _RIGHT, y)
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
    for power in across.powers:
        x = across(10.0**power)
        yield line.format(x, _TOP, x, _HEIGHT - _BOTTOM)
        label = f"{10**power:,}".replace(",", " ")
        yield f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>'


def _line(
    points: Sequence[tuple[float, float]], across: _Scale, up: _Scale, colour: str
) -> Iterable[str]:
    places = [(across(x), up(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
