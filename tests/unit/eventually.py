"""Waiting for what tells nobody that it has changed: looked at again and again, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_WITHIN = 20.0  # seconds
_LOOK_EVERY = 0.005  # seconds
_TURNS = 50  # of the event loop: more than any task here needs to come as far as it can


async def eventually(check: Callable[[], object]) -> None:
    """Wait until a check says yes; an AssertionError where it does not in time."""
    deadline = time.monotonic() + _WITHIN
    while not check():
        assert time.monotonic() < deadline, f"not within {_WITHIN:g} s"
        await asyncio.sleep(_LOOK_EVERY)


async def idle() -> None:
    """Have each task come as far as it can by itself."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def wait_until(check: Callable[[], object], within: float = _WITHIN) -> None:
    """Do the same where there is no event loop, within so many seconds."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"not within {within:g} s"
        time.sleep(_LOOK_EVERY)
