"""A campaign runs in a terminal until it is over, or until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Final

from entourage.cli.campaign_shown import Screen
from entourage.cli.fleeting import SOME_STAY
from entourage.cli.output import put
from entourage.cli.tell import say
from entourage.errors import EntourageError
from entourage.fleet.controller import Runner
from entourage.fleet.database import DatabaseAwayError
from entourage.fleet.durable import Durable, controller_name
from entourage.fleet.outage import Outage
from entourage.fleet.shown import STATUSES, sums
from entourage.fleet.spec import Summary
from entourage.fleet.store import Store
from entourage.hosts.threads import in_thread
from entourage.report.text import clean

if TYPE_CHECKING:
    from entourage.cli.campaigns import Asked

_LOOK_EVERY: Final = 0.5  # seconds


def run(asked: Asked, store: Store, name: str) -> int:
    """Run a campaign in this terminal until it is over; returns the exit status."""
    return asyncio.run(_run(asked, store, name))


async def _run(asked: Asked, store: Store, name: str) -> int:
    screen = Screen(store, name)
    with controller_name(asked.settings) as owner:
        runner = Runner(store, asked.remote, owner, screen)
        async with Durable.open(runner, owner) as durable:
            others = Others(durable, store, name, screen)
            over = False
            pausing: list[asyncio.Task[None]] = []

            def nothing_more() -> None:
                if not over:
                    pausing.append(asyncio.create_task(pause(store, name)))
                    say("entourage: nothing more is begun; what moves is waited for"
                        " (again: not even that)")  # fmt: skip

            with _interrupts(nothing_more) as interrupted:
                running = asyncio.create_task(durable.run(name))
                leaving = asyncio.create_task(left(store, name, interrupted, pausing))
                drawing = asyncio.create_task(screen.draw())
                await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
                for task in (leaving, drawing, *pausing):
                    task.cancel()
                await asyncio.gather(leaving, drawing, *pausing, return_exceptions=True)
                if running.done():
                    over = True
                    screen.end()
                    await others.wait(interrupted)
                    running.result()  # raises
                else:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                    screen.end()
                    leaving.result()  # raises
                    if any(one.cancelled() for one in pausing):
                        say(clean(f"entourage: whether {name} is paused is not known:"
                                  f" `entourage campaign pause {name}`"))  # fmt: skip
                _tell_left(sorted(await others.names()))
    return tell(store, name)


def _tell_left(others: Sequence[str]) -> None:
    for other in others:
        say(clean(f"entourage: {other} is left as it is: `entourage campaign resume {other}` goes"
                  " on with it, or a controller that serves"))  # fmt: skip


class Others:
    """Other campaigns that this process runs: another one of its name was killed in them.

    Args:
        durable: Runs them.
        store: Where they are.
        name: The campaign that this process was started for.
        screen: Tells of them.
    """

    def __init__(self, durable: Durable, store: Store, name: str, screen: Screen) -> None:
        self._durable, self._store, self._name = durable, store, name
        self._screen = screen

    async def wait(self, interrupted: Sequence[int]) -> None:
        """Wait until they are over, or for Ctrl-C: without this process nobody might run them.

        One that is paused is not waited for.
        """
        before, told = len(interrupted), set[str]()
        self._screen.tells_others = True
        while len(interrupted) == before:
            goes = [one for one in sorted(await self.names()) if await self._goes(one)]
            if not goes:
                return
            for other in goes:
                if other not in told:
                    told.add(other)
                    say(clean(f"entourage: {other}, which was begun before, goes on here and is"
                              " waited for (Ctrl-C leaves it)"))  # fmt: skip
            await asyncio.sleep(_LOOK_EVERY)

    async def names(self) -> set[str]:
        """Those that this process runs."""
        return await self._durable.pending() - {self._name}

    async def _goes(self, name: str) -> bool:
        """Whether it does anything, or will."""
        summary = await in_thread(self._store.summary, name)
        return summary.wish != "pause" or bool(summary.counts.get("moves"))


async def pause(store: Store, name: str) -> None:
    """Have a campaign be paused; a database that is away is asked again, for some minutes.

    Why it is not paused is said, and raised by nothing: what moves is waited for all the same.
    """

    async def ask() -> None:
        await in_thread(store.wish, name, "pause")

    said: list[str] = []

    def note(why: str) -> None:
        said.append(why)
        say(clean(f"entourage: pausing {name}: {why}"))

    try:
        await Outage(note).through(ask)
    except EntourageError as error:
        say(clean(f"entourage: {name} is not paused: {error}"))
    else:
        if said:
            say(clean(f"entourage: {name} is paused now"))


async def left(
    store: Store, name: str, interrupted: Sequence[int], pausing: Sequence[asyncio.Future[None]]
) -> None:
    """Returns once nothing moves any more of one that was interrupted, or at the second Ctrl-C.

    Args:
        store: Where it is.
        name: The campaign.
        interrupted: The signals that were heard.
        pausing: What has it be paused, as soon as that was begun; it tells its own errors.

    Raises:
        EntourageError: The store cannot be read.
    """
    asking: asyncio.Future[Summary] | None = None
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        if len(interrupted) > 1:
            return
        if not interrupted or not all(one.done() for one in pausing):
            continue
        for one in pausing:
            one.result()  # a bug is raised
        asking = asking or in_thread(store.summary, name)
        if asking.done():
            with contextlib.suppress(DatabaseAwayError):  # the next look may be answered
                if not asking.result().counts.get("moves"):
                    return
            asking = None


@contextlib.contextmanager
def _interrupts(first: Callable[[], None]) -> Generator[Sequence[int]]:
    """Hear signals that end a command, and do something at the first of them."""
    heard: list[int] = []
    loop = asyncio.get_running_loop()

    def on(number: int) -> None:
        heard.append(number)
        if len(heard) == 1:
            first()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on, number)
    try:
        yield heard
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def tell(store: Store, name: str) -> int:
    """Say how a campaign stands, and what each domain that did not move wants; the exit status."""
    summary, states = store.summary(name), store.states(name)
    stays = store.spec(name).plan.stays
    lines: list[str] = []
    for state in states:
        if state.status not in {"moved", "waits", "moves"}:
            lines.append(f"{state.move.name} {STATUSES[state.status]}: {state.message}")
            if state.remedy:
                lines.append(f"  remedy: {state.remedy}")
    put(*lines, sums(summary, len(stays)))
    if summary.reason:
        put(f"it stopped: {summary.reason}")
    if not summary.is_over:
        how = "paused" if summary.wish == "pause" else "not over"
        put(f"it is {how}; `entourage campaign resume {name}` goes on with it")
    elif any(state.status in {"stays", "waits"} for state in states):
        put(f"`entourage campaign retry {name}` tries them again")
    moved = summary.counts.get("moved", 0) + summary.counts.get("elsewhere", 0)
    if moved == len(states) and not stays:
        return 0
    return SOME_STAY
