"""Concurrent tasks: run some alongside a block, and choose which of several errors to raise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, NoReturn, cast

from entourage.errors import EntourageError, LinkLost


@contextlib.asynccontextmanager
async def run_alongside(*coroutines: Coroutine[Any, Any, NoReturn]) -> AsyncGenerator[None]:
    """Run these while the body runs, and cancel them at its end; if one fails, so does the body."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def first_cause(error: BaseException) -> BaseException:
    """Of several errors at once, the most likely cause of the others.

    LinkLost is usually a symptom of another failure: any other error is preferred to it.
    """
    leaves = list(_leaves(error))
    ours = [leaf for leaf in leaves if isinstance(leaf, EntourageError)]
    near = [leaf for leaf in ours if not isinstance(leaf, LinkLost)]
    return (near or ours or leaves)[0]


def _leaves(error: BaseException) -> Generator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(each)
    else:
        yield error
