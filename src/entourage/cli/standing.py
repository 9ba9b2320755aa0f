"""``entourage status`` and ``entourage recover``: what is in doubt, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from entourage import recovery
from entourage.attend.shown import AttendedDomain, lines, read_all
from entourage.cli.output import put, put_json
from entourage.errors import UsageError
from entourage.handover.values import Finding, Record
from entourage.settings.model import Settings

DONE: Final = 0
NOT_CLEAN: Final = 5
IN_DOUBT: Final = 6
_UNDECIDED: Final = frozenset({Record.ARMED, Record.OPEN, Record.GO})

_FINDINGS: Final = {
    Finding.CAME_BACK: "it runs here, as before",
    Finding.CAME_BACK_DEAD: "it belongs here, but its machine is dead: `{start}`",
    Finding.HANDED_OVER: "it belongs to {peer}",
    Finding.ASK_FAILED: "{peer} cannot be reached: what it decided is not known",
    Finding.WRONG_JOURNAL: "{peer} has another journal than it had: it cannot say what it decided",
    Finding.GO_STANDS: "{peer} decided to run it; whether it does is to be found out there",
    Finding.RUNS_HERE: "it was handed over, and runs here",
    Finding.CRASHED_HERE: "it was handed over, and its machine died: `{start}`",
    Finding.NEVER_HERE: "it never ran here; what was made for it is undone",
    Finding.SOURCE_SILENT: "it is this host's; {peer} has not confirmed that it let go",
    Finding.FENCED_AWAY: "it was given back to {peer} while this host was off",
    Finding.TWO_COPIES: "ALARM: a copy without the right to run was running, and was stopped",
}


def status(settings: Settings, *, everything: bool, as_json: bool) -> None:
    """Print what is under way or in doubt here."""
    standings = asyncio.run(recovery.status(settings, everything=everything))
    if as_json:
        put_json(standings)
    else:
        put(*status_lines(standings), *attended_lines(read_all(settings)))


def attended_lines(attended: Sequence[AttendedDomain]) -> list[str]:
    """One block for each domain whose migrations are attended."""
    return [line for one in attended for line in lines(one, brief=True)]


def recover(
    settings: Settings, domain: str | None, *, dry_run: bool, fenced: bool, as_json: bool
) -> int:
    """Settle what is in doubt; returns the exit status.

    Raises:
        UsageError: A host was declared off without saying for which domain.
    """
    if fenced and domain is None:
        raise UsageError(
            "--target-is-fenced needs a domain: what is said of one host is not said of all",
            remedy="entourage recover DOMAIN --target-is-fenced",
        )
    done = asyncio.run(recovery.recover(settings, domain, dry_run=dry_run, target_is_fenced=fenced))
    if as_json:
        put_json(done)
    else:
        put(*recovered_lines(done, dry_run=dry_run))
    return DONE if dry_run else exit_status(done)


def status_lines(standings: Sequence[recovery.Standing]) -> list[str]:
    """One block for each migration."""
    lines: list[str] = []
    for one in standings:
        way = f"to {one.peer}" if one.role == "source" else f"from {one.peer}"
        guest = f"; the guest here: {one.guest}" if one.guest else "; no guest here"
        lines += [
            f"{one.domain}: {one.meaning}",
            f"  migration  {one.migration} {way}, {one.record.upper()}{guest}",
        ]
        if one.began:
            ended = f", settled {_plain(one.changed)}" if one.settled else ""
            lines.append(f"  since      {_plain(one.began)}{ended}")
        if one.doing:
            lines.append(f"  under way  {one.doing}")
        if one.remedy:
            lines.append(f"  remedy     {one.remedy}")
    return lines or ["nothing is under way or in doubt here"]


def _plain(moment: str) -> str:
    """A moment without its offset: this host's own time."""
    return moment[: len("2026-01-01 00:00:00")]


def recovered_lines(done: Sequence[recovery.Recovered], *, dry_run: bool) -> list[str]:
    """One block for each migration."""
    lines: list[str] = []
    for one in done:
        way = f"to {one.peer}" if one.role == "source" else f"from {one.peer}"
        lines.append(f"{one.domain}: {_result(one, dry_run=dry_run)}")
        lines.append(f"  migration  {one.migration} {way}, {_records(one)}")
        lines += [f"  found      {_sentence(one, finding)}" for finding in one.findings]
        lines += [f"  problem    {problem}" for problem in one.problems]
    return lines or ["nothing is in doubt here"]


def exit_status(done: Sequence[recovery.Recovered]) -> int:
    """The worst of what is left."""
    left = [one for one in done if not one.settled]
    if any(one.after in _UNDECIDED for one in left):
        return IN_DOUBT
    return NOT_CLEAN if left else DONE


def _result(one: recovery.Recovered, *, dry_run: bool) -> str:
    if dry_run:
        return "is to be settled"
    if one.settled:
        return "settled"
    return "still in doubt" if one.after in _UNDECIDED else "decided, but not cleaned up"


def _records(one: recovery.Recovered) -> str:
    before, after = one.before.upper(), one.after.upper()
    return before if before == after else f"{before} -> {after}"


def _sentence(one: recovery.Recovered, finding: str) -> str:
    known = _FINDINGS.get(Finding(finding)) if finding in set(Finding) else None
    return known.format(start=one.start, peer=one.peer) if known else finding
