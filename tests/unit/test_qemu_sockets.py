"""Listening sockets that QEMU is given."""

from __future__ import annotations

import socket

import pytest

from entourage.hypervisors.qemu.sockets import listening_at_once

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
