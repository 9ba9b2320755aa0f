"""What blocks, done in threads that nothing waits for when this process ends.

``asyncio.to_thread`` has a pool, whose threads are joined as the loop closes and as the interpreter
ends: one that waits for storage whose server is gone keeps the process, and its lock, for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

Result = TypeVar("Result")
Given = TypeVarTuple("Given")
Parameters = ParamSpec("Parameters")


def in_thread(
    function: Callable[Parameters, Result], *args: Parameters.args, **named: Parameters.kwargs
) -> asyncio.Future[Result]:
    """Begin a call that blocks, in a thread of its own.

    Whoever is cancelled while it waits goes on at once; the call goes on as well, and what comes of
    it is dropped.

    Args:
        function: What is called.
        args: With what.
        named: The same.

    Returns:
        What comes of it: its value, or what it raises.
    """
    work = functools.partial(contextvars.copy_context().run, function, *args, **named)
    return _begin(asyncio.get_running_loop(), work)


class InOrder:
    """Calls that block, one after the other in the order in which they were asked for.

    Of whoever is cancelled while he waits for his turn nothing is called. A call that has begun
    goes on, and those after it wait for its end all the same: what it does is done before theirs.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._last: asyncio.Future[Any] | None = None

    async def __call__(
        self,
        function: Callable[Parameters, Result],
        *args: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """Call it in a thread of its own, in its turn; see ``in_thread``."""
        async with self._turn:
            if self._last is not None and not self._last.done():
                await asyncio.wait({self._last})
            self._last = call = in_thread(function, *args, **named)
            return await asyncio.shield(call)


def _begin(loop: asyncio.AbstractEventLoop, work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Have a thread do it; the simulation has none, and does it by itself."""
    future: asyncio.Future[Result] = loop.create_future()

    def done(result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
            future.exception()  # retrieved: whoever was cancelled meanwhile does not ask

    def run() -> None:
        result: Any = None
        problem: Exception | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is told to who asked
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done, result, problem)

    threading.Thread(target=run, name="blocking", daemon=True).start()
    return future
