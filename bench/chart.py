"""The chart: blackouts side by side, a bar for each party with its quartiles, as an SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from bench.figures import Spread, from_json, moment, spread, whole

_WIDTH, _LEFT, _RIGHT = 760, 230, 70
_BAR, _GAP, _TOP = 16, 14, 46
_COLOURS = {"entourage": "#2a7f9e", "floor": "#9aa5ad", "virsh": "#c98b3c", "virsh p2p": "#b3574f"}


def chart(found: Mapping[str, Any]) -> str:
    """Draw what was measured; scenarios without rounds are left out.

    Args:
        found: What ``python -m bench`` has written.
    """
    groups: list[tuple[str, dict[str, Spread]]] = []
    for name, part in found.items():
        if name == "xl":  # seconds, on hosts that are emulated: everything else would be a line
            continue
        rounds = whole(from_json(part["rounds"])) if "rounds" in part else []
        if rounds:
            bars = {party: spread(rounds, party, moment("pinger")) for party in rounds[0]}
            groups.append((str(part["title"]), bars))
    most = max((bar.high for _, bars in groups for bar in bars.values()), default=1.0)
    body, height = _body(groups, (_WIDTH - _LEFT - _RIGHT) / most)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
    )
    rows = [head, f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>', *body, "</svg>"]
    return "\n".join(rows) + "\n"


def _body(groups: Iterable[tuple[str, dict[str, Spread]]], scale: float) -> tuple[list[str], int]:
    title = "Blackout as a 1 ms pinger sees it: median and quartiles, ms"
    rows = [f'<text x="12" y="24" font-size="14" font-weight="bold">{title}</text>']
    y = _TOP
    for name, bars in groups:
        rows.append(f'<text x="12" y="{y + 12}">{escape(name)}</text>')
        for party, bar in bars.items():
            rows += _row(party, bar, y, scale)
            y += _BAR + 3
        y += _GAP
    return rows, y


def _row(party: str, bar: Spread, y: int, scale: float) -> Iterable[str]:
    colour = _COLOURS.get(party, "#6b6b8d")
    middle = y + _BAR / 2
    low, high, end = (_LEFT + value * scale for value in (bar.low, bar.high, bar.median))
    yield f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{_BAR}" fill="{colour}"/>'
    yield f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" stroke="#222222"/>'
    label = f"{escape(party)} {bar.median * 1e3:.0f}"
    yield f'<text x="{max(high, end) + 6:.1f}" y="{y + 12}" font-size="11">{label}</text>'
