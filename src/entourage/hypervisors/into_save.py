"""Memory's way into a save: from the process that has it to the socket at which it is taken."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator, Callable

from entourage.hosts.filters import Pipeline
from entourage.hosts.flow import Flow, relayed
from entourage.hosts.local import connected_here
from entourage.hypervisors.reach import check_local
from entourage.hypervisors.values import LocalData


class PassedOn:
    """Memory's way through this host's own processes, to a save.

    Args:
        pipeline: What it goes through, if anything.
        relay: What sends it to another host, if that is where it goes.
    """

    def __init__(self, pipeline: Pipeline | None, relay: Flow | None) -> None:
        self._pipeline = pipeline
        self._relay = relay

    async def finished(self) -> None:
        """Wait until all of it is through; raises HypervisorError, or OSError."""
        if self._pipeline is not None:
            await self._pipeline.finished()
        if self._relay is not None:
            await self._relay.finished()

    async def end(self) -> None:
        """End it wherever it is."""
        if self._pipeline is not None:
            await self._pipeline.end()
        if self._relay is not None:
            await self._relay.end()


async def _passed_on(local: LocalData, source: socket.socket, target: socket.socket) -> PassedOn:
    """Have memory go on from one socket to another; the first one is not ours any more."""
    relay: Flow | None = None
    if not local.filters:
        return PassedOn(None, relayed(source, target.dup()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(source)
        if local.far:
            coming, going = socket.socketpair()
            relay, target = relayed(coming, target.dup()), stack.enter_context(going)
        commands = [one.there() for one in local.filters]
        pipeline = await Pipeline.begin(commands, source.fileno(), target.fileno())
    return PassedOn(pipeline, relay)


async def pass_into_save(local: LocalData, uri: str, source: socket.socket) -> PassedOn:
    """Have what comes from a socket go into a save, by ssh or through filters.

    Args:
        local: Where the save takes memory.
        uri: Where the other half says that it does.
        source: Where memory comes from; not the caller's any more.

    Raises:
        HypervisorError: Those are two places; or there is no way.
    """
    with source:
        check_local(local, uri)
        async with connected_here(local.socket) as connection:
            return await _passed_on(local, source.dup(), connection)


@contextlib.asynccontextmanager
async def way_into_save(
    local: LocalData, uri: str, passed_on: Callable[[PassedOn], None]
) -> AsyncGenerator[socket.socket]:
    """A connection at whose end memory is taken; closed here at the end.

    Args:
        local: Where that is.
        uri: Where the other half says that it is.
        passed_on: Takes what passes memory on that goes by ssh, or through a filter.

    Raises:
        HypervisorError: Those are two places; or there is no way.
    """
    check_local(local, uri)
    async with connected_here(local.socket) as connection:
        if not (local.far or local.filters):
            yield connection
            return
        mine, its = socket.socketpair()
        with its:
            passed_on(await _passed_on(local, mine, connection))
            yield its
