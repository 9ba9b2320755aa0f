"""A link to a program: nothing of it is left, however its context is left."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from entourage.errors import LinkLost
from entourage.hosts.child import linked
from entourage.hosts.frames import Notice

PROGRAM = """
import os, time
from entourage.hosts.frames import Tell, encoder
said = encoder.encode(Tell("said", os.getpid()))
os.write(1, len(said).to_bytes(4, "big") + said)
time.sleep(60)
"""
COMMAND = [sys.executable, "-c", PROGRAM]


def explained(_status: int | None, _said: Sequence[str]) -> LinkLost:
    return LinkLost("")


async def test_who_is_cancelled_as_it_waits_for_the_end_leaves_neither_task_nor_program() -> None:
    before = asyncio.all_tasks()
    pids: list[int] = []

    async def speak() -> None:
        async with linked(COMMAND, peer="b", silence=5, explain=explained, remedy="") as link:
            heard = asyncio.Event()

            async def hear(number: int) -> None:
                pids.append(number)
                heard.set()

            link.on(Notice("said", int), hear)
            await heard.wait()
            leaving.set()

    leaving = asyncio.Event()
    speaking = asyncio.create_task(speak())
    await leaving.wait()
    await asyncio.sleep(0)  # it waits for the program, which does not end
    speaking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await speaking
    left = [str(task.get_coro()) for task in asyncio.all_tasks() - before]
    assert left == []
    assert not Path(f"/proc/{pids[0]}").exists()  # killed, and its status was taken


async def test_what_was_heard_is_done_before_the_context_is_left() -> None:
    done: list[bool] = []
    began, go_on = asyncio.Event(), asyncio.Event()

    async def hear(number: int) -> None:
        began.set()
        await go_on.wait()
        done.append(bool(number))

    async with linked(COMMAND, peer="b", silence=5, explain=explained, remedy="") as link:
        link.on(Notice("said", int), hear)
        await began.wait()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert done == [True]
