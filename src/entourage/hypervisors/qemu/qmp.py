"""One QMP connection: commands, and what has been heard of the machine. Nothing is ever polled.

Everything that a migration waits for is an event of QEMU's. ``Monitor.known`` holds what the events
said so far, and ``Monitor.until`` waits until that fulfils a condition; so an event that came a
moment before somebody waited for it is never missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from entourage.errors import HypervisorError, plain_words
from entourage.hypervisors.qmp_error import CommandError
from entourage.hypervisors.understood import understood

T = TypeVar("T")

# Whatever goes wrong comes as an exception; and formatting each message costs in the blackout.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

_PLAUSIBLE_DELAY = 1_000_000_000
# QEMU stops reading after eight commands that it has not done yet, and would then not read an
# urgent one either: fewer are sent ahead.
_AHEAD = 6


_LAST_WORDS = "what QEMU said last is in the domain's log"


class MonitorLostError(HypervisorError):
    """QEMU is gone, or closed the connection: what a command has done is not known."""


@dataclass(slots=True)
class Job:
    """What has been heard of a block job."""

    ready: bool = False
    ended: bool = False
    gone: bool = False
    error: str = ""


@dataclass(slots=True)
class Known:
    """What has been heard of a machine since the connection was made. Times are monotonic, ns.

    Attributes:
        migration: The last status of its migration; empty where none has been heard.
        held_at: When it reached pre-switchover.
        stopped_at: When its guest stopped; 0 where it has not since that was last set to 0.
        resumed_at: When its guest ran (again); likewise.
        jobs: Its block jobs, by their id.
        exports_gone: Exports of disks that are no more.
        shutdown: Why it ends, in QEMU's words; empty while it does not.
        lost: Why there is no connection any more; empty while there is one.
    """

    migration: str = ""
    held_at: int = 0
    stopped_at: int = 0
    resumed_at: int = 0
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    exports_gone: set[str] = field(default_factory=set[str])
    shutdown: str = ""
    lost: str = ""

    def job(self, job: str) -> Job:
        """What is known of a job, which need not have begun."""
        return self.jobs.setdefault(job, Job())

    def hear(self, event: str, data: Mapping[str, Any], at: int) -> None:
        """Take in an event."""
        match event:
            case "STOP":
                self.stopped_at = at
            case "RESUME":
                self.resumed_at = at
            case "MIGRATION":
                self.migration = str(data["status"])
                if self.migration == "pre-switchover":
                    self.held_at = at
            case "BLOCK_EXPORT_DELETED":
                self.exports_gone.add(str(data["id"]))
            case "SHUTDOWN":
                self.shutdown = str(data.get("reason", "shutdown"))
            case _:
                self._hear_of_job(event, data)

    def _hear_of_job(self, event: str, data: Mapping[str, Any]) -> None:
        match event:
            case "BLOCK_JOB_READY":
                self.job(str(data["device"])).ready = True
            case "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED":
                job = self.job(str(data["device"]))
                job.ended = True
                job.error = str(data.get("error", "")) or job.error
                if event == "BLOCK_JOB_CANCELLED" and not job.error:
                    job.error = "it was cancelled"
            case "BLOCK_JOB_ERROR":
                self.job(str(data["device"])).error = f"a {data['operation']} failed"
            case "JOB_STATUS_CHANGE":
                if data["status"] == "null":
                    self.job(str(data["id"])).gone = True
            case _:
                pass


class _Client(QMPClient):
    """The library's client, without its records and logs of every message."""

    def __init__(self, on_event: Callable[[Message], None], on_lost: Callable[[], None]) -> None:
        super().__init__()
        self._on_event = on_event
        self._on_lost = on_lost
        self._greeted = False

    async def _do_recv(self) -> Message:
        if self.runstate is Runstate.RUNNING:
            return await super()._do_recv()
        # What QEMU could not say to who was connected before, it says to the next one first; the
        # first line of that may even lack its beginning. The library expects a greeting and the
        # answer to its first command, and nothing else.
        while True:
            line = await self._readline()
            with contextlib.suppress(QMPError):
                message = Message(line)
                if "event" not in message and (self._greeted or "QMP" in message):
                    self._greeted = True
                    return message

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    async def _event_dispatch(self, msg: Message) -> None:
        self._on_event(msg)

    async def _bh_disconnect(self) -> None:
        if self._bh_tasks is not None:
            # Read here, for asyncio not to complain where nobody calls ``close`` any more.
            self._bh_tasks.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._on_lost()
        await super()._bh_disconnect()


class Monitor:
    """A QMP connection that is open. Use ``Monitor.connect``."""

    def __init__(self) -> None:
        self.known = Known()
        self.version: tuple[int, int, int] = (0, 0, 0)
        self._client = _Client(self._hear, self._lose)
        self._waiting: list[Callable[[], None]] = []
        self._ahead = asyncio.Semaphore(_AHEAD)
        self._giving = asyncio.Lock()

    @classmethod
    async def connect(cls, path: Path) -> Monitor:
        """Connect to a monitor's socket; returns when QEMU has greeted.

        Raises:
            MonitorLostError: Nobody listens, or QEMU hung up.
        """
        monitor = cls()
        try:
            await monitor._client.connect(str(path))
        except (QMPError, OSError, EOFError) as error:
            raise MonitorLostError(
                f"QEMU does not answer at {path}: {plain_words(error)}", remedy=_LAST_WORDS
            ) from error
        except BaseException:
            # Cancelled (a deadline, say) between connection and greeting: the library leaves the
            # socket to us.
            await monitor.close()
            raise
        if greeting := monitor._client.greeting:
            try:
                with understood("QEMU's greeting"):
                    qemu: Any = greeting.QMP.version["qemu"]
                    monitor.version = (int(qemu["major"]), int(qemu["minor"]), int(qemu["micro"]))
            except HypervisorError:
                await monitor.close()
                raise
        return monitor

    @classmethod
    def lost(cls) -> Monitor:
        """The monitor of a machine that has ended: every command raises MonitorLostError."""
        monitor = cls()
        monitor.known.lost = "QEMU has ended"
        return monitor

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        device: str = "",
        urgent: bool = False,
    ) -> Any:
        """Run one command and return what it returns.

        Commands that are executed at the same time (``asyncio.gather``) are sent at once, and QEMU
        runs them in the order in which they were begun.

        Args:
            command: Its name.
            arguments: Its arguments.
            device: The label of the device that an error is about.
            urgent: Run it beside the others (out of band), even if QEMU's main loop hangs.

        Raises:
            CommandError: QEMU refused it.
            MonitorLostError: QEMU went away; it may or may not have run it.
        """
        try:
            if urgent:
                return await self._client.execute(command, arguments, oob=True)
            async with self._ahead:
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise CommandError(command, str(error), device=device) from error
        except (QMPError, OSError, EOFError) as error:
            raise MonitorLostError(self._why_lost(), device=device, remedy=_LAST_WORDS) from error

    async def status(self) -> str:
        """The machine's run state in QEMU's words, as ``running`` or ``inmigrate``.

        Raises:
            HypervisorError: QEMU went away, or says something else.
        """
        answer = await self.execute("query-status")
        with understood("QEMU's answer to query-status"):
            return str(answer["status"])

    async def give(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of an open descriptor, by a name that other commands know it by.

        Raises:
            CommandError: QEMU refused it.
            MonitorLostError: QEMU went away.
        """
        async with self._giving:  # QEMU keeps one that has no name yet
            try:
                self._client.send_fd_scm(descriptor)
            except OSError as error:
                raise MonitorLostError(self._why_lost(), remedy=_LAST_WORDS) from error
            await self.execute("getfd", {"fdname": name})

    async def until(self, test: Callable[[Known], T | None]) -> T:
        """Wait until what is known fulfils a condition, and return what ``test`` made of it.

        Args:
            test: Called with what is known, now and after each event; returns None to wait on. What
                it raises is raised here.

        Raises:
            MonitorLostError: QEMU went away before.
        """
        if (found := test(self.known)) is not None:
            return found
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def look() -> None:
            if future.done():
                return
            try:
                found = test(self.known)
            except HypervisorError as error:
                future.set_exception(error)
                return
            if found is not None:
                future.set_result(found)
            elif self.known.lost:
                future.set_exception(MonitorLostError(self._why_lost(), remedy=_LAST_WORDS))

        self._waiting.append(look)
        try:
            look()
            return await future
        finally:
            self._waiting.remove(look)

    async def close(self) -> None:
        """Close the connection; QEMU goes on."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._client.disconnect()

    def _hear(self, message: Message) -> None:
        stamp: Any = message.get("timestamp", {})
        data: Any = message.get("data", {})
        try:
            with understood(f"QEMU's event {message['event']!r}"):
                self.known.hear(str(message["event"]), data, _moment(stamp))
        except HypervisorError as error:
            # What it would have said is not known: who waits for it must not wait for ever.
            self.known.lost = self.known.lost or error.message
        self._tell()

    def _lose(self) -> None:
        self.known.lost = self.known.lost or "the connection to its monitor is closed"
        self._tell()

    def _tell(self) -> None:
        for look in tuple(self._waiting):
            look()

    def _why_lost(self) -> str:
        if reason := self.known.shutdown:
            return f"QEMU has ended ({reason})"
        return "QEMU has ended, or closed its monitor"


def _moment(stamp: Mapping[str, int]) -> int:
    """When an event happened, on the monotonic clock; QEMU's stamp is on the wall clock."""
    now, wall = time.monotonic_ns(), time.time_ns()
    delay = wall - stamp.get("seconds", 0) * 10**9 - stamp.get("microseconds", 0) * 1000
    # A clock that was set in between, or is another one for us than for QEMU, tells nothing.
    return now - delay if 0 <= delay < _PLAUSIBLE_DELAY else now
