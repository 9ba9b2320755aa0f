"""``entourage evacuate`` and ``campaign``: campaigns are begun, shown, and told what is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import signal
import socket
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from entourage.cli.fleeting import (
    CANNOT,
    SOME_STAY,
    Planned,
    Wanted,
    look,
    place,
    read_plan,
    stay_lines,
)
from entourage.cli.output import columns, put, put_json
from entourage.cli.tell import say
from entourage.cordon import check_name
from entourage.errors import EntourageError, UsageError, plain_words, what_to_do
from entourage.fleet import fleetfile
from entourage.fleet.campaign import Wish
from entourage.fleet.remote import Remote
from entourage.fleet.values import Limits, Move, MoveState, Plan
from entourage.hosts.threads import in_thread
from entourage.report.text import clean
from entourage.settings.model import Settings

try:
    from entourage.cli.campaign_run import run, tell
    from entourage.cli.campaign_shown import Screen
    from entourage.fleet.database import open_engine
    from entourage.fleet.given import adopted
    from entourage.fleet.outage import Outage
    from entourage.fleet.promises import add_planned
    from entourage.fleet.records import DONE, RETRIED, Records
    from entourage.fleet.shown import line, sums
    from entourage.fleet.store import ABORTS, SILENT_AFTER, Spec, Store
except ModuleNotFoundError as error:
    raise UsageError(
        f"campaigns need more packages ({error.name} is not there)",
        remedy="pip install 'entourage[fleet]'",
    ) from error

_LOOK_EVERY: Final = 2.0  # seconds
_SHOW_EVERY: Final = 0.5  # seconds


class Asked:
    """Where campaigns are kept, and who the hosts are.

    Args:
        settings: This host's.
        fleet: The fleet's file, or directory.
        database: A URL; empty: SQLite, below ``paths.state``.
    """

    def __init__(self, settings: Settings, fleet: Path | None, database: str) -> None:
        self.settings = settings
        self.fleet = fleetfile.load(fleet)
        self.remote = Remote(self.fleet, settings)
        self._database = database

    def store(self) -> Store:
        """The campaigns; raises EntourageError where they cannot be reached."""
        url = self._database
        if not url:
            directory = Path(self.settings.paths.state)
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
            url = f"sqlite:///{directory / 'fleet.db'}"
        old = os.umask(0o077)  # names of domains and hosts are nobody else's
        try:
            return Store(open_engine(url))
        finally:
            os.umask(old)


def evacuate(
    asked: Asked,
    wanted: Wanted,
    limits: Limits,
    *,
    name: str,
    plan: Path | None,
    dry_run: bool,
) -> int:
    """Plan, and carry it out; returns the exit status."""
    store = asked.store()
    given = read_plan(plan) if plan is not None else None
    if given is not None:
        sources = list(dict.fromkeys(move.source for move in given.moves))
        targets = list(dict.fromkeys(move.target for move in given.moves))
        wanted = msgspec.structs.replace(
            wanted,
            sources=given.hosts or sources,
            targets=targets,
            uuids=() if given.hosts else [move.uuid for move in given.moves],
            off=any(move.off for move in given.moves),
        )
    name = name or f"{_what(wanted)}-{time.strftime('%m%d-%H%M%S')}"
    check_name(name)
    remote = asked.remote.with_hosts(wanted.besides)
    for host in (*wanted.sources, *wanted.targets):
        remote.fleet.entry(host)  # raises, before anything is done
    if store.has(name):
        raise UsageError(f"there is a campaign {name!r} already", remedy="another --name")
    emptied = () if dry_run else wanted.emptied
    with _cordoned(asked, store, name, emptied):
        before = store.promised()
        found, tests = asyncio.run(look(remote, remote.fleet, wanted))

        def make(promised: Sequence[Move]) -> _Made:
            planned = place(found, tests, wanted, promised)
            made = planned.plan
            if given is not None:
                made = adopted(given, found, tests.refused, planned.hosts)
            goes = bool(made.moves) and not dry_run
            return _Made(made, _spec(made, planned, wanted, limits) if goes else None)

        added = add_planned(store, name, before, make)
        made = added.plan
        if added.spec is not None:
            _note_down(store, name, "began it")
    for stay in made.stays:
        say(*(clean(line) for line in stay_lines(stay)))
    if not made.moves:
        put("nothing can move" if made.stays else f"nothing runs on {', '.join(wanted.sources)}")
        return CANNOT if made.stays else 0
    if dry_run:
        put(f"{len(made.moves)} to move, {len(made.stays)} cannot; nothing was touched")
        return SOME_STAY if made.stays else 0
    say(clean(f"entourage: campaign {name}: {len(made.moves)} to move, {len(made.stays)} stay"))
    return run(asked, store, name)


@dataclass(frozen=True, slots=True)
class _Made:
    """A plan, and the campaign that is to carry it out; None: none is."""

    plan: Plan
    spec: Spec | None


def _spec(made: Plan, planned: Planned, wanted: Wanted, limits: Limits) -> Spec:
    share = [f"--bandwidth={max(1, limits.bandwidth // limits.at_once)}"]  # 0 is no limit
    return Spec(
        plan=made,
        limits=limits,
        style=planned.style,
        hosts=planned.hosts,
        domains=planned.domains,
        refused=planned.refused,
        options=[*wanted.options, *(share if limits.bandwidth else ())],
        besides=wanted.besides,
    )


@contextlib.contextmanager
def _cordoned(asked: Asked, store: Store, name: str, hosts: Sequence[str]) -> Generator[None]:
    """Have hosts take nothing from now on, and wait for what is on its way there.

    Once the campaign is written, it lifts the cordons at its end. Else they are lifted here.
    """
    closed: list[str] = []

    async def put_up() -> None:
        for host in hosts:
            closed.append(host)
            await asked.remote.cordon(host, name, "a campaign empties this host")
        for host in hosts:
            told: Sequence[str] = ()
            while coming := (await asked.remote.room(host)).arriving:
                if coming != told:
                    say(clean(f"entourage: {', '.join(coming)} is on its way to {host}: waiting"))
                told = coming
                await asyncio.sleep(_LOOK_EVERY)

    async def lift() -> None:
        for host in closed:
            try:
                await asked.remote.uncordon(host, name)
            except EntourageError as error:
                say(clean(f"entourage: note: {error}; {host} takes no domains until there"
                          f" `entourage uncordon --name {name}`"))  # fmt: skip

    with _as_ctrl_c():
        try:
            asyncio.run(put_up())
            yield
        finally:
            # Also where another process has taken the name meanwhile: its cordons are not ours.
            if closed and not _is_written(store, name):
                asyncio.run(lift())


def _is_written(store: Store, name: str) -> bool:
    """Whether a campaign is; no where that is not known, for one that runs cordons anew."""
    with contextlib.suppress(EntourageError):
        return store.has(name)
    return False


@contextlib.contextmanager
def _as_ctrl_c() -> Generator[None]:
    """What else ends a command ends it as Ctrl-C does: what it has begun is undone."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _what(wanted: Wanted) -> str:
    return "-".join(["evacuate" if wanted.emptied else "migrate", *wanted.sources])[:40]


def list_campaigns(asked: Asked, *, as_json: bool) -> None:
    """Print all campaigns, the newest first."""
    found = asked.store().summaries()
    if as_json:
        put_json(found)
        return
    rows = [
        (
            one.name,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created)),
            one.phase,
            str(one.counts.get("moved", 0)),
            str(sum(one.counts.values())),
            one.owner,
        )
        for one in found
    ]
    put(*columns(("Campaign", "Begun", "State", "Moved", "Of", "Controller"), rows, right=(3, 4)))


def show(asked: Asked, name: str, *, as_json: bool) -> None:
    """Print one campaign, and each of its domains."""
    store = asked.store()
    summary, states = store.summary(name), store.states(name)
    history = Records(store.engine).history(name)
    if as_json:
        stays = store.spec(name).plan.stays
        put_json({"summary": summary, "moves": states, "stays": stays, "history": history})
        return
    put(*(line(one) for one in states))
    for stay in store.spec(name).plan.stays:
        put(*stay_lines(stay))
    put(sums(summary, len(store.spec(name).plan.stays)))
    if summary.reason:
        put(f"it stopped: {summary.reason}")
    for entry in reversed(history):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
        put(f"{when}  {entry.who} {entry.what}")


def wish(asked: Asked, name: str, wanted: Wish) -> None:
    """Say what is wanted of a campaign that somebody runs."""
    store = asked.store()
    summary = store.summary(name)
    store.wish(name, wanted)
    _note_down(store, name, DONE[wanted])
    if wanted in {"abort", "take-back"}:
        put(f"{name}: nothing more is begun")
        if summary.owner not in store.living(SILENT_AFTER):
            put(f"nobody runs it: `entourage campaign resume {name}` ends it")
    elif wanted == "pause":
        put(f"{name} is paused; `entourage campaign resume {name}` goes on with it")


def resume(asked: Asked, name: str) -> int:
    """Go on with a campaign: here, unless somebody runs it; returns the exit status."""
    store = asked.store()
    summary = store.summary(name)
    if summary.is_over:
        return tell(store, name)
    if summary.wish not in ABORTS:
        store.wish(name, "run")
        _note_down(store, name, DONE["run"])
    return run(asked, store, name)


def retry(asked: Asked, name: str) -> int:
    """Try what stayed, and what an abort left, again; returns the exit status."""
    store = asked.store()
    if not store.try_again(name):
        put(f"{name}: nothing is left to be tried")
        return tell(store, name)
    _note_down(store, name, RETRIED)
    return run(asked, store, name)


def _note_down(store: Store, name: str, what: str) -> None:
    """In a campaign's history, with whom this host has for the user; nothing waits for that."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # nobody has that number
        user = f"user {os.getuid()}"
    with contextlib.suppress(EntourageError):
        Records(store.engine).say(name, f"{user} on {socket.gethostname()}", what)


def watch(asked: Asked, name: str) -> int:
    """Show a campaign that somebody runs, until it is over; returns the exit status."""
    store = asked.store()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(store, name))
    return tell(store, name)


async def _watch(store: Store, name: str) -> None:
    """Show it until it is over; a database that is away is waited for."""
    screen = Screen(store, name)
    seen = {one.move.uuid: one for one in store.states(name)}
    outage = Outage(partial(screen.note, name))

    async def look() -> tuple[bool, Sequence[MoveState]]:
        over = (await in_thread(store.summary, name)).is_over
        return over, await in_thread(store.states, name)

    over = False
    while not over:
        over, states = await outage.through(look)
        for state in states:
            if seen.get(state.move.uuid) != state:
                seen[state.move.uuid] = state
                screen.changed(name, state)
        screen.end()
        if not over:
            await asyncio.sleep(_SHOW_EVERY)
