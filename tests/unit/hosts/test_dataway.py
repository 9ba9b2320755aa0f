"""The proof that data gets to the target, between two ends of this host."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

import pytest

from entourage.errors import HypervisorError
from entourage.hosts import dataway
from entourage.hosts.dataway import TOKEN, Awaited, prove, prove_all

HOST = "127.0.0.1"
RANGE = (42000, 42999)


@contextlib.asynccontextmanager
async def awaited(connections: int = 1) -> AsyncGenerator[Awaited]:
    open_ = await Awaited.open(HOST, RANGE, connections)
    try:
        yield open_
    finally:
        await open_.close()


async def test_each_port_is_proven_and_is_free_afterwards() -> None:
    async with awaited(2) as there:
        assert len(set(there.ports)) == 2
        assert await prove_all(HOST, there.ports, there.token) is None
    for port in there.ports:
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((HOST, port))


async def test_one_closed_port_of_two_is_told() -> None:
    async with awaited(2) as there:
        with socket.socket() as taken:
            taken.bind((HOST, 0))
            closed = taken.getsockname()[1]
            problem = await prove_all(HOST, [there.ports[0], closed], there.token)
    assert problem is not None
    assert problem.message == f"no connection to {HOST}:{closed}: connection refused"


async def test_who_does_not_know_the_token_is_hung_up_on() -> None:
    async with awaited() as there:
        with pytest.raises(HypervisorError, match="is not the target: it hung up"):
            await prove(HOST, there.ports[0], bytes(TOKEN))
        await prove(HOST, there.ports[0], there.token)  # and the next one is served


async def test_somebody_else_at_the_port_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(TOKEN)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 4)
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        with pytest.raises(HypervisorError, match="somebody else than the target answers at"):
            await prove(HOST, server.sockets[0].getsockname()[1], b"x" * TOKEN)


async def test_a_way_that_swallows_what_is_sent_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataway, "_WITHIN", 0.05)
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(HypervisorError, match="what is sent does not arrive"):
            await prove(HOST, port, b"x" * TOKEN)


async def test_too_few_free_ports_are_told() -> None:
    async with awaited() as there:
        [port] = there.ports
        with pytest.raises(HypervisorError, match=f"no port from {port} to {port} is free"):
            await Awaited.open(HOST, (port, port), 1)
