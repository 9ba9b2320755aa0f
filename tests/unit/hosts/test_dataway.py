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
SAID = bytes(range(TOKEN))


@contextlib.asynccontextmanager
async def awaited(connections: int = 1) -> AsyncGenerator[Awaited]:
    open_ = await Awaited.open(HOST, RANGE, connections, SAID)
    try:
        yield open_
    finally:
        await open_.close()


async def test_each_port_is_proven_and_is_free_afterwards() -> None:
    async with awaited(2) as there:
        assert len(set(there.ports)) == 2
        assert await prove_all(HOST, there.ports, SAID) is None
    for port in there.ports:
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((HOST, port))


async def test_one_closed_port_of_two_is_told() -> None:
    async with awaited(2) as there:
        with socket.socket() as taken:
            taken.bind((HOST, 0))
            closed = taken.getsockname()[1]
            problem = await prove_all(HOST, [there.ports[0], closed], SAID)
    assert problem is not None
    assert problem.message == f"no connection to {HOST}:{closed}: connection refused"


async def test_who_does_not_know_the_token_is_hung_up_on() -> None:
    async with awaited() as there:
        with pytest.raises(HypervisorError, match="hung up: it is not the target"):
            await prove(HOST, there.ports[0], bytes(TOKEN))
        await prove(HOST, there.ports[0], SAID)  # and the next one is served


async def test_somebody_else_at_the_port_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(TOKEN)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 4)
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    async with server:
        with pytest.raises(HypervisorError, match="somebody else than the target answers at"):
            await prove(HOST, server.sockets[0].getsockname()[1], b"x" * TOKEN)


async def test_who_says_what_it_hears_is_not_the_target() -> None:
    """An echo service; or this very connection, whose port is of those that the kernel gives."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(65536):
                writer.write(data)

    server = await asyncio.start_server(echo, HOST, 0)
    async with server:
        with pytest.raises(HypervisorError, match="somebody else than the target answers at"):
            await prove(HOST, server.sockets[0].getsockname()[1], SAID)


@pytest.mark.parametrize("lossy", ["there", "back"])
async def test_a_way_for_small_packets_only_is_none(
    monkeypatch: pytest.MonkeyPatch, lossy: str
) -> None:
    monkeypatch.setattr(dataway, "_WITHIN", 0.2)

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, most: int) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data[: max(most, 0)])
                most -= len(data)

    async with awaited() as there:

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far, on = await asyncio.open_connection(HOST, there.ports[0])
            most = {way: 1400 if way == lossy else 1 << 20 for way in ("there", "back")}
            with contextlib.closing(writer), contextlib.closing(on):
                await asyncio.gather(
                    carry(reader, on, most["there"]), carry(far, writer, most["back"])
                )

        server = await asyncio.start_server(relay, HOST, 0)
        async with server:
            with pytest.raises(HypervisorError, match="what is sent does not arrive"):
                await prove(HOST, server.sockets[0].getsockname()[1], SAID)


async def test_the_target_hangs_up_later_than_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the source would take the target for a stranger, and not hear of the MTU."""
    monkeypatch.setattr(dataway, "_WITHIN", 0.05)
    async with awaited() as there:
        reader, writer = await asyncio.open_connection(HOST, there.ports[0])
        writer.write(SAID)
        with contextlib.closing(writer), pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(), 0.3)


async def test_who_is_connected_when_it_ends_is_hung_up_on() -> None:
    async with awaited() as there:
        reader, writer = await asyncio.open_connection(HOST, there.ports[0])
        writer.write(SAID)
    with contextlib.suppress(ConnectionResetError):
        assert not await reader.read()
    writer.close()


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
            await Awaited.open(HOST, (port, port), 1, SAID)
