"""The way back of a libvirt domain's migration, from whatever phase it is in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from entourage.errors import HypervisorError
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.connection import LostError, RefusedError, ask
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.job import Job

_AGAIN = 0.1  # seconds between two attempts to end a job
_SOON = 0.01  # seconds between two looks at whether it ends by itself
_YANK_EVERY = 5  # attempts
_SUSPEND_AFTER = 20  # attempts
_STUCK_AFTER = 1.0  # seconds for QEMU to answer
# Seconds for the same, and for the target to say anything, where it says nothing at all: as long as
# QEMU does not answer, its guest stands still.
_SILENT_AFTER = 0.5
_LOOK_EVERY = 0.05  # seconds
_FAILS_WITHIN = 1.0  # seconds for QEMU and libvirt to find that memory was cut off
_FLUSHES_WITHIN = 3.0  # seconds for QEMU to flush its disks
_COPIES_END_WITHIN = 1.0  # seconds for the copies of the disks to end, once the guest is stopped
_ENDS_WITHIN = 60.0  # seconds for libvirt to end a job, where it takes some tenths
_HELD = frozenset({"pre-switchover", "device"})
_MEMORY = {"type": "migration"}


class Rollback:
    """Gives one migration up.

    Args:
        handle: The domain, as libvirtd has it.
        job: Its migration, wherever that is.
    """

    def __init__(self, handle: Handle, job: Job) -> None:
        self._handle = handle
        self._job = job

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again, or stays paused."""
        cut = self._cut_off()  # before libvirtd is asked for anything: it may be gone
        try:
            await self._give_up(cut=cut)
            await self._handle.run_again()
        except LostError:
            await self._handle.find_again()
            await self._end_job()
            await self._handle.run_again()

    def _cut_off(self) -> bool:
        """Cut memory off from the target, if that is the way to end it; whether it was on its way.

        Cancelled while it sends the last, QEMU (seen in 7.2) may let the guest run with disks that
        it has just handed over, and dies of the guest's next write. Cut off instead, QEMU fails by
        itself and takes its disks back first, and libvirt ends its job.

        Not while disks are copied: the target's QEMU ends of it, and a copy that is cut off before
        it is cancelled can leave its job behind.
        """
        job = self._job
        sends = job.performing is not None and not job.performing.done()
        if sends and job.cut is not None:  # nothing else goes with it
            job.cut()
            return True
        if not sends or job.calls is None or job.port is None or job.copying:
            return False
        return job.calls.hang_up(job.port) > 0

    async def _cut_off_late(self) -> bool:
        """The same once the stop is past; where QEMU's connections are out of reach, by QEMU."""
        if self._cut_off():
            return True
        if self._job.copying or self._job.heard().known.migration not in _HELD:
            return False
        return await self._in_time(self._yank(_MEMORY))

    async def _give_up(self, *, cut: bool) -> None:
        """End whatever phase it is in; ``cut``, it may be about to end by itself."""
        job = self._job
        if job.beginning is None:
            await self._end_job()  # of a process before this one, if any
            return
        await asyncio.wait({job.beginning})
        begun, job.beginning = job.beginning, None
        if begun.exception() is not None:
            return
        performing = job.performing
        if performing is not None:
            await self._before_the_end(performing, cut=cut)
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
            await job.confirm(self._handle, cancelled=True)

    async def _before_the_end(self, performing: asyncio.Future[bytes], *, cut: bool) -> None:
        """Let it fail by itself if it can, and come to a point at which libvirt may end it."""
        if cut:
            await asyncio.wait({performing}, timeout=_FAILS_WITHIN)
        await self._past_the_stop(performing)
        cut |= await self._past_the_copies(performing)
        if cut or performing.done():
            return
        done = await self._cut_off_late()
        if not done and self._job.disks.names:
            # What was heard may be late, or the last of all: QEMU itself knows better.
            done = await self._in_time(self._yank_alone(), _COPIES_END_WITHIN + _STUCK_AFTER)
        if done:
            await asyncio.wait({performing}, timeout=_FAILS_WITHIN)

    async def _past_the_stop(self, performing: asyncio.Future[bytes]) -> None:
        """Do not end the job in the moment between the guest's stop and QEMU's holding of memory.

        QEMU (7.2) may go to sleep for ever then, with the guest stopped, and libvirt (9.0) may wait
        for ever for a stop that has been. It is tens of milliseconds, in which disks are flushed;
        seconds where the target is slow to flush them, and then its connections stay: libvirt
        cancels copies only later, and one that is cut off before may leave its job behind.
        """

        def past(known: Known) -> bool | None:
            stopping = known.stopped_at > known.resumed_at and known.migration == "active"
            return None if stopping else True

        await self._until(past, performing, _FLUSHES_WITHIN, answers=False)

    async def _past_the_copies(self, performing: asyncio.Future[bytes]) -> bool:
        """Do not end the job while libvirt ends the copies of the disks of a stopped guest.

        It tells QEMU to go on the moment they have ended, and a ``migrate_cancel`` that comes after
        that is the one that QEMU may die of (see ``_cut_off``). Copies end in milliseconds, well
        or, with the target's QEMU, not. Those to a target that is gone without a word are cut off:
        libvirt, which has cancelled them by then, gives up by itself.

        Returns:
            Whether they were.
        """

        def past(known: Known) -> bool | None:
            return None if known.migration == "pre-switchover" else True

        job = self._job
        if not job.disks.names or await self._until(past, performing, _COPIES_END_WITHIN):
            return False
        cut = job.calls is not None and job.calls.hang_up() > 0
        cut = cut or await self._in_time(self._yank(*self._copies(), _MEMORY))
        if cut:
            await asyncio.wait({performing}, timeout=_FAILS_WITHIN)
        return cut

    async def _until(
        self,
        past: Callable[[Known], bool | None],
        performing: asyncio.Future[bytes],
        seconds: float,
        *,
        answers: bool = True,
    ) -> bool:
        """Wait until something has happened; whether it has, before so many seconds are over.

        The end of Perform counts as well, and that libvirtd has gone: there is nothing to wait for.

        Args:
            past: Whether it has, by what was heard; None where it has not.
            performing: Perform.
            seconds: How long, at most.
            answers: See ``_came``.
        """
        if performing.done():
            return True
        waiting, began = asyncio.ensure_future(self._job.heard().until(past)), time.monotonic()
        try:
            return await self._came(
                {waiting, performing}, seconds, lambda: time.monotonic() - began, answers=answers
            )
        finally:
            waiting.cancel()
            _read_late(waiting)

    async def _pressed(
        self, pressing: Coroutine[Any, Any, None], performing: asyncio.Future[bytes]
    ) -> None:
        """Press; where QEMU does not answer, it waits for a target that is gone, guest and all.

        It hears nothing then, so that the kernel has to hang up.
        """
        pressed = asyncio.ensure_future(pressing)
        waiting: set[asyncio.Future[Any]] = {pressed, performing}
        began = time.monotonic()
        if not await self._came(waiting, _STUCK_AFTER, lambda: time.monotonic() - began):
            await in_thread(self._hang_up)
        # To its end: a word of it that takes effect later would stop a guest that is back.
        await asyncio.wait({pressed}, timeout=_ENDS_WITHIN)
        if pressed.done():
            pressed.result()
        else:
            _read_late(pressed)

    async def _came(
        self,
        waiting: set[asyncio.Future[Any]],
        seconds: float,
        unanswered: Callable[[], float],
        *,
        answers: bool = True,
    ) -> bool:
        """Wait for one of these; meanwhile, a silent target that holds QEMU up is hung up on.

        Args:
            waiting: What is waited for.
            seconds: How long, at most.
            unanswered: Says for how many seconds QEMU has been waited for.
            answers: Whether the target has to answer what it was sent, or only to confirm it; one
                that does not is silent.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ended, _ = await asyncio.wait(
                waiting, timeout=min(left, _LOOK_EVERY), return_when=asyncio.FIRST_COMPLETED
            )
            if ended:
                return True
            held_up = unanswered() > _SILENT_AFTER
            await in_thread(self._hang_up_on_silence, held_up=held_up, answers=answers)
        return any(each.done() for each in waiting)

    def _hang_up_on_silence(self, *, held_up: bool, answers: bool) -> None:
        """End what QEMU waits for where the target has been silent for as long."""
        if self._job.calls is not None:
            self._job.calls.hang_up_on_silence(
                _SILENT_AFTER, held_up=held_up, answers=answers, one_way=self._job.port
            )

    def _hang_up(self) -> None:
        """End what QEMU waits for, and what libvirtd does with the domain locked."""
        if self._job.calls is not None:
            self._job.calls.hang_up()
        # Of libvirtd's own, others belong to other migrations.
        if self._job.calls_of_daemon is not None and self._job.port is not None:
            self._job.calls_of_daemon.hang_up_unanswered(self._job.port)

    async def _press_end(self, attempt: int) -> None:
        """Have libvirt end its job; soon, wake up who sleeps through that.

        For a target that is gone without a word both QEMU and libvirt wait for minutes, until TCP
        gives up. And see ``_past_the_stop``: QEMU wakes up when it is told to go on from where it
        says it is; libvirt goes on when it sees the guest stop, which ``Handle.run_again`` undoes.
        """
        with contextlib.suppress(RefusedError):
            await ask(self._handle.raw.abortJob)
        if attempt == 0 or attempt % _YANK_EVERY:
            return
        await self._yank(_MEMORY, *self._copies())
        state = await self._handle.state()
        with contextlib.suppress(RefusedError):
            if state != State.RUNNING:
                await self._handle.tell_qemu("migrate-continue", state="cancelling")
            elif attempt >= _SUSPEND_AFTER:
                await self._handle.suspend()

    def _copies(self) -> list[dict[str, str]]:
        """QEMU's names for its connections of the disks' copies."""
        nodes = [f"migration-{disk.id}-storage" for disk in self._handle.domain.block]
        return [{"type": "block-node", "node-name": node} for node in nodes]

    async def _yank(self, *ends: dict[str, str]) -> bool:
        """Shut connections of the migration, memory's or that of a disk's copy; whether any was."""
        done = False
        for end in ends:
            with contextlib.suppress(RefusedError):
                done |= await self._handle.tell_qemu("yank", instances=[end]) is not None
        return done

    async def _end_job(self) -> None:
        """End a job that nobody waits for any more."""
        nobody: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        rounds, deadline = 0, time.monotonic() + _ENDS_WITHIN
        with contextlib.suppress(RefusedError):
            within = _COPIES_END_WITHIN + _STUCK_AFTER
            if await self._handle.busy() and await self._in_time(self._yank_alone(), within):
                failed = time.monotonic() + _FAILS_WITHIN
                # libvirt tells nobody that a job has ended.
                while await self._handle.busy() and time.monotonic() < failed:  # noqa: ASYNC110
                    await asyncio.sleep(_SOON)
            while await self._handle.busy():
                await self._too_late(deadline)
                await self._pressed(self._press_end(rounds), nobody)
                await asyncio.sleep(_AGAIN)
                rounds += 1

    async def _yank_alone(self) -> bool:
        """What ``_cut_off`` and ``_past_the_copies`` do, by QEMU; whether anything was cut off."""
        ends = time.monotonic() + _COPIES_END_WITHIN
        with contextlib.suppress(RefusedError):
            while await self._handle.tell_qemu("query-block-jobs") != []:
                told = await self._handle.tell_qemu("query-migrate")
                at = told.get("status") if told else None
                paused = await self._handle.state() == State.PAUSED
                if at not in _HELD and not (at == "active" and paused):
                    return False
                if time.monotonic() > ends:  # and what libvirt has not cancelled is not cut off
                    return at in _HELD and await self._yank(*self._copies(), _MEMORY)
                await asyncio.sleep(_SOON)
            return await self._yank(_MEMORY)
        return False

    async def _in_time(
        self, asking: Coroutine[Any, Any, bool], seconds: float | None = None
    ) -> bool:
        """What QEMU answers; False where it does not: it may wait for a target that is gone."""
        asked = asyncio.ensure_future(asking)
        patience = _STUCK_AFTER if seconds is None else seconds
        if await self._came({asked}, patience, lambda: self._handle.unanswered):
            return asked.result()
        _read_late(asked)
        return False

    async def _too_late(self, deadline: float) -> None:
        """Raise HypervisorError once libvirt has had its time to end its job; the guest runs on.

        Libvirt resumes nothing while it has a job: so QEMU itself is told to.
        """
        if time.monotonic() < deadline:
            return
        if self._handle.was_running:
            # It may not answer either.
            await asyncio.wait({asyncio.ensure_future(self._continue())}, timeout=_STUCK_AFTER)
        name = self._handle.domain.name
        raise HypervisorError(
            f"libvirt has not ended its migration job of {name} within {_ENDS_WITHIN:g} s",
            remedy=f"virsh domjobabort {name}; if that does not help, restart libvirtd (guests live"
            f" on); then `entourage recover {name}`",
        )

    async def _continue(self) -> None:
        with contextlib.suppress(RefusedError, LostError):
            await self._handle.tell_qemu("cont")


def _read_late(task: asyncio.Future[Any]) -> None:
    """Read what becomes of a task that nobody waits for any more: asyncio complains else."""
    task.add_done_callback(lambda late: late.cancelled() or late.exception())
