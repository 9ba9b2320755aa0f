"""``entourage agent``: one link on standard input and output, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from entourage.errors import UsageError
from entourage.hosts.link import Link
from entourage.hypervisors.registry import read_ahead
from entourage.journal.journal import Journal
from entourage.settings.model import Settings
from entourage.target.agent import Agent
from entourage.target.caller import Caller, trusting


@contextlib.asynccontextmanager
async def agents_link(settings: Settings) -> AsyncGenerator[Link]:
    """A link on standard input and output, which nothing else can write to from here on."""
    loop = asyncio.get_running_loop()
    for descriptor in (0, 1):
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise UsageError(
                "the agent speaks to `entourage migrate`, which starts it over ssh",
                remedy="nobody needs to start it by hand",
            )
    inward, outward = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123, ASYNC230 - a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    reader = asyncio.StreamReader(limit=1 << 20)
    in_transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(inward, "rb", buffering=0)
    )
    out_transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(outward, "wb", buffering=0)
    )
    writer = asyncio.StreamWriter(out_transport, protocol, None, loop)
    try:
        yield Link(reader, writer, peer="the source", silence=settings.migration.link_silence)
    finally:
        in_transport.close()
        out_transport.close()


async def serve(settings: Settings, caller: Caller) -> None:
    """Be the agent on standard input and output until the link ends.

    Args:
        settings: This host's.
        caller: What is known of the source before it says anything.

    Raises:
        JournalError: The journal cannot be used; ssh shows it to the user on the source.
        UsageError: Standard input and output are none of ssh's.
    """
    loop = asyncio.get_running_loop()
    if caller.local:
        settings = trusting(settings)
    with Journal.open(Path(settings.paths.state, "journal.db"), keep=settings.journal) as journal:
        async with agents_link(settings) as link:
            agent = Agent(link, settings, journal, caller)
            if caller.local and not caller.proxy:  # who restores is seldom ready to ask yet
                loop.call_soon(read_ahead, settings)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                loop.add_signal_handler(number, agent.end)
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)
            await agent.run()
    sys.stderr.flush()
