"""Digests of files, SHA-256, made by a program; no byte of them passes through here.

``openssl`` is several times as fast as ``sha256sum`` of coreutils, which uses no instructions made
for it (1.6 GB/s and 0.3 GB/s of the same processor); where there is none, the latter is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

from entourage.errors import HypervisorError, plain_words, what_to_do
from entourage.hosts import programs
from entourage.hosts.threads import in_thread
from entourage.hosts.turns import HEAD, Turn, turned

_DIGITS = 64
_AT_ONCE = 1 << 20  # bytes, also the most that a pipe may hold without privileges
NICE = 10
"""Guests go first, also the one that is saved."""


_FAST = ("openssl", "dgst", "-sha256", "-r")
_EVERYWHERE = ("sha256sum", "--binary")
"""Each writes the digest of its standard input, in hexadecimal digits, and more after it."""


def _command() -> tuple[str, ...]:
    return _FAST if shutil.which(_FAST[0]) else _EVERYWHERE


async def sha256(path: Path, *, nice: int = NICE) -> str:
    """The digest of a file, in hexadecimal digits.

    Args:
        path: The file.
        nice: How far the program that makes it stands back for others.

    Raises:
        HypervisorError: It cannot be read, or the program not be run.
    """
    try:
        handle = await in_thread(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(plain_words(error), remedy=what_to_do(error)) from error
    try:
        if (command := _command()) == _FAST:
            # It may be there and not work, as its libraries are upgraded; then this says nothing.
            with contextlib.suppress(HypervisorError):
                return await _answer(await _started(handle, command, nice), path)
            os.lseek(handle, 0, os.SEEK_SET)
        return await _answer(await _started(handle, _EVERYWHERE, nice), path)
    finally:
        os.close(handle)


async def _started(source: int, command: Sequence[str], nice: int) -> Process:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=source, stdout=PIPE, stderr=PIPE, env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        raise HypervisorError(
            f"no digest can be made: {plain_words(error)}", remedy="install openssl"
        ) from error
    if not nice:
        return process
    with contextlib.suppress(OSError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, process.pid, nice)
    return process


async def _answer(process: Process, path: Path) -> str:
    """What it says at its end; it is ended where this is cancelled."""
    try:
        out, said = await process.communicate()
    finally:
        await programs.kill(process)
    digest = out[:_DIGITS].decode(errors="replace")
    if process.returncode or len(digest) != _DIGITS or set(digest) - set("0123456789abcdef"):
        words = " ".join(said.decode(errors="replace").split()) or f"status {process.returncode}"
        raise HypervisorError(f"{path} cannot be read: {words}", remedy="see the kernel's log")
    return digest


class GrowingDigest:
    """The digest of a file that is being written, made as it grows.

    So it is there soon after the last byte is, and not as long again later. A thread has the kernel
    pass what is there to the program.

    Args:
        path: The file.
        behind: Bytes at the end that are not known to stay before it is whole.
        turns: What stands in its first bytes meanwhile, and is another once it is whole. Where
            something else stands there, the file is read once it is whole.

    Attributes:
        passed: Bytes that the program was given.
    """

    def __init__(self, path: Path, *, behind: int = 0, turns: Sequence[Turn] = ()) -> None:
        self._path = path
        self._behind = behind
        self._turns = turns
        self._head = b""
        self._news = threading.Condition()
        self._written = 0
        self.passed = 0
        self._size: int | None = None
        self._given_up = False
        self._answer: asyncio.Task[str] | None = None

    async def begin(self) -> None:
        """Start the program; where that cannot be, ``finish`` reads the file."""
        out, inward = os.pipe2(os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # smaller, and slower
                fcntl.fcntl(inward, fcntl.F_SETPIPE_SZ, _AT_ONCE)
            process = await _started(out, _command(), NICE)
        except HypervisorError:
            os.close(inward)
            return
        except BaseException:
            os.close(inward)
            raise
        finally:
            os.close(out)
        self._answer = asyncio.create_task(_answer(process, self._path))
        passing = threading.Thread(target=self._pass_on, args=(inward,), name="digest", daemon=True)
        passing.start()

    def written(self, count: int) -> None:
        """So many bytes more are written, one after the other; from any thread."""
        with self._news:
            self._written += count
            self._news.notify()

    async def finish(self, size: int) -> str:
        """The digest of the whole file, of so many bytes.

        Raises:
            HypervisorError: It cannot be read.
        """
        if self._answer is None:
            return await sha256(self._path)
        with self._news:
            self._size = size
            self._news.notify()
        with contextlib.suppress(HypervisorError):  # the program has been ended, or does not work
            digest = await self._answer
            # What was not passed on, or as another, is not to be found out by who restores it.
            if self.passed == size and await in_thread(self._begins_so):
                return digest
        return await sha256(self._path)

    def _begins_so(self) -> bool:
        """Whether the whole file begins with what was passed on for that."""
        if not self._head:
            return not self._turns
        with contextlib.suppress(OSError), self._path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), len(self._head), 0) == self._head
        return False

    async def end(self) -> None:
        """Nobody wants it any more."""
        with self._news:
            self._given_up = True
            self._news.notify()
        if self._answer is not None:
            self._answer.cancel()  # which ends the program, and so the thread
            await asyncio.gather(self._answer, return_exceptions=True)

    def _pass_on(self, inward: int) -> None:
        """In a thread of its own: what storage or program hold up holds up nothing else."""
        handle = -1
        with contextlib.suppress(OSError):  # ``finish`` sees that it is not all
            while (more := self._more()) > 0:
                if handle < 0:  # it is made by who writes it
                    handle = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                if self._turns and not self._head:
                    if not self._pass_head(handle, inward):
                        break
                    continue
                moved = os.splice(handle, inward, min(more, _AT_ONCE), offset_src=self.passed)
                if not moved:
                    break
                self.passed += moved
        os.close(inward)
        if handle >= 0:
            os.close(handle)

    def _pass_head(self, handle: int, inward: int) -> bool:
        """Pass its first bytes on as they will be; False where that is not known."""
        head = turned(os.pread(handle, HEAD, 0), self._turns)
        if head is None:
            return False
        while self.passed < len(head):
            self.passed += os.write(inward, head[self.passed :])
        self._head = head
        return True

    def _more(self) -> int:
        """How many bytes there are to be passed on now; 0 where that was all."""
        least = HEAD if self._turns and not self._head else 1
        with self._news:
            while True:
                if self._given_up:
                    return 0
                if self._size is not None:
                    return self._size - self.passed
                if (more := self._written - self._behind - self.passed) >= least:
                    return more
                self._news.wait()
