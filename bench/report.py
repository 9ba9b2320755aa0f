"""What a scenario found, as text: medians, spread, ratios, and what was thrown out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from bench.figures import (
    MOMENTS,
    Move,
    Round,
    Spread,
    differences,
    moment,
    ratios,
    spread,
    thrown_out,
    whole,
)
from bench.scenarios import Result

_OURS = ("entourage", "attended")
_NAMES = {
    "blackout": "STOP to RESUME",
    "pinger": "blackout by pinger",
    "early": "longest freeze before",
    "late": "longest freeze after",
    "total": "total",
}


def report(result: Result) -> str:
    """All of it."""
    lines: list[str] = []
    if whole(result.rounds):
        lines += _rounds(result.rounds)
    for name, value in result.facts.items():
        lines += _fact(name, value)
    return "\n".join(lines)


def _rounds(rounds: Sequence[Round]) -> Iterable[str]:
    lost = thrown_out(rounds)
    kept = whole(rounds)
    parties = list(kept[0])
    ours = next(party for party in (*_OURS, *parties) if party in parties)
    others = [party for party in parties if party != ours]
    said = ", ".join(f"{number} by {party}" for party, number in lost.items()) or "none"
    yield f"   {len(kept)} rounds; thrown out because the guest did not survive: {said}"
    heads = (*parties, *(f"more than {party}" for party in others), "ratio")
    yield f"   {'median (quartiles), ms':<24}" + "".join(f"{head:>26}" for head in heads)
    for name in MOMENTS:
        figure = moment(name)
        # virsh does not tell when the guest stopped: the pinger does, for all.
        if not all(figure(one[party]) for one in kept for party in parties) and name == "blackout":
            continue
        cells = [_cell(spread(kept, party, figure), 1e3) for party in parties]
        cells += [_cell(differences(kept, ours, party, figure), 1e3) for party in others]
        if others and any(figure(one[others[0]]) for one in kept):
            cells.append(_cell(ratios(kept, ours, others[0], figure), 1, digits=2))
        yield f"   {_NAMES[name]:<24}" + "".join(f"{cell:>26}" for cell in cells)
    for name, figure in COSTS.items():
        cells = [f"{spread(kept, party, figure).median:.2f}" for party in parties]
        yield f"   {name:<24}" + "".join(f"{cell:>26}" for cell in cells)
    for party in parties:
        names = dict.fromkeys(name for one in kept for name in one[party].spans)
        for name in names:
            found = Spread.of(one[party].spans.get(name, 0.0) for one in kept)
            yield f"      {party}: {name:<44} {_cell(found, 1e3)}"


def _cell(found: Spread, times: float, *, digits: int = 1) -> str:
    low, middle, high = (
        f"{value * times:.{digits}f}" for value in (found.low, found.median, found.high)
    )
    return f"{middle} ({low}…{high})"


def _fact(name: str, value: Any) -> Iterable[str]:
    """One fact: numbers, a table of numbers for each round, or several of these by name."""
    if isinstance(value, dict):
        parts = cast("dict[str, Any]", value)
        for key, part in parts.items():
            yield from _fact(f"{name}, {key}", part)
        return
    many = cast("list[Any]", value) if isinstance(value, list) else []
    if many and isinstance(many[0], dict):
        for key in cast("dict[str, float]", many[0]):
            yield from _fact(f"{name}, {key}", [one[key] for one in many])
    elif many and isinstance(many[0], float | int):
        yield f"   {name}: {_cell(Spread.of(many), 1, digits=3)}"
    else:
        yield f"   {name}: {value}"


def _cpu(move: Move) -> float:
    return sum(move.cpu)


def _source_memory(move: Move) -> float:
    return move.memory[0] / 1e6


def _target_memory(move: Move) -> float:
    return move.memory[1] / 1e6


def _wire(move: Move) -> float:
    return move.wire / 1e6


COSTS = {
    "CPU s, both ends": _cpu,
    "peak MB, source": _source_memory,
    "peak MB, target": _target_memory,
    "MB on the wire": _wire,
}
