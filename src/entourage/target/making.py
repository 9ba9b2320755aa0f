"""What a target does for a migration and can be called off at."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from entourage.errors import HypervisorError

Value = TypeVar("Value")


class CancellableTasks:
    """Tasks of one migration on the target that nobody needs any more once it is given up.

    Those that create resources are cancelled before a rollback: they would re-create what it
    removes.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False

    async def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run one of them.

        Raises:
            HypervisorError: It was called off meanwhile, or all is over.
        """
        if self._ended:
            work.close()
            raise HypervisorError("the migration was called off")
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

    async def end(self) -> None:
        """Do ``call_off``, and run none any more."""
        self._ended = True
        await self.call_off()

    async def call_off(self) -> None:
        """Cancel all of them; on return none runs any more, except work that is in a thread."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
