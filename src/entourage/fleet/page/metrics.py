"""The fleet's figures in Prometheus' format; docs/fleet.md lists them.

All but those of hosts are counted in the database when they are asked for: they are the same from
every controller, and outlive each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from entourage.fleet.database import ATTEMPTS, CAMPAIGNS, CONTROLLERS, MOVES, reads
from entourage.fleet.page.rooms import Answer
from entourage.fleet.store import SILENT_AFTER

BLACKOUTS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the histogram of blackouts, seconds."""
DURATIONS: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
"""The same of whole moves."""
STATUSES: Final = ("waits", "moves", "moved", "stays", "doubt", "off", "elsewhere")
PHASES: Final = ("runs", "paused", "aborting", "ended", "stopped", "aborted")
_PREFIX: Final = "entourage_fleet"


def exposed(
    engine: sa.Engine, now: float, names: Sequence[str], rooms: Mapping[str, Answer]
) -> bytes:
    """All of it, as text. Blocks.

    Args:
        engine: The database.
        now: Seconds since 1970.
        names: The fleet's hosts.
        rooms: What they have said.

    Raises:
        EntourageError: The database cannot be read.
    """
    metrics = [*_of_hosts(names, rooms), *_of_database(engine, now)]

    class All(Collector):
        """What was counted."""

        def collect(self) -> Iterable[Metric]:
            """See ``Collector``."""
            return metrics

    registry = CollectorRegistry(auto_describe=False)
    registry.register(All())
    return generate_latest(registry)


def _of_hosts(names: Sequence[str], rooms: Mapping[str, Answer]) -> Iterable[Metric]:
    answers = [(name, rooms[name]) for name in names if name in rooms]
    answered = [(name, one.room) for name, one in answers if one.room is not None]
    yield _gauge("hosts", "Hosts of the fleet.", len(names))
    yield _gauge("hosts_silent", "Hosts that did not answer.", len(answers) - len(answered))
    cordoned = sum(bool(room.cordons) for _, room in answered)
    yield _gauge("hosts_cordoned", "Hosts that take no domains.", cordoned)
    memory = GaugeMetricFamily(
        f"{_PREFIX}_host_memory_bytes", "Memory for domains.", labels=["host"]
    )
    free = GaugeMetricFamily(f"{_PREFIX}_host_free_bytes", "What of it is left.", labels=["host"])
    domains = GaugeMetricFamily(
        f"{_PREFIX}_host_domains", "Domains that run there.", labels=["host"]
    )
    for name, room in answered:
        memory.add_metric([name], room.memory)
        free.add_metric([name], room.free)
        domains.add_metric([name], len(room.domains))
    yield from (memory, free, domains)
    if answers:
        oldest = min(one.at for _, one in answers)
        yield _gauge("hosts_asked_timestamp_seconds", "The oldest of these answers.", oldest)


def _of_database(engine: sa.Engine, now: float) -> Iterable[Metric]:
    with reads(engine) as connection:
        moves = _counted(connection, MOVES.c.status)
        phases = _counted(connection, CAMPAIGNS.c.phase)
        alive = sa.select(sa.func.count()).select_from(CONTROLLERS)
        alive = alive.where(CONTROLLERS.c.seen >= now - SILENT_AFTER)
        living = connection.execute(alive).scalar_one()
        outcomes = _counted(connection, ATTEMPTS.c.outcome, ATTEMPTS.c.ended.is_not(None))
        blackouts = _histogram(connection, ATTEMPTS.c.blackout, BLACKOUTS)
        durations = _histogram(connection, ATTEMPTS.c.ended - ATTEMPTS.c.begun, DURATIONS)
    yield _labelled("moves", "Moves of all campaigns.", "status", _all(STATUSES, moves))
    yield _gauge("moves_running", "Moves that are under way.", moves.get("moves", 0))
    yield _labelled("campaigns", "Campaigns.", "phase", _all(PHASES, phases))
    yield _gauge("controllers", "Controllers that live.", living)
    attempts = CounterMetricFamily(
        f"{_PREFIX}_attempts", "Attempts of moves that have ended.", labels=["outcome"]
    )
    for outcome, number in sorted(outcomes.items()):
        attempts.add_metric([outcome or "unknown"], number)
    yield attempts
    yield _family("blackout_seconds", "Blackouts of moves that went well.", BLACKOUTS, blackouts)
    yield _family("move_duration_seconds", "How long moves took.", DURATIONS, durations)


def _counted(
    connection: sa.Connection, by: sa.Column[str], *only: sa.ColumnElement[bool]
) -> dict[str, int]:
    """How many rows there are of each value."""
    query = sa.select(by, sa.func.count()).where(*only).group_by(by)
    return {value: count for value, count in connection.execute(query)}  # noqa: C416 - of rows


def _all(known: Sequence[str], counts: Mapping[str, int]) -> Mapping[str, int]:
    """With a nought for what there is none of: a series is to begin with it."""
    return {**dict.fromkeys(known, 0), **counts}


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", told, value=value)


def _labelled(name: str, told: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", told, labels=[label])
    for value, number in counts.items():
        family.add_metric([value], number)
    return family


def _histogram(
    connection: sa.Connection, value: sa.ColumnElement[float | None], bounds: Sequence[float]
) -> list[float]:
    """How many are at most each bound, how many there are, and their sum; of what has moved."""
    below = [sa.func.sum(sa.case((value <= bound, 1), else_=0)) for bound in bounds]
    query = sa.select(*below, sa.func.count(value), sa.func.sum(value)).where(
        ATTEMPTS.c.outcome == "moved", value.is_not(None)
    )
    return [float(each or 0) for each in connection.execute(query).one()]


def _family(name: str, told: str, bounds: Sequence[float], counted: Sequence[float]) -> Metric:
    *below, count, total = counted
    buckets = [(str(bound), number) for bound, number in zip(bounds, below, strict=True)]
    return HistogramMetricFamily(
        f"{_PREFIX}_{name}", told, buckets=[*buckets, ("+Inf", count)], sum_value=total
    )
