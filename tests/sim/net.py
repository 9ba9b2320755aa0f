"""The network: byte streams between processes, which never reorder, and may be slow, silent or cut.

A stream stands for ssh's: what one end writes arrives at the other later, in order. A process that
ends has its streams closed; a host that loses power closes nothing. While the network is silent
nothing arrives, and what was written arrives when it is not any more, as TCP has it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.sim.loop import Process
from tests.sim.seams import Here

_END = b""


class Pipe:
    """One direction of a stream; also what a `Link` writes to."""

    def __init__(
        self, net: Network, writer: Process, peer: Process, reader: asyncio.StreamReader
    ) -> None:
        self.net = net
        self.process, self.peer = writer, peer
        self.on_finish: Callable[[], None] = lambda: None
        self.reader = reader
        self.last = 0.0
        self.under_way: deque[bytes] = deque()
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
            self.on_finish()


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

    def pipe(self, writer: Process, peer: Process, reader: asyncio.StreamReader) -> Pipe:
        """A new direction."""
        made = Pipe(self, writer, peer, reader)
        self.pipes.append(made)
        return made

    def send(self, pipe: Pipe, data: bytes) -> None:
        loop = self.loop
        pipe.last = max(pipe.last, loop.now + self.latency * (0.5 + loop.rng.random()))
        pipe.under_way.append(data)
        loop.after(pipe.last - loop.now, self._arrive, pipe)

    def _arrive(self, pipe: Pipe) -> None:
        data = pipe.under_way.popleft()  # of two at one moment, the first
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


class Ssh:
    """The process that ``ssh HOST entourage agent`` is at the source, and the agent behind it.

    Attributes:
        stdin, stdout, stderr, returncode: As those of ``asyncio.subprocess.Process``.
    """

    def __init__(self, world: Any, name: str) -> None:
        self.world = world
        loop, net = world.loop, world.net
        self.caller = loop.current
        self.there = world.host(name)
        self.agent = Process("agent", self.there, loop, self.there.booted)
        self.theirs = asyncio.StreamReader()
        self.stdout, self.stderr = asyncio.StreamReader(), asyncio.StreamReader()
        self.stdin = net.pipe(self.caller, self.agent, self.theirs)
        self.back = net.pipe(self.agent, self.caller, self.stdout)
        self.back.on_finish = lambda: self._exits(self.agent.status)
        self.returncode: int | None = None
        self._gone: list[asyncio.Future[None]] = []
        net.on_change.append(self._network)
        loop.after(0.02 + 0.2 * loop.rng.random(), self._arrives)

    def _arrives(self) -> None:
        net, there = self.world.net, self.there
        if self.returncode is not None or self.stdin.closed:
            return
        if net.silent or not there.on:
            self.world.loop.after(3 + 20 * self.world.rng.random(), self._gives_up)
            return
        there.processes.append(self.agent)
        self.world.loop.spawn(self.agent, lambda: there.agent(self.theirs, self.back, self.stderr))

    def _network(self) -> None:
        if self.world.net.silent and self.returncode is None:
            self.world.loop.after(20, self._gives_up)  # ServerAliveInterval=5, three times

    def _gives_up(self) -> None:
        if self.returncode is None and (self.world.net.silent or self.back.dead or self.unborn):
            self.stderr.feed_data(b"Timeout, server not responding.\n")
            self.back.finish()
            self._exits(255)

    @property
    def unborn(self) -> bool:
        """Whether no agent was ever started."""
        return self.agent.main is None

    def _exits(self, status: int) -> None:
        if self.returncode is None:
            self.returncode = status
            self.stderr.feed_eof()
            self.stdin.close()
            for future in self._gone:
                if not future.done():
                    future.set_result(None)

    async def wait(self) -> int:
        while self.returncode is None:
            future = asyncio.get_running_loop().create_future()
            self._gone.append(future)
            await future
        return self.returncode

    def kill(self) -> None:
        self.back.finish()
        self._exits(-9)
