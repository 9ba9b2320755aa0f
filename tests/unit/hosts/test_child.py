"""A link to a program: nothing of it is left, however its context is left."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from entourage.errors import LinkLost
from entourage.hosts import child
from entourage.hosts.child import linked
from entourage.hosts.frames import Notice
from tests.unit.eventually import eventually

PROGRAM = """
import os, time
from entourage.hosts.frames import Tell, encoder
said = encoder.encode(Tell("said", os.getpid()))
os.write(1, len(said).to_bytes(4, "big") + said)
time.sleep(60)
"""
COMMAND = [sys.executable, "-c", PROGRAM]
QUIET = "cat >/dev/null; exec sleep 60"


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


async def test_what_was_heard_is_done_before_the_context_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long the program has been gone by then."""
    monkeypatch.setattr(child, "_ENDS_WITHIN", 0.1)
    done: list[bool] = []
    pids: list[int] = []
    go_on = asyncio.Event()

    async def hear(number: int) -> None:
        pids.append(number)
        await go_on.wait()
        done.append(True)

    async def speak() -> None:
        async with linked(COMMAND, peer="b", silence=5, explain=explained, remedy="") as link:
            link.on(Notice("said", int), hear)
            await eventually(lambda: pids)

    speaking = asyncio.create_task(speak())
    await eventually(lambda: pids and not Path(f"/proc/{pids[0]}").exists())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(speaking), 0.2)
    go_on.set()
    await speaking
    assert done == [True]


async def ended(script: str) -> float:
    """Seconds until a program was gone, from when nobody needs it any more."""
    argv = ["sh", "-c", script]
    async with linked(argv, peer="b", silence=60, explain=explained, remedy=""):
        began = time.monotonic()
    return time.monotonic() - began


async def test_one_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for as long as one that ends: it began to be silent only a moment ago."""
    monkeypatch.setattr(child, "SILENT", 0.2)
    monkeypatch.setattr(child, "_ENDS_WITHIN", 20)
    assert 0.1 < await ended(QUIET) < 10


async def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_ENDS_WITHIN", 0.1)
    assert await ended(QUIET) < 10


async def test_one_that_ends_is_left_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And is waited for no longer than that."""
    monkeypatch.setattr(child, "SILENT", 60)
    monkeypatch.setattr(child, "_ENDS_WITHIN", 60)
    assert await ended(f"cat >/dev/null; sleep 0.3; echo >'{tmp_path}/ended'") < 20
    assert (tmp_path / "ended").exists()
