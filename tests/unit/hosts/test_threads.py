"""What blocks has a thread that nothing waits for: neither the loop's end nor the interpreter's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from entourage.hosts.threads import InOrder, in_thread

HANGS = """
import asyncio, os
from entourage.hosts.threads import in_thread

async def main():
    out, _inward = os.pipe()
    try:
        async with asyncio.timeout(0.01):
            await in_thread(os.read, out, 1)
    except TimeoutError:
        print("given up")

asyncio.run(main())
"""


def refuse() -> None:
    raise OSError("it does not answer")


async def test_what_comes_of_it() -> None:
    assert await in_thread(int, "7", base=8) == 7
    assert await in_thread(threading.current_thread) is not threading.main_thread()
    with pytest.raises(OSError, match="does not answer"):
        await in_thread(refuse)


def test_one_that_hangs_keeps_no_process_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("given up\n", "")


async def test_who_is_cancelled_goes_on_and_the_call_too() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        may_end.wait()
        ended.set()
        refuse()

    waiting = asyncio.ensure_future(in_thread(work))
    assert await in_thread(begun.wait, 60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    may_end.set()
    assert await in_thread(ended.wait, 60)


async def test_many_hang_and_one_more_is_done() -> None:
    """A pool would have no thread left for it."""
    may_end = threading.Event()
    hanging = [in_thread(may_end.wait) for _ in range(100)]
    assert await in_thread(int, "1") == 1
    may_end.set()
    await asyncio.gather(*hanging)


async def test_calls_are_made_in_the_order_in_which_they_were_asked_for() -> None:
    order, done = InOrder(), list[int]()
    await asyncio.gather(*(order(done.append, number) for number in range(50)))
    assert done == list(range(50))
    with pytest.raises(ZeroDivisionError):
        await order(divmod, 1, 0)
    assert await order(divmod, 7, 2) == (3, 1)


async def test_what_has_begun_is_waited_for_also_where_its_caller_was_cancelled() -> None:
    """And of who was cancelled before his turn nothing is called."""
    order, did = InOrder(), list[str]()
    begun, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        may_end.wait()
        did.append("slow")

    first = asyncio.create_task(order(slow))
    second = asyncio.create_task(order(did.append, "second"))
    third = asyncio.create_task(order(did.append, "third"))
    await asyncio.to_thread(begun.wait)
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert did == []
    may_end.set()
    await third
    assert did == ["slow", "third"]
