"""``entourage fleet serve``: a controller, and its page."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from entourage.cli.campaigns import Asked
from entourage.cli.tell import say
from entourage.errors import EntourageError, UsageError, ours
from entourage.report.text import clean

try:
    from entourage.cli.campaign_shown import Log
    from entourage.fleet.controller import Runner
    from entourage.fleet.durable import Durable, controller_name
    from entourage.fleet.page.access import Access
    from entourage.fleet.page.actions import Actions
    from entourage.fleet.page.app import Page
    from entourage.fleet.page.rooms import Rooms
    from entourage.fleet.page.serve import listen_at, listening, serving
    from entourage.fleet.records import Records
except ModuleNotFoundError as error:
    raise UsageError(
        f"the page needs more packages ({error.name} is not there)",
        remedy="pip install 'entourage[fleet]'",
    ) from error

if TYPE_CHECKING:
    from entourage.fleet.store import Store

_LOOK_EVERY: Final = 2.0  # seconds


def serve(asked: Asked, listen: str) -> int:
    """Be a controller: run what others have begun and cannot go on with, until a signal.

    Args:
        asked: Where campaigns are kept, and who the hosts are.
        listen: Where the page is to be had, ``unix:PATH`` or ``ADDRESS:PORT``; empty: no page.

    Raises:
        UsageError: It cannot listen there.
        EntourageError: The page has ended by itself; or the database cannot be reached at first.
    """
    return asyncio.run(_serve(asked, listen))


async def _serve(asked: Asked, listen: str) -> int:
    store = asked.store()
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    async with contextlib.AsyncExitStack() as stack:
        owner = stack.enter_context(controller_name(asked.settings))
        log = Log()
        runner = Runner(store, asked.remote, owner, log)
        durable = await stack.enter_async_context(Durable.open(runner, owner))
        page: asyncio.Task[None] | None = None
        if listen:
            actions = Actions(store, Records(store.engine), durable, owner, log.note)
            page = await stack.enter_async_context(_page(asked, store, actions, listen))
            page.add_done_callback(lambda _: over.set())
        say(f"entourage: controller {owner} runs")
        problem = ""
        while not over.is_set():
            problem = await _take_over(durable, problem)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _LOOK_EVERY)
        if page is not None and page.done():
            raise _ended(page)
    return 0


async def _take_over(durable: Durable, before: str) -> str:
    """Have what dead controllers ran go on here.

    Args:
        durable: Runs campaigns.
        before: What was against it the last time, which is not said again.

    Returns:
        What is against it; empty: nothing.
    """
    try:
        dead = await durable.take_over()
    except EntourageError as error:  # the database may come back
        if str(error) != before:
            say(clean(f"entourage: {error}"))
        return str(error)
    if before:
        say("entourage: the fleet's database answers again")
    for one in dead:
        say(clean(f"entourage: controller {one} is dead; its campaigns go on here"))
    return ""


def _ended(page: asyncio.Task[None]) -> EntourageError:
    """Who starts controllers is to see that this one has failed."""
    error = None if page.cancelled() else page.exception()
    why = f": {ours(error)}" if error is not None else ""
    ended = EntourageError(
        f"the page has ended by itself{why}", remedy="start the controller again"
    )
    ended.__cause__ = error
    return ended


@contextlib.asynccontextmanager
async def _page(
    asked: Asked, store: Store, actions: Actions, listen: str
) -> AsyncGenerator[asyncio.Task[None]]:
    """Serve it.

    Yields:
        What serves; it ends by itself only where it fails.
    """
    settings = asked.settings.fleet
    where = listen_at(listen, settings)
    access = Access(
        settings, over_unix=bool(where.path), for_proxies=not where.is_loopback
    )  # fmt: skip
    rooms = Rooms(asked.remote)
    names = [one.name for one in asked.fleet.host]

    def note(text: str) -> None:
        say(clean(f"entourage: {text}"))

    page = Page(store, rooms, names, actions, access, note=note)
    with listening(where, settings) as made:
        port = "" if where.path else f":{made.getsockname()[1]}"
        async with serving(page.app(), made) as task:
            say(clean(f"entourage: the page is at {where.path or where.address}{port}"))
            try:
                yield task
            finally:
                page.close()
                await rooms.close()
                await actions.close()
