"""What is being made for an arrival, all of which can be called off before it is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from entourage.errors import HypervisorError

Value = TypeVar("Value")


class UnderWay:
    """Work that makes something; undone under its feet, it would make it once more."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Do it.

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
        """Cancel all of it; returns when nothing makes anything any more, but for threads."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
