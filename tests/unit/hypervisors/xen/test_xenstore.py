"""Our client of xenstored, with a small server that speaks its protocol (xs_wire.h)."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.xen import xenstore
from entourage.hypervisors.xen.xenstore import RELEASED, XenStore

HEADER = struct.Struct("=IIII")
UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"
TREE = {
    "/local/domain": b"0\x007\x00",
    "/local/domain/0/vm": b"/vm/00000000-0000-0000-0000-000000000000",
    "/local/domain/7/vm": f"/vm/{UUID}-1".encode(),
    "/local/domain/7/name": b"web1--incoming",
}


class Server:
    """Answers what is in TREE, and fires watches when told."""

    def __init__(self) -> None:
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        while head := await reader.read(HEADER.size):
            kind, number, _, length = HEADER.unpack(head)
            path, *_ = (await reader.readexactly(length)).split(b"\0")
            answer = b"OK\0" if kind == 4 else TREE.get(path.decode())
            if answer is None:
                writer.write(HEADER.pack(16, number, 0, 7) + b"ENOENT\0")
            else:
                writer.write(HEADER.pack(kind, number, 0, len(answer)) + answer)
            if kind == 4:
                self.fire()

    def fire(self) -> None:
        assert self.writer is not None
        said = f"{RELEASED}\0{RELEASED}\0".encode()
        self.writer.write(HEADER.pack(15, 0, 0, len(said)) + said)

    def hang_up(self) -> None:
        assert self.writer is not None
        self.writer.close()


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Server]:
    monkeypatch.setattr(xenstore, "_SOCKETS", (str(tmp_path / "s"),))
    server = Server()
    listening = await asyncio.start_unix_server(server.serve, tmp_path / "s")
    yield server
    listening.close()
    if server.writer is not None:
        server.writer.close()
        with contextlib.suppress(OSError):
            await server.writer.wait_closed()


@pytest.fixture
async def store(server: Server) -> AsyncGenerator[XenStore]:
    store = await XenStore.open()
    yield store
    await store.close()


async def test_domains_are_found_by_their_uuid_whatever_they_are_called(store: XenStore) -> None:
    assert await store.domain_ids(UUID.upper()) == [7]
    assert await store.name(7) == "web1--incoming"
    assert await store.domain_ids("11111111-1111-1111-1111-111111111111") == []


async def test_what_is_not_there_is_empty(store: XenStore) -> None:
    assert await store.name(9) == ""
    assert await store.directory("/nowhere") == []


async def test_a_watch_fires_at_once_and_then_at_each_event(
    server: Server, store: XenStore
) -> None:
    fired = await store.watch(RELEASED)
    async with asyncio.timeout(5):
        await fired.wait()
        fired.clear()
        server.fire()
        await fired.wait()


async def test_a_xenstored_that_goes_away_is_an_error_and_wakes_who_waits(
    server: Server, store: XenStore
) -> None:
    fired = await store.watch(RELEASED)
    async with asyncio.timeout(5):
        await fired.wait()
        fired.clear()
        server.hang_up()
        await fired.wait()
    with pytest.raises(HypervisorError, match="gone away"):
        await store.name(7)


async def test_no_xenstored_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(xenstore, "_SOCKETS", (str(tmp_path / "none"),))
    with pytest.raises(HypervisorError, match="does not run"):
        await XenStore.open()
