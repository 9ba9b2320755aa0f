"""What is being made can be called off, and makes nothing afterwards."""

from __future__ import annotations

import asyncio

import pytest

from entourage.errors import HypervisorError
from entourage.target.making import CancellableTasks


async def test_nothing_is_made_once_it_was_called_off() -> None:
    made: list[str] = []
    let_go, goes_on = asyncio.Event(), asyncio.Event()

    async def make() -> None:
        try:
            await goes_on.wait()
            made.append("made")
        finally:
            await let_go.wait()  # a program that is ended takes its time
            made.append("let go")

    tasks = CancellableTasks()
    asked = asyncio.create_task(tasks.run(make()))
    await asyncio.sleep(0)
    calling_off = asyncio.create_task(tasks.call_off())
    await asyncio.sleep(0)
    assert not calling_off.done()
    let_go.set()
    await calling_off
    assert made == ["let go"]
    with pytest.raises(HypervisorError, match="called off"):
        await asked


async def test_what_it_returns_and_raises_is_passed_on() -> None:
    async def works() -> int:
        return 7

    async def fails() -> int:
        raise OSError("no")

    tasks = CancellableTasks()
    assert await tasks.run(works()) == 7
    with pytest.raises(OSError, match="no"):
        await tasks.run(fails())
    await tasks.call_off()
