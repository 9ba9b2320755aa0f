"""Memory goes from a socket to a file and back, whole."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from entourage.hypervisors.saved.stream import from_file, into_file

DATA = os.urandom(5 << 20)


async def test_there_and_back(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    inflow = into_file(other, tmp_path / "memory")
    with one:
        await asyncio.to_thread(one.sendall, DATA)
    await inflow.finished()
    await inflow.end()
    assert inflow.done == len(DATA)
    assert (tmp_path / "memory").read_bytes() == DATA
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o600

    one, other = socket.socketpair()
    outflow = from_file(tmp_path / "memory", other)
    with one, one.makefile("rb") as file:
        assert await asyncio.to_thread(file.read) == DATA
    await outflow.finished()
    await outflow.end()


async def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"mine")
    one, other = socket.socketpair()
    flow = into_file(other, tmp_path / "memory")
    with one, pytest.raises(FileExistsError):
        await flow.finished()
    await flow.end()
    assert (tmp_path / "memory").read_bytes() == b"mine"


async def test_it_ends_wherever_it_is(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    flow = into_file(other, tmp_path / "memory")
    with one:
        one.sendall(b"more is to come")
        await flow.end()
    (tmp_path / "big").write_bytes(DATA)
    one, other = socket.socketpair()
    flow = from_file(tmp_path / "big", other)  # nobody reads it
    with one:
        await flow.end()


async def test_a_full_disk_is_an_error() -> None:
    one, other = socket.socketpair()
    with one:
        flow = into_file(other, Path("/proc/no-such-file"))
        with pytest.raises(OSError, match="No such file"):
            await flow.finished()
        await flow.end()
