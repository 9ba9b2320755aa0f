"""One link to a target over which several domains are tested, one after the other.

A link costs an ssh and an agent's start, which take longer than a TEST does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from entourage import messages
from entourage.clock import Clock
from entourage.hosts.link import Link
from entourage.hosts.route import Route
from entourage.settings.model import Settings
from entourage.source.greeting import greet
from entourage.source.opening import Opening, Reached, open_session, reached


class _Kept(NamedTuple):
    link: Link
    name: str
    route: Route


class KeptLink:
    """A context manager; what was kept ends with it."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._kept: _Kept | None = None

    async def __aenter__(self) -> Self:
        """Keep nothing yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the link."""
        await self._stack.aclose()

    @property
    def open(self) -> Opening:
        """What opens a session for TEST, as ``open_session`` does."""
        return partial(open_session, reach=self._reach)

    @contextlib.asynccontextmanager
    async def _reach(
        self, route: Route, there: str, hello: messages.Hello, settings: Settings, clock: Clock
    ) -> AsyncGenerator[Reached]:
        kept = self._kept
        same = kept is not None and (kept.route, kept.name) == (route, there)
        if kept is not None and same and kept.link.alive:
            about = msgspec.structs.replace(hello, hypervisor=kept.name)
            yield Reached(kept.link, await greet(kept.link, clock, about), kept.name)
            return
        async with contextlib.AsyncExitStack() as mine:
            found = await mine.enter_async_context(reached(route, there, hello, settings, clock))
            # An older agent is about one domain; another hypervisor's is asked for anew.
            if found.welcome.protocol >= messages.TESTS_SEVERAL and found.name == there:
                self._kept = _Kept(found.link, found.name, route)
                await self._stack.enter_async_context(mine.pop_all())
            yield found
