"""Several things at once: what goes on beside the story, and which of several errors to tell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, NoReturn, cast

from entourage.errors import EntourageError, LinkLost


@contextlib.asynccontextmanager
async def beside(*coroutines: Coroutine[Any, Any, NoReturn]) -> AsyncGenerator[None]:
    """Run these beside the body and end them with it; a failure of one of them ends the body."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def first_cause(error: BaseException) -> BaseException:
    """Of several errors at once, the one that the others follow from, as far as can be told.

    A lost link is what other failures look like from afar, so anything else goes before it.
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
