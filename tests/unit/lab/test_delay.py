"""The lab's long way: which frames wait, and in which order they go on. Nothing is timed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from lab.delay import Forwarder

LATE, EARLY = b"a" * 6 + b"b" * 6, b"g" * 12
HEADER = bytes(10)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket, Forwarder]]:
    """A sender, a receiver, and the forwarder between them."""
    sender, source = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sink, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for one in (source, receiver):
        one.settimeout(0)
    with sender, source, sink, receiver:
        yield sender, receiver, Forwarder(source, sink, {LATE}, 1000.0, 0)


def test_with_a_spread_they_overtake_one_another(
    ends: tuple[socket.socket, socket.socket, Forwarder],
) -> None:
    sender, receiver, way = ends
    spread = Forwarder(way.source, way.sink, {LATE}, 0, 1000.0)
    sent = [bytes([number]) for number in range(8)] * 5
    for number in sent:
        sender.send(HEADER + LATE + number)
        spread.take()
    spread.release(time.monotonic() + 2000)
    came = [receiver.recv(100)[-1:] for _ in sent]
    assert came != sent
    assert sorted(came) == sorted(sent)


def test_only_frames_between_the_two_hosts_wait(
    ends: tuple[socket.socket, socket.socket, Forwarder],
) -> None:
    sender, receiver, way = ends
    sender.send(HEADER + LATE + b"1")
    sender.send(HEADER + EARLY + b"2")
    way.take()
    assert receiver.recv(100) == HEADER + EARLY + b"2"
    with pytest.raises(BlockingIOError):
        receiver.recv(100)
    assert way.due > time.monotonic()


def test_what_waits_goes_on_in_order_once_its_time_has_come(
    ends: tuple[socket.socket, socket.socket, Forwarder],
) -> None:
    sender, receiver, way = ends
    for number in (b"1", b"2"):
        sender.send(HEADER + LATE + number)
    way.take()
    way.release(way.due - 1)
    with pytest.raises(BlockingIOError):
        receiver.recv(100)
    way.release(time.monotonic() + 2000)
    assert [receiver.recv(100)[-1:], receiver.recv(100)[-1:]] == [b"1", b"2"]
    assert way.due == float("inf")
