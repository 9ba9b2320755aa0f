"""Runs xl's receiver: gives it the stream, reads what it says, and gives it GO."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from pathlib import Path

from entourage.errors import HypervisorError
from entourage.hosts.process import ProcessHandle, last_lines, launch, start_time
from entourage.hypervisors.xen import xl as xl_program
from entourage.hypervisors.xen.constants import GO
from entourage.hypervisors.xen.receiver import Receiver, Said

_CHUNK = 1 << 20


class Intake:
    """One receiver.

    Args:
        marker: By which its processes are found again.
        log: Takes what it says for people.
        note: Where it is written down which process it is, for ``receiver``.
    """

    def __init__(self, marker: str, log: Path, note: Path) -> None:
        self._marker = marker
        self.log = log
        self._note = note
        self._log_from = 0
        self._receiver = Receiver()
        self._changed = asyncio.Condition()
        self._problem = ""
        self._over = False
        self._go = -1
        """Our end of its input, beside the one that the stream goes through."""
        self._cut = os.eventfd(0, os.EFD_CLOEXEC)
        self._reading: asyncio.Task[None] | None = None

    @property
    def said(self) -> Said:
        """The last thing that it has said."""
        return self._receiver.said

    async def start(self, stream: int) -> None:
        """Start it, and give it a stream.

        Args:
            stream: Where the domain comes from; closed by this.

        Raises:
            EntourageError: xl cannot be started.
        """
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
            _splice(stream, through, cut)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._stream_ended)

        threading.Thread(target=pump, daemon=True).start()

    def _stream_ended(self) -> None:
        """The source has closed its end. Before READY that is a failure, which xl must see."""
        if self.said in {Said.NOTHING, Said.BANNER}:
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
        os.eventfd_write(self._cut, 1)
        self._close_go()
        await receiver_ended(self._note, patience)
        if self._reading is not None:
            await self._reading

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


def _splice(source: int, sink: int, cut: int) -> None:
    """Move all that comes from one pipe or socket into a pipe, until ``cut``; close all three."""
    try:
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
