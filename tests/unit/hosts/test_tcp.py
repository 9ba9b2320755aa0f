"""Sockets that QEMU is given."""

from __future__ import annotations

import asyncio
import socket

import pytest

from entourage.errors import HypervisorError
from entourage.hosts import tcp
from entourage.hosts.tcp import (
    FellSilentError,
    answered_within,
    connected,
    listening_at_once,
)

HOST = "127.0.0.1"


def test_what_it_accepts_does_not_wait_for_acks() -> None:
    server = listening_at_once(HOST, [0])
    assert server is not None
    with server, socket.create_connection(server.getsockname()), server.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as first:
        first.bind((HOST, 0))
        first.listen()
        taken = first.getsockname()[1]
        assert listening_at_once(HOST, [taken]) is None
        second = listening_at_once(HOST, [taken, 0])
        assert second is not None
        with second:
            assert second.getsockname()[1] != taken


def test_an_address_of_another_host_is_an_error_not_a_taken_port() -> None:
    with pytest.raises(OSError, match="assign"):
        listening_at_once("192.0.2.1", [0])


async def test_a_connection_does_not_wait_for_acks() -> None:
    with socket.create_server((HOST, 0)) as server:
        async with connected(HOST, server.getsockname()[1]) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert connection.fileno() < 0


async def test_a_port_that_nobody_listens_at_is_named() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
        with pytest.raises(HypervisorError, match=f"{HOST}:{port}: connection refused") as failure:
            async with connected(HOST, port, device="block/vda"):
                pass
    assert failure.value.device == "block/vda"
    assert "migration.ports" in failure.value.remedy


async def test_a_host_that_swallows_packets_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "_CONNECTED_WITHIN", 0.05)
    with socket.socket() as server, socket.socket() as first:
        server.bind((HOST, 0))
        server.listen(0)  # one waits in the queue, and who comes next is not answered
        first.connect(server.getsockname())
        with pytest.raises(HypervisorError, match=r"no answer within 0\.05 s"):
            async with connected(HOST, server.getsockname()[1]):
                pass


async def test_a_name_that_is_none_is_said_to_be_that() -> None:
    with pytest.raises(HypervisorError, match=r"no connection to nowhere\.invalid:1: "):
        async with connected("nowhere.invalid", 1):
            pass


async def test_a_peer_that_falls_silent_is_hung_up_on() -> None:
    """Whoever has a copy of the connection, QEMU say, then reads its end."""
    loop = asyncio.get_running_loop()
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        async with connected(HOST, port) as connection:
            copy = connection.dup()

            async def greet() -> None:
                assert await loop.sock_recv(copy, 1) == b""
                raise HypervisorError("QEMU refuses blockdev-add: end of file", device="block/vda")

            hung_up = pytest.raises(FellSilentError, match=f"{HOST}:{port} took .* silent")
            with hung_up as failure, answered_within(connection, 0.01):
                await greet()
            assert failure.value.device == "block/vda"
            copy.close()


async def test_what_fails_in_time_is_told_as_it_is() -> None:
    with socket.create_server((HOST, 0)) as server:
        async with connected(HOST, server.getsockname()[1]) as connection:
            as_it_is = pytest.raises(HypervisorError, match="no such export")
            with as_it_is, answered_within(connection, 60):
                raise HypervisorError("no such export")
