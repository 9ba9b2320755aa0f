"""The source's ends of what goes to the target by ssh: disks, and the stream's transport."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from entourage.domain import Block
from entourage.errors import EntourageError, HypervisorError, plain_words, what_to_do
from entourage.hosts.threads import in_thread
from entourage.hypervisors.xen.copying import Sending
from entourage.hypervisors.xen.sender import Word

ALIVE_EVERY = 0.25  # seconds
_PASSES = 5
_FEW = 4 << 20
"""Bytes: a pass that sent no more is the last one before memory follows."""
_REST = 4.0
"""Seconds between two passes while memory is copied; or that many times what a pass takes."""


class DiskCopy:
    """One disk on its way, over an ssh of its own; one that is only read is copied once.

    Args:
        disk: The disk.
        ssh: The command that ends in the agent's hands.
        secret: What the stream begins with; not in the command, which every user can see.
        blank: What it is copied to holds zeros only.
    """

    def __init__(self, disk: Block, ssh: Sequence[str], secret: bytes, *, blank: bool) -> None:
        self.disk = disk
        self._ssh = list(ssh)
        self._secret = secret
        self._blank = blank
        self._process: subprocess.Popen[bytes] | None = None
        self._sending: Sending | None = None
        self._stop = threading.Event()
        self._again: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes done of the pass under way, and in total."""
        return (self._sending.done, self._sending.size) if self._sending else (0, 0)

    async def first(self) -> None:
        """Copy it, and then what has changed meanwhile, until that is little."""
        async with self._turn:
            await self._blocking(self._open)
            sending = self._opened()
            for _ in range(1 if self.disk.readonly else _PASSES):
                if await self._blocking(lambda: sending.send_changes(self._stop)) <= _FEW:
                    break
            await self._blocking(sending.verify)
        if not self.disk.readonly:
            self._again = asyncio.create_task(self._keep_up())

    async def last(self) -> None:
        """The guest has stopped: what has changed since, and the proof that all is there."""
        if self.disk.readonly:
            return
        self._stop.set()  # a pass under way ends: it began while the guest still wrote
        async with self._turn:
            sending = self._opened()
            await self._blocking(sending.send_changes)
            await self._blocking(sending.verify)

    async def _keep_up(self) -> None:
        """While memory is copied, so that little is left for the blackout."""
        loop = asyncio.get_running_loop()
        sending = self._opened()
        with contextlib.suppress(EntourageError):  # then the last pass says so
            while not self._stop.is_set():
                began = loop.time()
                async with self._turn:
                    await self._blocking(lambda: sending.send_changes(self._stop))
                await asyncio.sleep(max(_REST, _REST * (loop.time() - began)))

    def _open(self) -> None:
        self._process = subprocess.Popen(
            self._ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None  # noqa: S101 - asked for above
        assert self._process.stdout is not None  # noqa: S101
        out, back = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.write(out, self._secret)  # a pipe takes so few bytes at once
        self._sending = Sending(self.disk.path, out, back, blank=self._blank)

    def _opened(self) -> Sending:
        if self._sending is None:
            raise HypervisorError("its copy has not begun", device=self.disk.label)
        return self._sending

    async def _blocking(self, work: Any) -> Any:
        """Do it in a thread that is over before anybody closes what it uses."""
        working = in_thread(work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            self._stop.set()
            if self._process is not None:
                self._process.kill()  # a thread that waits for the target gets an error
            await asyncio.wait({working})
            raise
        except (OSError, HypervisorError) as error:
            ours = isinstance(error, HypervisorError)
            said = error.message if ours else plain_words(error)
            raise HypervisorError(
                f"it cannot be copied: {said}",
                device=self.disk.label,
                remedy=error.remedy if ours else what_to_do(error),
            ) from error

    async def close(self) -> None:
        """Give it up, or be done with it."""
        self._stop.set()
        if self._process is not None:
            self._process.kill()
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)
        async with self._turn:
            if self._process is not None:
                process, self._process = self._process, None
                await in_thread(process.wait)
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(OSError):
                            pipe.close()
            if self._sending is not None:
                self._sending.close()
                self._sending = None


class TransportEnd:
    """The engine's end of the transport that xl runs (``transport.py``).

    Args:
        path: Of the socket, in a directory that is root's alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed = 0
        """Bytes of the stream that have gone to the target."""
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._said: dict[Word, asyncio.Event] = {word: asyncio.Event() for word in Word}
        self._gone = asyncio.Event()
        self.why = ""
        """Why it has ended, where it says so."""
        self._order: dict[str, Any] = {}

    async def listen(self, order: dict[str, Any]) -> None:
        """Wait for it.

        Args:
            order: What it is told first: ``ssh``, the ``secret`` that the stream begins with, in
                hexadecimal, the ``changes`` of the header, and the ``budget`` of the blackout.
        """
        self._order = order
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._writer is not None:
            writer.close()
            return
        self._writer = writer
        writer.write(json.dumps(self._order).encode() + b"\n")
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                word, _, rest = line.decode(errors="replace").strip().partition(" ")
                if word == "passed":
                    self.passed = int(rest)
                    continue
                self.why = rest or self.why
                self._said[Word(word)].set()
        self._gone.set()
        writer.close()

    @property
    def has_gone(self) -> bool:
        """It has ended, or never came."""
        return self._writer is None or self._gone.is_set()

    async def gone(self) -> str:
        """Returns when it has ended; why, where it says so."""
        await self._gone.wait()
        return self.why

    def say(self, word: Word) -> None:
        """Tell it something; where it has gone, ``gone`` tells."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(f"{word.value}\n".encode())

    async def say_alive(self) -> NoReturn:
        """Say so until this is cancelled."""
        while True:
            self.say(Word.ALIVE)
            await asyncio.sleep(ALIVE_EVERY)

    async def hears(self, word: Word) -> None:
        """Wait until it says this.

        Raises:
            HypervisorError: It has ended instead.
        """
        said = asyncio.ensure_future(self._said[word].wait())
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait({said, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            said.cancel()
            gone.cancel()
        if not self._said[word].is_set():
            because = f": {self.why}" if self.why else ""
            raise HypervisorError(f"the stream to the target has ended{because}")

    async def close(self) -> None:
        """Let go of it as if this process had died."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._writer is not None:
            self._writer.close()
        self.path.unlink(missing_ok=True)
