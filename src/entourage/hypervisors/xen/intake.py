"""Runs xl's receiver: gives it the stream, reads what it says, and gives it GO.

The stream's header, with the domain's configuration, is looked at before xl is even started, and
xl is given one that was made anew of what was understood: it reads nothing that was not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

from entourage.errors import HypervisorError
from entourage.hosts.process import ProcessHandle, last_lines, launch, start_time
from entourage.hosts.threads import in_thread
from entourage.hypervisors.xen import header
from entourage.hypervisors.xen import xl as xl_program
from entourage.hypervisors.xen.constants import GO
from entourage.hypervisors.xen.receiver import Receiver, Said

_CHUNK = 1 << 20
Look: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
"""Looks at a configuration; raises an EntourageError where it is not to be built."""


class Intake:
    """One receiver.

    Args:
        marker: By which its processes are found again.
        log: Takes what it says for people.
        note: Where it is written down which process it is, for ``receiver``.
        saved: The stream is one that was saved, which ends by itself.
    """

    def __init__(self, marker: str, log: Path, note: Path, *, saved: bool = False) -> None:
        self._marker = marker
        self.log = log
        self._note = note
        self._saved = saved
        self._log_from = 0
        self._receiver = Receiver()
        self._changed = asyncio.Condition()
        self._problem = ""
        self._over = self._has_begun = False
        self._go = -1
        """Our end of its input, beside the one that the stream goes through."""
        self._cut = os.eventfd(0, os.EFD_CLOEXEC)
        self._reading: asyncio.Task[None] | None = None

    @property
    def said(self) -> Said:
        """The last thing that it has said."""
        return self._receiver.said

    async def start(self, stream: int, look: Look) -> None:
        """Look at the configuration that begins a stream, then start xl, and give it all.

        Args:
            stream: Where the domain comes from; closed by this.
            look: Sees the configuration first.

        Raises:
            EntourageError: It is not to be built, or xl cannot be started.
        """
        try:
            config = await self._configuration(stream)
            await look(config)
        except BaseException:
            os.close(stream)
            raise
        await self._start(stream, header.header_of(config))

    async def _configuration(self, stream: int) -> dict[str, Any]:
        if self._has_begun:
            raise HypervisorError("there is a stream of its memory already")
        self._has_begun = True
        ours = os.dup(stream)  # whoever waits here may be cancelled, and its reader still read

        def read() -> dict[str, Any]:
            try:
                return _configuration(ours, self._cut)
            finally:
                os.close(ours)

        return await in_thread(read)

    async def _start(self, stream: int, begins: bytes) -> None:
        with contextlib.suppress(OSError):
            self._log_from = self.log.stat().st_size
        theirs, self._go = os.pipe2(os.O_CLOEXEC)
        ours, says = os.pipe2(os.O_CLOEXEC)
        try:
            pid = await launch(
                [xl_program.find() or "xl", "migrate-receive"],
                marker=self._marker,
                log=self.log,
                unit=f"entourage-{self._marker}",
                stdin=theirs,
                stdout=says,
                environment={"PATH": xl_program.search_path()},
            )
        except BaseException:
            os.close(ours)
            os.close(stream)
            self._close_go()
            raise
        finally:
            os.close(theirs)
            os.close(says)
        self._note.write_text(f"{pid} {start_time(pid) or 0}")
        self._reading = asyncio.create_task(self._read(ours))
        loop = asyncio.get_running_loop()
        through, cut = os.dup(self._go), os.dup(self._cut)

        def pump() -> None:
            _pass_on(begins, stream, through, cut)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._stream_ended)

        threading.Thread(target=pump, daemon=True).start()

    def _stream_ended(self) -> None:
        """The source has closed its end. Before READY that is a failure, which xl must see."""
        if not self._saved and self.said in {Said.NOTHING, Said.BANNER}:
            self._close_go()

    async def _read(self, says: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(says, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            while data := await reader.read(_CHUNK):
                self._receiver.feed(data)
                await self._tell()
        except HypervisorError as error:
            self._problem = error.message
        finally:
            transport.close()
            self._over = True
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def reaches(self, wanted: Said) -> None:
        """Wait until it has said this.

        Raises:
            HypervisorError: It has ended without.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self.said.value >= wanted.value or self._over)
        if self.said.value < wanted.value:
            said = last_lines(self.log, self._log_from) or "nothing"
            raise HypervisorError(f"xl's receiver has given up: {self._problem or said}")

    async def go(self) -> Said:
        """Give it GO, and wait for its report: RUNS, or REFUSED.

        Raises:
            EOFError: It ended without one.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, GO)
        async with self._changed:
            await self._changed.wait_for(lambda: self.said.value >= Said.RUNS.value or self._over)
        if self.said.value < Said.RUNS.value:
            raise EOFError
        return Said.RUNS if self.said is Said.RUNS else Said.REFUSED

    async def end(self, patience: float = 1.0) -> None:
        """Let it see the end, and wait until it is through with what it does then.

        Args:
            patience: Seconds that it has before it is killed.
        """
        self.cut()
        self._close_go()
        await receiver_ended(self._note, patience)
        if self._reading is not None:
            await self._reading

    def cut(self) -> None:
        """Read no more of the stream."""
        os.eventfd_write(self._cut, 1)

    def _close_go(self) -> None:
        if self._go >= 0:
            os.close(self._go)
            self._go = -1


async def receiver_ended(note: Path, patience: float) -> None:
    """Wait until the receiver has ended; but not for what it leaves to watch over the domain.

    Args:
        note: Where it is written down which process it is.
        patience: Seconds that it has before it is killed.
    """
    try:
        pid, started = map(int, note.read_text().split())  # noqa: ASYNC240 - /run
    except (OSError, ValueError):  # it was never started
        return
    handle = ProcessHandle.open(pid, started)
    if handle is None:
        return
    try:
        async with asyncio.timeout(patience):
            await handle.ended()
    except TimeoutError:
        handle.kill()
        await handle.ended()
    finally:
        handle.close()


def _configuration(stream: int, cut: int) -> dict[str, Any]:
    """Read the header of a stream; blocks until it has come, or ``cut``."""
    fixed = _exactly(stream, header.SIZE, cut)
    return header.sent_configuration(fixed, _exactly(stream, header.more(fixed), cut))


def _exactly(stream: int, count: int, cut: int) -> bytes:
    got = bytearray()
    waits = select.poll()
    for each in (stream, cut):
        waits.register(each, select.POLLIN)
    while len(got) < count:
        if cut in dict(waits.poll()) or not (data := os.read(stream, count - len(got))):
            raise HypervisorError("the stream has ended before the domain's configuration")
        got += data
    return bytes(got)


def _pass_on(begins: bytes, source: int, sink: int, cut: int) -> None:
    """Write some bytes to a pipe, and then all that comes, until ``cut``; close all three."""
    try:
        rest = memoryview(begins)
        while rest:
            rest = rest[os.write(sink, rest) :]
        waits = select.poll()
        for each in (source, cut):
            waits.register(each, select.POLLIN)
        while True:
            if cut in dict(waits.poll()) or not os.splice(source, sink, _CHUNK):
                return
    except OSError:
        return  # either end is gone, which the other one sees now
    finally:
        for each in (source, sink, cut):
            os.close(each)
