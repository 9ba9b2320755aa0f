"""Memory goes from a socket to a file and back, whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hosts.flow import end_checked, from_file, into_file, relayed

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


async def passed_on(tmp_path: Path, data: bytes) -> Path:
    """Memory that went through a relay into a file."""
    source, its = socket.socketpair()
    target, far = socket.socketpair()
    relay, inflow = relayed(its, target), into_file(far, tmp_path / "memory")
    with source:
        await asyncio.to_thread(source.sendall, data)
    await relay.finished()
    await inflow.finished()
    assert relay.done == len(data)
    await relay.end()
    await inflow.end()
    return tmp_path / "memory"


@pytest.mark.parametrize("data", [DATA, b""], ids=["some", "none"])
async def test_what_was_passed_on_is_known_to_be_whole(tmp_path: Path, data: bytes) -> None:
    memory = await passed_on(tmp_path, data)
    end_checked(memory)
    assert memory.read_bytes() == data
    with pytest.raises(HypervisorError, match="did not come whole"):
        end_checked(memory)  # it has no trailer any more


@pytest.mark.parametrize("left", [0, 5, 1000, -1], ids=["nothing", "little", "some", "nearly all"])
async def test_what_was_cut_off_is_found(tmp_path: Path, left: int) -> None:
    memory = await passed_on(tmp_path, DATA)
    os.truncate(memory, left if left >= 0 else memory.stat().st_size - 1)
    with pytest.raises(HypervisorError, match="did not come whole"):
        end_checked(memory)


async def test_a_relay_ends_where_nobody_takes_it() -> None:
    source, its = socket.socketpair()
    target, far = socket.socketpair()
    relay = relayed(its, target)
    with source, far:
        source.setblocking(False)  # noqa: FBT003 - the name of it
        with contextlib.suppress(BlockingIOError):
            while True:
                source.send(DATA)
        await relay.end()


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
