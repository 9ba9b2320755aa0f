"""Links to the agent of a target: its own, or a proxy agent where it has no Entourage."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from entourage.errors import EntourageError
from entourage.hosts import proxy_agent, ssh
from entourage.hosts.link import Link
from entourage.hosts.route import host_of
from entourage.hypervisors.registry import elsewhere
from entourage.settings.model import Settings


def agent_link(host: str, hypervisor: str, settings: Settings) -> AbstractAsyncContextManager[Link]:
    """A link to a target's own agent, or to a proxy agent; the agent ends with the context.

    Args:
        host: As ssh knows it; ``proxy_agent.THIS_HOST`` where a save is restored; of one that is
            made its directory, ``HOST:DIRECTORY`` on another host.
        hypervisor: The name of the target's.
        settings: This host's.

    Raises:
        LinkError: It cannot be started.
    """
    if host == proxy_agent.THIS_HOST:
        return proxy_agent.local_link(settings)
    there = elsewhere(hypervisor)
    if there is None:
        return ssh.start_agent(host, settings)
    if not there.is_host and (far := host_of(host)):
        return ssh.start_agent(far, settings, ["agent", "--saves"])
    return proxy_agent.proxy_link(host, settings, local=not there.is_host)


class EarlyAgent:
    """An agent that is started before it is known what is to be asked of it: a context manager.

    It is a second program that has to be read and begun. Meanwhile its caller finds out what was
    asked for.

    Args:
        start: What starts the one that ``agent_link`` would, and raises EntourageError; None: it is
            started only when it is needed.
    """

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[Link]] | None) -> None:
        self._start = start
        self._stack = contextlib.AsyncExitStack()
        self._link: Link | None = None

    async def __aenter__(self) -> Self:
        """Start it. Where that fails, ``link`` does so again, and raises what is to be told."""
        if self._start is None:
            return self
        with contextlib.suppress(EntourageError):
            self._link = await self._stack.enter_async_context(self._start())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, unless somebody has it."""
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def link(self, host: str, hypervisor: str, settings: Settings) -> AsyncGenerator[Link]:
        """As ``agent_link``; the first time to the agent that was started, if it has not ended."""
        early, self._link = self._link, None
        if early is None or not early.alive:
            async with agent_link(host, hypervisor, settings) as link:
                yield link
            return
        early.peer = host
        async with self._stack.pop_all():
            yield early
