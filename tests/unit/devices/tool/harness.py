"""Real tools for the unit tests: shell scripts in the test's own directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from entourage.devices.tool.controller import ToolCall
from entourage.errors import DeviceError
from entourage.steps import Step


def tool(directory: Path, body: str, name: str = "tool") -> str:
    """Write a tool; in its script $HERE is the directory."""
    path = directory / name
    path.write_text(f"#!/bin/sh\nHERE={directory}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def call(command: str, **changed: Any) -> ToolCall:
    fields: dict[str, Any] = {
        "type": "vtpm",
        "step": Step.TRANSFER,
        "source": "a",
        "target": "b",
        "domain": "web1",
        "device": "tpm/tpm0",
        "migration": "m1",
        "uuid": "u1",
    }
    return ToolCall(command=command, **fields | changed)


async def failure(command: str, limit: float = 10.0) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        await call(command).run(limit)
    assert caught.value.device == "tpm/tpm0"
    assert caught.value.host == "a"
    assert str(caught.value).isprintable()
    return caught.value


def gone(pid: int, patience: float = 5.0) -> bool:
    """Whether a process ends (or is a zombie, or was never seen) in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], patience)[0])
    finally:
        os.close(handle)


@contextlib.contextmanager
def killed_at_last(path: Path) -> Generator[None]:
    """Ends the process whose number is in a file, which the tool left alive."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int(path.read_text()), signal.SIGKILL)


@contextlib.asynccontextmanager
async def written(path: Path) -> AsyncGenerator[None]:
    """Within: waits at the end until somebody has written a line into a FIFO."""
    os.mkfifo(path)
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, event.set)
    try:
        yield
        async with asyncio.timeout(10):
            await event.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
