"""Hanging up on a host that is gone: real connections, and the kernel's own answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from entourage.hosts.hangup import Calls, connections

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may end connections")


@contextmanager
def call(address: str) -> Generator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        ours = socket.create_connection(server.getsockname()[:2])
        theirs, _ = server.accept()
        with ours, theirs:
            yield ours, theirs


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_was_opened_since_is_ended(address: str) -> None:
    with call(address) as (old, _):
        calls = Calls(os.getpid(), address)
        with call(address) as (new, _):
            assert calls.hang_up() == 1  # what has come in was opened by others
            with pytest.raises(ConnectionError):
                new.send(b"x")
        assert old.send(b"x") == 1


def test_another_host_is_not_hung_up_on() -> None:
    calls = Calls(os.getpid(), "127.0.0.2")
    with call("127.0.0.1") as (ours, _):
        assert calls.hang_up() == 0
        assert ours.send(b"x") == 1


def test_who_is_gone_has_no_connections() -> None:
    assert connections(0) == frozenset()
    assert Calls(0, "no-such-host.invalid").hang_up() == 0


def test_both_ends_are_known() -> None:
    with call("127.0.0.1") as (ours, _):
        inode = os.fstat(ours.fileno()).st_ino
        [found] = [one for one in connections(os.getpid()) if one.inode == inode]
        assert (found.here, found.there) == (ours.getsockname(), ours.getpeername())
