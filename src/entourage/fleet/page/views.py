"""What each page shows, gathered from the database. All of it blocks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from entourage.fleet.page.drawing import Timeline, timeline
from entourage.fleet.records import Attempt, Records
from entourage.fleet.shown import line, time_left
from entourage.fleet.store import SILENT_AFTER, Spec, Store, Summary
from entourage.fleet.values import MoveState, Status, Stay

LINES: Final = 100
"""Domains on one page."""
ROWS: Final = 50
COLUMNS: Final = 24
"""Of the matrix on one page."""


@dataclass(frozen=True, slots=True)
class Line:
    """A domain of a campaign.

    Attributes:
        state: How far it has come.
        text: That in words, as the terminal has it, the domain's name left out.
        attempt: What is under way; None: nothing.
    """

    state: MoveState
    text: str
    attempt: Attempt | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A campaign now.

    Attributes:
        summary: In a line.
        lines: Some of its domains.
        total: How many it has, of the status that is asked for.
        of: How many it has.
        done: How many have ended.
        planned_stays: For how many there was no place.
        left: How long the rest takes, in words; empty where that is not known.
        is_alone: Nobody runs it.
    """

    summary: Summary
    lines: Sequence[Line]
    total: int
    of: int
    done: int
    planned_stays: int
    left: str
    is_alone: bool


class Views:
    """They.

    Args:
        store: The campaigns.
        records: What is kept of them for people.
    """

    def __init__(self, store: Store, records: Records) -> None:
        self._store = store
        self._records = records
        self._stays: dict[str, Sequence[Stay]] = {}

    def campaigns(self) -> dict[str, Any]:
        """The list."""
        found = self._store.summaries()
        living = set(self._store.living(SILENT_AFTER))
        alone = {one.name for one in found if not one.is_over and one.owner not in living}
        return {"campaigns": found, "alone": alone}

    def campaign(self, name: str, status: Status | None = None, first: int = 0) -> Shown:
        """One, as it is now.

        Raises:
            UsageError: There is none of that name.
        """
        summary = self._store.summary(name)
        under_way = self._records.under_way(name)
        states = self._records.moves(name, status, first=first, most=LINES)
        counts = summary.counts
        of = sum(counts.values())
        done = of - counts.get("waits", 0) - counts.get("moves", 0)
        pace = self._records.pace(name) if summary.phase == "runs" and done < of else None
        return Shown(
            summary=summary,
            lines=[_line(one, under_way.get(one.move.uuid)) for one in states],
            total=of if status is None else counts.get(status, 0),
            of=of,
            done=done,
            planned_stays=len(self.stays(name)),
            left=time_left(pace, of - done) if pace is not None else "",
            is_alone=not summary.is_over and summary.owner not in self._store.living(SILENT_AFTER),
        )

    def stays(self, name: str) -> Sequence[Stay]:
        """For which of its domains there was no place; that never changes."""
        if name not in self._stays:
            self._stays[name] = self._store.spec(name).plan.stays
        return self._stays[name]

    def around(self, name: str) -> dict[str, Any]:
        """What a campaign's page shows beside how far it is: what does not change every second."""
        return {
            "history": self._records.history(name),
            "stays": self.stays(name)[:LINES],
            "more_stays": max(0, len(self.stays(name)) - LINES),
        }

    def plan(self, name: str, row: int, column: int) -> dict[str, Any]:
        """A part of its plan's matrix: for each domain, each host.

        Args:
            name: The campaign's.
            row: The first domain.
            column: The first host.

        Raises:
            UsageError: There is none of that name.
        """
        spec = self._store.spec(name)
        refused: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
        for uuid, host, reason, remedy in spec.refused:
            refused[(uuid, host)].append((reason, remedy))
        domains = _domains(spec)
        hosts = _hosts(spec)
        shown = hosts[column : column + COLUMNS]
        rows = [
            {
                "name": name_,
                "uuid": uuid,
                "source": source,
                "target": target,
                "cells": [_cell(uuid, source, target, host, refused) for host in shown],
            }
            for uuid, name_, source, target in domains[row : row + ROWS]
        ]
        closed = {one.name: one.closed for one in spec.hosts if one.closed}
        told = [
            (each["name"], host, reason, remedy)
            for each in rows
            for host in shown
            for reason, remedy in refused.get((str(each["uuid"]), host), ())
        ]
        pages = {"row": row, "column": column, "domains": len(domains), "all_hosts": len(hosts)}
        return {"plan": spec.plan, "hosts": shown, "rows": rows, "closed": closed,
                "refusals": told, "style": spec.style, **pages}  # fmt: skip

    def domain(self, uuid: str) -> dict[str, Any]:
        """A domain's moves, and what its attempts were like."""
        moves = self._records.of_domain(uuid)
        attempts: list[tuple[Attempt, Timeline | None]] = []
        for one in self._records.attempts(uuid):
            # A blackout is drawn of the newest few: what was heard may be much.
            few = len(attempts) < 10  # noqa: PLR2004
            events = self._records.events(one.number) if one.timed and few else []
            attempts.append((one, timeline(events)))
        return {
            "uuid": uuid,
            "name": moves[0][1].move.name if moves else "",
            "moves": [(campaign, _line(state, None)) for campaign, state in moves],
            "attempts": attempts,
            "now": time.time(),
        }


def _line(state: MoveState, attempt: Attempt | None) -> Line:
    return Line(state, line(state).removeprefix(state.move.name).strip(), attempt)


def _domains(spec: Spec) -> list[tuple[str, str, str, str]]:
    """UUID, name, source and target (empty: none) of each; those that stay come first."""
    stays = [(one.uuid, one.name, one.host, "") for one in spec.plan.stays]
    return stays + [(one.uuid, one.name, one.source, one.target) for one in spec.plan.moves]


def _hosts(spec: Spec) -> list[str]:
    """Those first that something goes to, then those that refuse something, then the others."""
    goes = dict.fromkeys(sorted({one.target for one in spec.plan.moves}))
    refuse = dict.fromkeys(sorted({one[1] for one in spec.refused}))
    others = dict.fromkeys(sorted(one.name for one in spec.hosts))
    return list({**goes, **refuse, **others})


def _cell(
    uuid: str,
    source: str,
    target: str,
    host: str,
    refused: Mapping[tuple[str, str], Sequence[tuple[str, str]]],
) -> str:
    """What a host is to a domain: ``goes``, ``here``, ``refused`` or ``other``."""
    if host == target:
        return "goes"
    if host == source:
        return "here"
    return "refused" if (uuid, host) in refused else "other"
