"""Running an external tool: one call, one process, in a session of its own.

A call is over when the tool's main process exits, whoever still holds its output open. Until then
its output is read all the time and little of it is kept, whatever comes.

A process can be *armed*: it is there before it is needed and waits at a gate, so that a step of
many tools at once costs no more inside the blackout than their own ``exec``. The gate is a fixed
line of ``sh``; the tool's words are its arguments and are never parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from entourage.devices.tool.output import Output

GRACE: Final = 0.25
"""Seconds between SIGTERM and SIGKILL; they may lie in the blackout."""
LAST_WORDS: Final = 1.0
"""Seconds that a tool has left once it has said ``Error``."""
KILL_PATIENCE: Final = 5.0
"""Seconds to wait for the kernel to end a process that was killed."""

# A byte opens the gate. If whoever holds it dies instead, `read` fails and the tool never starts.
_GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh")
_CHUNK = 1 << 16
_DRAIN = 16  # chunks: 1 MiB, the most that a pipe holds (/proc/sys/fs/pipe-max-size)


class _Stream(Protocol):
    """An end of a pipe, unbuffered."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class ToolProcess:
    """One call's process; it runs, or waits at its gate, from the moment this is made.

    Needs a running loop. Whoever makes one calls ``finish`` or ``end``, once.

    Args:
        argv: The program and its arguments.
        environment: All of it.
        on_line: Is told what the tool prints, a line each, not all of a flood.
        armed: Wait at the gate for ``release``.

    Attributes:
        output: What it has printed.
        gate: What it waits at; None where it runs.

    Raises:
        OSError, ValueError: The program cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
        *,
        armed: bool = False,
        error_counts: bool = True,
    ) -> None:
        self.output = Output(on_line, on_error=self._hurry if error_counts else None)
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._limit: asyncio.Timeout | None = None
        self._process = subprocess.Popen(
            [*_GATE, *argv] if armed else argv,
            stdin=subprocess.PIPE if armed else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self.gate: _Stream | None = self._process.stdin
        self._streams: dict[bool, _Stream] = {}
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            self._process.kill()
            self._process.communicate()
            raise
        self._loop.add_reader(self._pidfd, self._exit)
        for stdout, stream in ((True, self._process.stdout), (False, self._process.stderr)):
            if stream:
                os.set_blocking(stream.fileno(), False)
                self._streams[stdout] = stream
                self._loop.add_reader(stream.fileno(), self._read, stdout)

    @property
    def pid(self) -> int:
        """The process, the leader of its session and group."""
        return self._process.pid

    async def gone(self) -> None:
        """Wait until the main process has exited."""
        await self._exited.wait()

    def release(self) -> bool:
        """Open the gate; False where what waited there is gone."""
        gate, self.gate = self.gate, None
        if gate is None:
            return False
        try:
            os.write(gate.fileno(), b"\n")
        except OSError:
            return False
        finally:
            gate.close()
        return True

    async def finish(self, timeout: float) -> str:  # noqa: ASYNC109 - ended there, not cancelled
        """Wait until the tool is done.

        Whatever happens, its main process is gone when this returns or raises; where the call
        failed, or is cancelled, its whole process group. What a tool that did well has left in the
        background lives on, and may go on printing.

        Args:
            timeout: Seconds that it may take.

        Returns:
            Why it failed: ``it ended with status 3``; empty where it did well.
        """
        try:
            late = await self._wait(timeout)
            self._drain()
            failure = self._failure(late=late, timeout=timeout)
        except BaseException:
            await self.end()
            raise
        self._close(linger=not failure)
        return failure

    async def end(self) -> None:
        """Give up: end the process and its group, and wait until it is gone."""
        try:
            if self.gate is None:
                await self._kill()
            else:  # nothing has begun that could want to end in order
                self._signal(signal.SIGKILL)
                await self._gone_within(KILL_PATIENCE)
        finally:
            self._close(linger=False)

    async def _wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in finish
        """Wait for the main process; True where it took too long, and was ended."""
        try:
            async with asyncio.timeout(timeout) as self._limit:
                await self._exited.wait()
        except TimeoutError:
            await self._kill()
            return True
        finally:
            self._limit = None
        return False

    async def _kill(self) -> None:
        """SIGTERM to the group; SIGKILL when it is out of grace, or its leader is gone."""
        self._signal(signal.SIGTERM)
        try:
            await self._gone_within(GRACE)
        finally:  # or somebody is out of patience with us
            self._signal(signal.SIGKILL)
            await self._gone_within(KILL_PATIENCE)

    async def _gone_within(self, patience: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._exited.wait()

    def _signal(self, number: signal.Signals) -> None:
        # The leader is not reaped before _close, so its number is nobody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._exited.set()

    def _hurry(self) -> None:
        """It has said Error: what it does after that shall not hold up the way back."""
        if self._limit and not self._limit.expired():
            soon = self._loop.time() + LAST_WORDS
            self._limit.reschedule(min(self._limit.when() or soon, soon))

    def _read(self, stdout: bool) -> bool:  # noqa: FBT001 - a callback's argument
        """Read a chunk; False where there is none."""
        try:
            data = os.read(self._streams[stdout].fileno(), _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._shut(stdout)
            return False
        self.output.feed(data, stdout=stdout)
        return True

    def _shut(self, stdout: bool) -> None:  # noqa: FBT001
        stream = self._streams.pop(stdout, None)
        if stream:
            self._loop.remove_reader(stream.fileno())
            stream.close()

    def _drain(self) -> None:
        """Take what the tool wrote before it ended, and no more than that can be."""
        for stdout in tuple(self._streams):
            for _ in range(_DRAIN):
                if stdout not in self._streams or not self._read(stdout):
                    break
        self.output.finish()

    def _failure(self, *, late: bool, timeout: float) -> str:
        if self.output.error:
            return f"it said: {self.output.error}"
        if late:
            return f"it did not end within {timeout:g} s, and was ended"
        # Looked at, but not reaped: _close may still have to signal its group.
        info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return "it cannot be ended: the kernel holds it"
        if info.si_code != os.CLD_EXITED:
            return f"it was ended by {_signal_name(info.si_status)}"
        return f"it ended with status {info.si_status}" if info.si_status else ""

    def _close(self, *, linger: bool) -> None:
        """Let go of the process; unless ``linger``, nothing that it has started stays."""
        if not linger:
            self._signal(signal.SIGKILL)
        for stdout, stream in tuple(self._streams.items()):
            # A pipe that nobody reads stops, and one that is closed kills, whoever writes to it.
            if linger:
                _discard(self._loop, os.dup(stream.fileno()))
            self._shut(stdout)
        if self.gate:
            self.gate.close()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.poll()


def _discard(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Read and forget what comes from a pipe, for as long as somebody writes to it."""

    def read() -> None:
        try:
            if os.read(fd, _CHUNK):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        loop.remove_reader(fd)
        os.close(fd)

    loop.add_reader(fd, read)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
