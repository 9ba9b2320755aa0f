"""The way back of a libvirt domain's migration, from whatever phase it is in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.hangup import Calls
from entourage.hypervisors.base import DataPlane
from entourage.hypervisors.deadman import Deadman
from entourage.hypervisors.libvirt.connection import (
    Connection,
    LostError,
    RefusedError,
    ask,
    phases,
    tell_qemu,
)
from entourage.hypervisors.libvirt.constants import Flag, State
from entourage.hypervisors.libvirt.events import Feed, Known

_BACK_WITHIN = 30.0  # seconds for a libvirtd that went away to come back
_AGAIN = 0.1  # seconds between two attempts to end a job
_SOON = 0.01  # seconds between two looks at whether it ends by itself
_YANK_EVERY = 5  # attempts
_SUSPEND_AFTER = 20  # attempts
_STUCK_AFTER = 1.0  # seconds for QEMU to answer
_FAILS_WITHIN = 1.0  # seconds for QEMU and libvirt to find that memory was cut off
_FLUSHES_WITHIN = 3.0  # seconds for QEMU to flush its disks
_ENDS_WITHIN = 60.0  # seconds for libvirt to end a job, where it takes some tenths
_HELD = frozenset({"pre-switchover", "device"})
_MEMORY = {"type": "migration"}


class Rollback:
    """What a carrier knows of its phases, and how it gives them up.

    Args:
        connection: To this host's libvirtd.
        raw: ``libvirt.virDomain``; None where there is none any more.
        domain: What its XML says.
        log: Takes what the deadman says.
        was_running: Whether its user lets the guest run.
        transient: Whether it has no definition.
    """

    def __init__(
        self,
        connection: Connection,
        raw: Any,
        domain: Domain,
        log: Path,
        *,
        was_running: bool,
        transient: bool,
    ) -> None:
        self._connection = connection
        self._raw = raw
        self._domain = domain
        self._log = log
        self._was_running = was_running
        self._transient = transient
        self._carried: dict[str, bool] = {}
        self._copied: dict[str, tuple[int, int]] = {}
        self._plane: DataPlane | None = None
        self._feed: Feed | None = None
        self._deadman: Deadman | None = None
        self._clear = ""
        self._extra = Flag(0)
        self._parameters: dict[str, str | int | list[str]] = {}
        self._flags = Flag(0)
        self._beginning: asyncio.Future[tuple[str, bytes]] | None = None
        self._performing: asyncio.Future[bytes] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._calls: Calls | None = None
        self._port: int | None = None

    @property
    def domain(self) -> Domain:
        """The running configuration."""
        return self._domain

    @property
    def was_running(self) -> bool:
        """False where the user had paused the guest before: it stays paused on the target."""
        return self._was_running

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again, or stays paused."""
        cut = self._cut_off()  # before libvirtd is asked for anything: it may be gone
        try:
            await self._give_up(cut=cut)
            await self._run_again()
        except LostError:
            await self._find_again()
            await self._end_job()
            await self._run_again()
        if self._tidying is None or self._tidying.done():
            self._tidying = asyncio.create_task(self._dismiss())

    def _cut_off(self) -> bool:
        """Cut memory off from the target, if that is the way to end it; whether it was on its way.

        Cancelled while it sends the last, QEMU (seen in 7.2) may let the guest run with disks that
        it has just handed over, and dies of the guest's next write. Cut off instead, QEMU fails by
        itself and takes its disks back first, and libvirt ends its job.

        Not while disks are copied: the target's QEMU ends of it, and a copy that is cut off before
        it is cancelled can leave its job behind.
        """
        sends = self._performing is not None and not self._performing.done()
        if not sends or self._calls is None or self._port is None or self._copying:
            return False
        return self._calls.hang_up(self._port) > 0

    async def _cut_off_late(self) -> bool:
        """The same once the stop is past; where QEMU's connections are out of reach, by QEMU."""
        if self._cut_off():
            return True
        if self._copying or self._heard().known.migration not in _HELD:
            return False
        return await self._in_time(self._yank(_MEMORY))

    @property
    def _copying(self) -> bool:
        """Whether disks may still be copied: libvirt sends the last only after that."""
        return bool(self._carried) and self._heard().known.migration != "device"

    async def _give_up(self, *, cut: bool) -> None:
        """End whatever phase it is in; ``cut``, it may be about to end by itself."""
        if self._beginning is None:
            await self._end_job()  # of a process before this one, if any
            return
        await asyncio.wait({self._beginning})
        begun, self._beginning = self._beginning, None
        if begun.exception() is not None:
            return
        performing = self._performing
        if performing is not None:
            if cut:
                await asyncio.wait({performing}, timeout=_FAILS_WITHIN)
            await self._past_the_stop(performing)
            if not cut and not performing.done() and await self._cut_off_late():
                await asyncio.wait({performing}, timeout=_FAILS_WITHIN)
            rounds, deadline = 0, time.monotonic() + _ENDS_WITHIN
            while not performing.done():
                await self._too_late(deadline)
                await self._pressed(self._press_end(rounds), performing)
                await asyncio.wait({performing}, timeout=_AGAIN)
                rounds += 1
            if isinstance(failed := performing.exception(), LostError):
                raise failed
            if failed is not None:
                return  # then libvirt has put everything back by itself
        with contextlib.suppress(RefusedError):
            await ask(
                phases().confirm, self._raw, self._parameters, b"", self._flags, cancelled=True
            )

    async def _past_the_stop(self, performing: asyncio.Future[bytes]) -> None:
        """Do not end the job in the moment between the guest's stop and QEMU's holding of memory.

        QEMU (7.2) may go to sleep for ever then, with the guest stopped, and libvirt (9.0) may wait
        for ever for a stop that has been. It is tens of milliseconds, in which disks are flushed.
        """
        if performing.done():
            return
        feed = self._heard()

        def past(known: Known) -> bool | None:
            stopping = known.stopped_at > known.resumed_at and known.migration == "active"
            return None if stopping else True

        waiting = asyncio.ensure_future(feed.until(past))
        try:
            await asyncio.wait(
                {waiting, performing}, timeout=_FLUSHES_WITHIN, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()

    async def _pressed(
        self, pressing: Coroutine[Any, Any, None], performing: asyncio.Future[bytes]
    ) -> None:
        """Press; where QEMU does not answer, it waits for a target that is gone, guest and all.

        It hears nothing then, so that the kernel has to hang up.
        """
        pressed = asyncio.ensure_future(pressing)
        waiting: set[asyncio.Future[Any]] = {pressed, performing}
        await asyncio.wait(waiting, timeout=_STUCK_AFTER, return_when=asyncio.FIRST_COMPLETED)
        if not any(each.done() for each in waiting) and self._calls is not None:
            await asyncio.to_thread(self._calls.hang_up)
        # To its end: a word of it that takes effect later would stop a guest that is back.
        await asyncio.wait({pressed}, timeout=_ENDS_WITHIN)
        if pressed.done():
            pressed.result()
        else:
            _read_late(pressed)

    async def _press_end(self, attempt: int) -> None:
        """Have libvirt end its job; soon, wake up who sleeps through that.

        For a target that is gone without a word both QEMU and libvirt wait for minutes, until TCP
        gives up. And see ``_past_the_stop``: QEMU wakes up when it is told to go on from where it
        says it is; libvirt goes on when it sees the guest stop, which ``_run_again`` undoes.
        """
        with contextlib.suppress(RefusedError):
            await ask(self._raw.abortJob)
        if attempt == 0 or attempt % _YANK_EVERY:
            return
        nodes = [f"migration-{disk.id}-storage" for disk in self._domain.block]
        ends = [{"type": "block-node", "node-name": node} for node in nodes]
        await self._yank(_MEMORY, *ends)
        state = (await ask(self._raw.state, 0))[0]
        with contextlib.suppress(RefusedError):
            if state != State.RUNNING:
                await tell_qemu(self._raw, "migrate-continue", state="cancelling")
            elif attempt >= _SUSPEND_AFTER:
                await ask(self._raw.suspend)

    async def _yank(self, *ends: dict[str, str]) -> bool:
        """Shut connections of the migration, memory's or that of a disk's copy; whether any was."""
        done = False
        for end in ends:
            with contextlib.suppress(RefusedError):
                done |= await tell_qemu(self._raw, "yank", instances=[end]) is not None
        return done

    async def _end_job(self) -> None:
        """End a job that nobody waits for any more."""
        nobody: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        rounds, deadline = 0, time.monotonic() + _ENDS_WITHIN
        with contextlib.suppress(RefusedError):
            if await self._busy() and await self._in_time(self._yank_alone()):
                failed = time.monotonic() + _FAILS_WITHIN
                # libvirt tells nobody that a job has ended.
                while await self._busy() and time.monotonic() < failed:  # noqa: ASYNC110
                    await asyncio.sleep(_SOON)
            while await self._busy():
                await self._too_late(deadline)
                await self._pressed(self._press_end(rounds), nobody)
                await asyncio.sleep(_AGAIN)
                rounds += 1

    async def _yank_alone(self) -> bool:
        """What ``_cut_off`` does, by QEMU itself; whether memory was on its way, and no disk."""
        with contextlib.suppress(RefusedError):
            if await tell_qemu(self._raw, "query-block-jobs") == []:
                return await self._yank(_MEMORY)
        return False

    async def _in_time(self, asking: Coroutine[Any, Any, bool]) -> bool:
        """What QEMU answers; False where it does not: it may wait for a target that is gone."""
        asked = asyncio.ensure_future(asking)
        await asyncio.wait({asked}, timeout=_STUCK_AFTER)
        if asked.done():
            return asked.result()
        _read_late(asked)
        return False

    async def _busy(self) -> bool:
        """Whether libvirt has a job for it."""
        return self._raw is not None and bool((await ask(self._raw.jobInfo))[0])

    async def _too_late(self, deadline: float) -> None:
        """Raise HypervisorError once libvirt has had its time to end its job; the guest runs on.

        Libvirt resumes nothing while it has a job: so QEMU itself is told to.
        """
        if time.monotonic() < deadline:
            return
        if self._was_running:
            # It may not answer either.
            await asyncio.wait({asyncio.ensure_future(self._continue())}, timeout=_STUCK_AFTER)
        name = self._domain.name
        raise HypervisorError(
            f"libvirt has not ended its migration job of {name} within {_ENDS_WITHIN:g} s",
            remedy=f"virsh domjobabort {name}; if that does not help, restart libvirtd (guests live"
            f" on); then `entourage recover {name}`",
        )

    async def _continue(self) -> None:
        with contextlib.suppress(RefusedError, LostError):
            await tell_qemu(self._raw, "cont")

    async def _run_again(self) -> None:
        """Let the guest run; one that runs already goes on, one that was paused stays so.

        Raises:
            HypervisorError: It is gone, or libvirt does not let it.
        """
        state = State.NONE if self._raw is None else (await ask(self._raw.state, 0))[0]
        if state in {State.RUNNING, State.BLOCKED}:
            return
        if state not in {State.PAUSED, State.SUSPENDED}:
            raise HypervisorError(f"the machine of {self._domain.name} is gone")
        if self._was_running and self._raw is not None:
            try:
                await ask(self._raw.resume)
            except RefusedError:
                if (await ask(self._raw.state, 0))[0] != State.RUNNING:
                    raise

    async def _find_again(self) -> None:
        """Libvirtd went away: connect again, as soon as it is back."""
        old = self._connection
        self._connection = await Connection.open_again(old.uri, _BACK_WITHIN)
        self._raw = await self._connection.domain(str(self._domain.uuid))
        await old.close()

    async def _dismiss(self) -> None:
        if self._deadman is not None:
            deadman, self._deadman = self._deadman, None
            await deadman.dismiss()

    async def _tidied(self) -> None:
        if self._tidying is not None:
            await self._tidying
            self._tidying = None

    def _heard(self) -> Feed:
        if self._feed is None:
            raise HypervisorError("the migration is not armed")
        return self._feed

    def _performed(self) -> asyncio.Future[bytes]:
        if self._performing is None:
            raise HypervisorError("the migration has not begun")
        return self._performing


def _read_late(task: asyncio.Future[Any]) -> None:
    """Read what becomes of a task that nobody waits for any more: asyncio complains else."""
    task.add_done_callback(lambda late: late.cancelled() or late.exception())
