"""The network: byte streams between processes, which never reorder, and may be slow, silent or cut.

A stream stands for ssh's: what one end writes arrives at the other later, in order. A process that
ends has its streams closed; a host that loses power closes nothing. While the network is silent
nothing arrives, and what was written arrives when it is not any more, as TCP has it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from entourage.errors import LinkLost
from entourage.hosts.link import SILENT, Link
from tests.sim.loop import Process
from tests.sim.seams import Here

_END = b""


class Pipe:
    """One direction of a stream; also what a `Link` writes to."""

    def __init__(self, net: Network, writer: Process, reader: asyncio.StreamReader) -> None:
        self.net = net
        self.process = writer
        self.reader = reader
        self.last = 0.0
        self.closed = self.ended = self.dead = False
        self.transport = self
        writer.on_end.append(self.close)

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        Here.world.check_alive(self.process)
        if not self.closed:
            self.net.send(self, data)

    async def drain(self) -> None:
        """There is always room."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.net.send(self, _END)

    def arrive(self, data: bytes) -> None:
        if self.dead or self.ended:
            return
        if data:
            self.reader.feed_data(data)
        else:
            self.finish()

    def finish(self) -> None:
        """The other end sees the end of the stream."""
        if not self.ended:
            self.ended = True
            self.reader.feed_eof()


class Network:
    """What is between the two hosts.

    Attributes:
        silent: Nothing arrives.
        latency: Seconds that anything takes, at least.
    """

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.silent = False
        self.latency = 0.0002
        self.pipes: list[Pipe] = []
        self.waiting: list[tuple[Pipe, bytes]] = []
        self.on_change: list[Any] = []

    def pipe(self, writer: Process, reader: asyncio.StreamReader) -> Pipe:
        """A new direction."""
        made = Pipe(self, writer, reader)
        self.pipes.append(made)
        return made

    def send(self, pipe: Pipe, data: bytes) -> None:
        loop = self.loop
        pipe.last = max(pipe.last, loop.now + self.latency * (0.5 + loop.rng.random()))
        loop.after(pipe.last - loop.now, self._arrive, pipe, data)

    def _arrive(self, pipe: Pipe, data: bytes) -> None:
        if self.silent:
            self.waiting.append((pipe, data))
        else:
            pipe.arrive(data)

    def fall_silent(self) -> None:
        """Nothing arrives any more."""
        self.silent = True
        self._changed()

    def heal(self) -> None:
        """What was held up arrives."""
        self.silent = False
        self.latency = 0.0002
        waiting, self.waiting = self.waiting, []
        for pipe, data in waiting:
            pipe.arrive(data)

    def cut(self) -> None:
        """Every stream ends at once, with what was under way."""
        for pipe in self.pipes:
            if not pipe.dead:
                pipe.closed = True
                pipe.finish()
                pipe.dead = True
        self.pipes.clear()
        self._changed()

    def lose(self, host: Any) -> None:
        """A host has lost power: its streams stay as they are, and nothing travels on them."""
        for pipe in self.pipes:
            if host.has(pipe.process) or host.has(pipe.peer):
                pipe.dead = True
        self._changed()

    def _changed(self) -> None:
        for tell in list(self.on_change):
            tell()


@contextlib.asynccontextmanager
async def agent_link(world: Any, name: str, settings: Any) -> AsyncGenerator[Link]:
    """What ``ssh HOST entourage agent`` gives, as ``hosts.child.linked`` does."""
    loop, net = world.loop, world.net
    caller = loop.current
    there = world.host(name)
    reader = asyncio.StreamReader()
    agent = Process("agent", there, loop, there.booted)
    theirs = asyncio.StreamReader()
    out, back = net.pipe(caller, theirs), net.pipe(agent, reader)
    out.peer, back.peer = agent, caller
    gone = loop.create_future()

    def ended() -> None:
        if not gone.done():
            gone.set_result(None)

    agent.on_end.append(ended)

    async def last_words() -> LinkLost:
        return LinkLost(getattr(agent, "said", ""))

    link = Link(
        reader,
        out,  # type: ignore[arg-type]
        peer=name,
        silence=settings.migration.link_silence,
        last_words=last_words,
        noisy=True,
    )
    serving = asyncio.create_task(link.serve())

    def arrive() -> None:
        if net.silent or not there.on or caller.over() or out.closed:
            if world.rng.random() < 0.5 and not there.on:
                loop.after(3.0, back.finish)  # no route to host
            return
        there.processes.append(agent)
        loop.spawn(agent, lambda: there.agent(theirs, back))

    loop.after(0.02 + 0.2 * loop.rng.random(), arrive)
    try:
        yield link
    finally:
        link.close()
        patience = 2.0 if link.quiet < SILENT else 0.1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await asyncio.shield(gone)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
