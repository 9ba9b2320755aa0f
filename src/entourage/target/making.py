"""Tasks that create resources for an arrival; a rollback cancels them before it undoes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from entourage.errors import HypervisorError

Value = TypeVar("Value")


class ArrivalTasks:
    """The tasks of one migration that create resources on the target.

    A rollback cancels them first: they would re-create what it removes.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run one of them.

        Raises:
            HypervisorError: It was called off meanwhile.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if task.cancelled():
            raise HypervisorError("the migration was called off")
        return task.result()

    async def call_off(self) -> None:
        """Cancel all of them; on return none runs any more, except work that is in a thread."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
