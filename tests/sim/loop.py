"""An event loop of several simulated processes, with a simulated clock and a seed's order.

Every process of every simulated host shares this one loop. Within a process, callbacks run in the
order in which they became ready, as asyncio promises; which process is next is the seed's choice.
When nothing is ready, time jumps to the next timer. A process that is killed runs no further
callback, so none of its ``finally`` blocks either; one that is frozen runs none until it is thawed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("PROCESS")


_BUSY = 0.03
"""How often a thread has to wait for its turn."""


class Killed(BaseException):
    """Raised where a process is killed in the middle of a callback: nothing may catch it."""


class Endless(Exception):  # noqa: N818 - what the simulation is then
    """More callbacks have run than any simulation needs."""


class Process:
    """One simulated process: what it is called, on which host, and what it still has to run."""

    def __init__(self, name: str, host: Any, loop: Loop, booted: float = 0.0) -> None:
        self.name = name
        self.host = host
        self.loop = loop
        self.booted = booted
        """What its host's monotonic clock is ahead of the simulation's."""
        self.alive = True
        self.frozen = False
        self.ended = False
        self.error: BaseException | None = None
        self.agent: Any = None
        self.result: Any = None
        self.status = 0
        self.ready: deque[asyncio.Handle] = deque()
        self.held: list[tuple[float, asyncio.Handle]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.main: asyncio.Task[Any] | None = None
        self.on_end: list[Callable[[], None]] = []
        self.complaints: list[str] = []
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return self.name

    def over(self) -> bool:
        """Whether it has ended, by itself or not."""
        return self.ended or not self.alive


class Numbered(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where in memory it lies."""

    def __init__(self, coro: Any, *, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class Loop(asyncio.BaseEventLoop):
    """The loop; ``kernel`` is what is no process: networks, disks, hypervisors, faults."""

    def __init__(self, rng: random.Random, most: int = 60_000) -> None:
        super().__init__()
        self.rng = rng
        self.now = 1000.0
        self.steps = 0
        self.most = most
        self.kernel = Process("kernel", None, self)
        self.current = self.kernel
        self.processes: list[Process] = []
        self.living = 0
        self.runnable: list[Process] = []
        self.on_step: Callable[[], None] = lambda: None
        self.over = False
        self._timers: list[tuple[float, float, int, Process, Any]] = []
        self._count = 0
        self.set_exception_handler(self._complain)

    # asyncio's side

    def time(self) -> float:
        return self.now

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Any:
        if context is None:
            context = contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        process = context.get(PROCESS) or self.kernel
        if not process.over() and not self.over:
            if not process.ready and not process.frozen:
                self.runnable.append(process)
            process.ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Any:
        if context is None:
            context = contextvars.copy_context()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        process = context.get(PROCESS) or self.kernel
        if not process.over() and not self.over:
            self._push(when, process, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

    def create_task(
        self,
        coro: Any,
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        called = None if name is None else str(name)
        self._count += 1
        task = Numbered(coro, loop=self, name=called, context=context, number=self._count)
        if self.over:  # what is unwound began it, and it never goes on
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro.close()
            return task
        self.current.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """A thread: its work is done at a moment of its own, all at once."""
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        busy = self.rng.random() < _BUSY
        self.call_later(self.rng.random() * (0.5 if busy else 0.002), work)
        return future

    # The simulation's side

    def after(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Have the kernel do something later."""
        self._push(self.now + delay, self.kernel, (callback, args))

    def _push(self, when: float, process: Process, what: Any) -> None:
        self._count += 1
        tie = self.rng.random()
        heapq.heappush(self._timers, (when, tie, self._count, process, what))

    def spawn(
        self, process: Process, work: Callable[[], Coroutine[Any, Any, Any]]
    ) -> asyncio.Task[Any]:
        """Begin a process; it ends with the coroutine, and all that it had goes then."""
        self.processes.append(process)
        self.living += 1

        async def main() -> Any:
            try:
                process.result = await work()
            except Exception as error:  # noqa: BLE001 - looked at by the checks
                process.error = error
            self.end(process)

        def begin() -> None:
            was, self.current = self.current, process
            process.main = self.create_task(main(), name=f"{process.name}.main")
            self.current = was

        process.context.run(begin)
        assert process.main is not None
        return process.main

    def end(self, process: Process) -> None:
        """The process has come to its end by itself."""
        if process.over():
            return
        process.ended = True
        self._drop(process)

    def kill(self, process: Process) -> None:
        """End a process at once; raises `Killed` where it is the one that runs."""
        if process.over():
            return
        process.alive = False
        self._drop(process)
        if process is self.current:
            raise Killed

    def _drop(self, process: Process) -> None:
        self.living -= process.main is not None
        process.ready.clear()
        process.held.clear()
        if process in self.runnable:
            self.runnable.remove(process)
        for done in process.on_end:
            done()

    def freeze(self, process: Process) -> None:
        """Stop a process, as SIGSTOP does."""
        process.frozen = True
        if process in self.runnable:
            self.runnable.remove(process)

    def thaw(self, process: Process) -> None:
        """Let it go on: what was ready first, then the timers that are due, by their time."""
        if not process.frozen or process.over():
            return
        process.frozen = False
        process.held.sort(key=lambda each: each[0])
        process.ready.extend(handle for _, handle in process.held)
        process.held.clear()
        if process.ready:
            self.runnable.append(process)

    def drive(self, until: Callable[[], bool], most: float) -> bool:
        """Run until a condition holds; returns False where it did not within ``most`` seconds."""
        deadline = self.now + most
        asyncio._set_running_loop(self)
        try:
            while not until():
                if not self._advance(deadline):
                    return False
            return True
        finally:
            asyncio._set_running_loop(None)

    def _advance(self, deadline: float) -> bool:
        runnable = self.runnable
        while not runnable:
            if not self._timers or self._timers[0][0] > deadline:
                self.now = max(self.now, deadline)
                return False
            when, _, _, process, what = heapq.heappop(self._timers)
            if process is self.kernel:
                self.now = max(self.now, when)
                callback, args = what
                callback(*args)
                return True
            if what._cancelled or process.over():
                continue
            self.now = max(self.now, when)
            if process.frozen:
                process.held.append((when, what))
                continue
            if not process.ready:
                runnable.append(process)
            process.ready.append(what)
        size = len(runnable)
        at = int(self.rng.random() * size) if size > 1 else 0
        process = runnable[at]
        handle = process.ready.popleft()
        if not process.ready:
            runnable.pop(at)
        if handle._cancelled:
            return True
        self.current = process
        self.steps += 1
        if self.steps > self.most:
            raise Endless
        try:
            handle._context.run(handle._callback, *handle._args)
            self.on_step()
        except Killed:
            pass
        finally:
            self.current = self.kernel
        return True

    def _complain(self, loop: Any, context: dict[str, Any]) -> None:
        if not self.over:
            text = f"{context.get('message')}: {context.get('exception')!r}"
            self.current.complaints.append(text)

    def throw_away(self) -> None:
        """The simulation is over: unwind what is left, without any effect."""
        self.over = True
        asyncio._set_running_loop(self)  # for the tasks that what is unwound begins
        try:
            for process in self.processes:
                for task in process.tasks:
                    if not task.done():
                        task._log_destroy_pending = False  # type: ignore[attr-defined]
                        with contextlib.suppress(BaseException):
                            task.get_coro().close()  # type: ignore[union-attr]
                process.tasks.clear()
                process.ready.clear()
        finally:
            asyncio._set_running_loop(None)
        self._timers.clear()
        self.close()
