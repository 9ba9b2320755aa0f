"""``entourage hosts``, ``plan`` and what makes a plan of what was typed."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

import msgspec

from entourage.cli.output import columns, put, put_json
from entourage.cli.tell import say
from entourage.errors import UsageError, plain_words, what_to_do
from entourage.fleet import fleetfile
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.placement import Style
from entourage.fleet.planner import Order, in_order
from entourage.fleet.planner import plan as make_plan
from entourage.fleet.remote import Remote
from entourage.fleet.survey import Meant, Survey, Tests, less, survey, tests_of
from entourage.fleet.values import FleetDomain, Host, Limits, Move, Plan, Stay, Value, in_huge_pages
from entourage.report.text import clean
from entourage.settings.model import Settings
from entourage.settings.units import format_size, parse_rate

CANNOT: Final = 3
SOME_STAY: Final = 4
_USUAL: Final = Limits()


class Wanted(Value, frozen=True):
    """What is to be planned.

    Attributes:
        sources: The hosts that domains leave.
        targets: Those that they may go to; none: all others of the fleet.
        patterns: Which domains; none: all, and the sources are emptied.
        uuids: The same by their UUIDs.
        style: See ``placement.Placement``; None: spread, unless only packed more find a place.
        order: In which they begin.
        empties: The sources are emptied, unless it is about some domains.
        options: More of `entourage check` and `migrate`, for each of them.
        besides: Hosts that are in no fleet's file.
        off: Domains that do not run move as well.
    """

    sources: Sequence[str]
    targets: Sequence[str] = ()
    patterns: Sequence[str] = ()
    uuids: Sequence[str] = ()
    style: Style | None = None
    order: Order = "hardest"
    empties: bool = True
    options: Sequence[str] = ()
    besides: Sequence[HostEntry] = ()
    off: bool = False

    @property
    def emptied(self) -> Sequence[str]:
        """The hosts that are to be emptied; none where it is about some domains."""
        return self.sources if self.empties and not (self.patterns or self.uuids) else ()


def wanted(
    hosts: Sequence[str],
    to: str,
    only: Sequence[str],
    *,
    spread: bool | None,
    order: Order = "hardest",
    has_plan: bool = False,
    off: bool = False,
) -> Wanted:
    """What was typed; raises UsageError where it cannot be meant."""
    if has_plan and (hosts or to or only):
        raise UsageError("--plan says itself what goes where", remedy="leave the rest out")
    if not (hosts or has_plan):
        raise UsageError("no host is named", remedy="entourage evacuate HOST")
    targets = [name.strip() for name in to.split(",") if name.strip()]
    both = sorted(set(hosts) & set(targets))
    if both:
        raise UsageError(f"{', '.join(both)} is to be emptied, and is no place to go to")
    return Wanted(
        sources=list(dict.fromkeys(hosts)),
        targets=targets,
        patterns=only,
        style=None if spread is None else "spread" if spread else "pack",
        order=order,
        off=off,
    )


def off_of(text: str) -> bool:
    """Whether what is off moves as well; raises UsageError where neither was typed."""
    if text not in {"keep", "move"}:
        remedy = "keep, or move"
        if text == "save":  # see ADR 45
            remedy = f"nothing is saved to empty a host: {remedy}"
        raise UsageError(f"--off {text}: there is no such choice", remedy=remedy)
    return text == "move"


def order_of(text: str) -> Order:
    """What was typed; raises UsageError where it is no order."""
    try:
        return msgspec.convert(text, Order)
    except msgspec.ValidationError:
        known = ", ".join(get_args(Order))
        raise UsageError(f"--order {text}: there is no such order", remedy=known) from None


def limits(
    *,
    at_once: int,
    per_target: int,
    attempts: int = _USUAL.attempts,
    in_a_row: int = _USUAL.in_a_row,
    bandwidth: str = "",
    window: str = "",
) -> Limits:
    """What was typed; raises UsageError where it cannot be meant."""
    rate = 0
    if bandwidth:
        try:
            rate = parse_rate(bandwidth)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"--bandwidth: {error}") from error
    return Limits(
        at_once=at_once,
        per_target=per_target,
        attempts=attempts,
        in_a_row=in_a_row,
        bandwidth=rate,
        window=_window(window),
    )


class Planned(Value, frozen=True):
    """A plan, and what it was made of."""

    plan: Plan
    style: Style
    hosts: Sequence[Host]
    domains: Sequence[FleetDomain]
    refused: Sequence[tuple[str, str, str, str]]


def hosts(fleet: Path | None, *, as_json: bool) -> None:
    """Print the hosts of the fleet."""
    known = fleetfile.load(fleet)
    if as_json:
        put_json(known.host)
        return
    rows = [
        (
            one.name,
            one.ssh or one.name,
            " ".join(f"{key}={each}" for key, each in one.labels.items()),
        )
        for one in known.host
    ]
    put(*columns(("Host", "ssh", "Labels"), rows))


def add(fleet: Path | None, name: str, ssh: str, from_others: str, labels: Sequence[str]) -> None:
    """Add a host to the fleet's file, and say so."""
    pairs: dict[str, str] = {}
    for label in labels:
        key, sign, value = label.partition("=")
        if not (key and sign):
            raise UsageError(f"--label {label}: write KEY=VALUE", remedy="--label rack=2")
        pairs[key] = value
    raw = {"name": name, "ssh": ssh, "from-others": from_others, "labels": pairs}
    try:
        entry = msgspec.convert(raw, HostEntry)
    except msgspec.ValidationError:
        raise UsageError(
            f"{name!r} is no name for a host", remedy="a name that ssh knows"
        ) from None
    path = fleetfile.add(fleet, entry)
    put(f"{name} is a host of the fleet in {path}")


def remove(fleet: Path | None, name: str) -> None:
    """Take a host out of the fleet's file, and say so."""
    path = fleetfile.remove(fleet, name)
    put(f"{name} is no host of the fleet in {path} any more")


def plan(settings: Settings, fleet: Path | None, wanted: Wanted, *, as_json: bool) -> int:
    """Print what would go where; returns the exit status."""
    known = fleetfile.load(fleet)
    planned = asyncio.run(planned_for(Remote(known, settings), known, wanted, []))
    if as_json:
        put_json(planned.plan)
    else:
        put(*plan_lines(planned))
    return plan_status(planned.plan)


def plan_status(made: Plan) -> int:
    """0 where all can move, 4 where some stay, 3 where none can."""
    if not made.stays:
        return 0
    return SOME_STAY if made.moves else CANNOT


async def planned_for(
    remote: Remote, fleet: FleetFile, wanted: Wanted, promised: Sequence[Move]
) -> Planned:
    """Ask all hosts, TEST every pair, and plan.

    Args:
        remote: The hosts.
        fleet: Who they are.
        wanted: What is to be planned.
        promised: What other campaigns have yet to move.
    """
    found, tests = await look(remote, fleet, wanted)
    return place(found, tests, wanted, promised)


async def look(remote: Remote, fleet: FleetFile, wanted: Wanted) -> tuple[Survey, Tests]:
    """Ask all hosts, and TEST every pair; nothing is touched."""
    targets = wanted.targets or [one.name for one in fleet.host if one.name not in wanted.sources]
    for name in (*wanted.sources, *targets):
        fleet.entry(name)
    if not targets:
        raise UsageError("there is no other host in the fleet", remedy="entourage hosts add HOST")
    meant = Meant(wanted.patterns, wanted.uuids, wanted.off)
    found = await survey(remote, wanted.sources, targets, meant)
    for problem in found.problems:
        say(clean(f"entourage: note: {problem}"))
    if wanted.emptied:
        for name, off in found.off.items():
            say(clean(f"entourage: note: off on {name}, and left there: {', '.join(off)}"))
    counter = Progress(sys.stderr.isatty())
    tests = await tests_of(remote, found, counter.told, wanted.options)
    counter.end()
    return found, tests


def place(found: Survey, tests: Tests, wanted: Wanted, promised: Sequence[Move]) -> Planned:
    """Plan what was found."""
    domains = [*found.leaving, *found.residents]
    free = less(found.hosts, domains, promised)
    styles: Sequence[Style] = ("spread", "pack") if wanted.style is None else (wanted.style,)
    made, style = Plan(), styles[0]
    for each in styles:
        other = make_plan(
            free, found.leaving, found.residents, tests.refused, style=each, emptied=wanted.emptied
        )
        if each is styles[0] or len(other.stays) < len(made.stays):
            made, style = other, each
    made = msgspec.structs.replace(made, moves=in_order(made.moves, wanted.order))
    refused = [
        (uuid, host, reason, remedy)
        for (uuid, host), pairs in tests.refused.items()
        for reason, remedy in pairs
    ]
    return Planned(plan=made, style=style, hosts=free, domains=domains, refused=refused)


class Progress:
    """``TEST 3 of 24`` on a terminal, in one line that goes away."""

    def __init__(self, terminal: bool) -> None:  # noqa: FBT001 - what it is about
        self._terminal = terminal

    def told(self, done: int, of: int) -> None:
        """So many are done."""
        if self._terminal:
            sys.stderr.write(f"\rTEST {done} of {of} ")
            sys.stderr.flush()

    def end(self) -> None:
        """All are."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def plan_lines(planned: Planned) -> list[str]:
    """The moves, the matrix of what TEST refused, and why what stays does."""
    made = planned.plan
    memory = {one.uuid: one.memory + in_huge_pages(one.devices) for one in planned.domains}
    rows = [
        (one.name, one.source, one.target, format_size(memory.get(one.uuid, one.memory)))
        for one in made.moves
    ]
    lines = columns(("Domain", "From", "To", "Memory"), rows, right=(3,)) if rows else []
    for stay in made.stays:
        lines += stay_lines(stay)
    moved, stays = len(made.moves), len(made.stays)
    lines.append(f"{moved} to move, {stays} cannot; nothing was touched")
    return lines


def stay_lines(stay: Stay) -> list[str]:
    """A domain for which there is no place, and why."""
    lines = [f"{stay.name} stays on {stay.host}:"]
    for why in stay.why:
        more = f" and {why.count - len(why.hosts)} more" if why.count > len(why.hosts) else ""
        where = f"{', '.join(why.hosts)}{more}: " if why.hosts else ""
        lines.append(f"  ✗ {where}{why.reason}")
        if why.remedy:
            lines.append(f"    → {why.remedy}")
    return lines


def read_plan(path: Path) -> Plan:
    """A plan that `entourage plan --json` has written, and a user may have changed.

    Raises:
        UsageError: It cannot be read, or is none.
    """
    try:
        made = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is no plan: {error}", remedy="`entourage plan HOST --json` writes one"
        ) from error
    if made.version != 1:
        raise UsageError(f"{path}: a plan of version {made.version} is not known here")
    if not made.moves:
        raise UsageError(f"{path}: nothing is to move", remedy="`entourage plan HOST` says why")
    seen: set[str] = set()
    for move in made.moves:
        if move.uuid in seen:
            raise UsageError(f"{path}: {move.name} is in it twice")
        if move.source == move.target:
            raise UsageError(f"{path}: {move.name} is to go to {move.target}, where it is")
        seen.add(move.uuid)
    return made


_WINDOW: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-3]):([0-5]\d)\Z", re.ASCII)


def _window(text: str) -> tuple[int, int] | None:
    """``22:00-05:00`` as minutes of the day; None for an empty text.

    Raises:
        UsageError: It is none.
    """
    if not text:
        return None
    match = _WINDOW.match(text)
    if match is None:
        raise UsageError(f"--window {text}: write HH:MM-HH:MM", remedy="--window 22:00-05:00")
    first, last = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    if first == last:
        raise UsageError(f"--window {text}: it never opens", remedy="leave it out for any time")
    return first, last
