"""Hanging up on a host that is gone: real connections, and the kernel's own answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest

from entourage.hosts import tcpinfo
from entourage.hosts.hangup import Calls
from entourage.hosts.process import ProcessHandle
from tests.unit.eventually import eventually, wait_until


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
        calls = Calls(ProcessHandle.open(os.getpid()), address)
        with call(address) as (new, _):
            assert calls.hang_up() == 1  # what has come in was opened by others
            with pytest.raises(ConnectionError):
                new.send(b"x")
        assert old.send(b"x") == 1
    calls.close()


def test_one_of_two_is_ended() -> None:
    """The memory's, and not a disk's."""
    calls = Calls(ProcessHandle.open(os.getpid()), "127.0.0.1")
    with call("127.0.0.1") as (memory, _), call("127.0.0.1") as (disk, _):
        assert calls.hang_up(memory.getpeername()[1]) == 1
        with pytest.raises(ConnectionError):
            memory.send(b"x")
        assert disk.send(b"x") == 1
    calls.close()


def test_who_waits_for_a_host_that_is_silent_is_woken() -> None:
    calls = Calls(ProcessHandle.open(os.getpid()), "127.0.0.1")
    with call("127.0.0.1") as (ours, _):
        ours.settimeout(5)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(ours.recv, 1)
            assert not wait({waiting}, 0.05).done
            assert calls.hang_up() == 1
            assert waiting.result() == b""
    calls.close()


def test_who_owes_nothing_is_not_silent() -> None:
    """This process may be held up by something of its own, and have sent nothing."""
    calls = Calls(ProcessHandle.open(os.getpid()), "127.0.0.1")
    with call("127.0.0.1") as (ours, theirs):
        port = ours.getpeername()[1]
        assert tcpinfo.of(ours).unanswered  # its first word
        ours.send(b"x")
        time.sleep(0.02)  # the kernel's clock has to go on between one word and the next
        theirs.send(b"y")
        assert ours.recv(1) == b"y"
        assert not tcpinfo.of(ours).unanswered
        time.sleep(0.02)
        assert calls.hang_up_on_silence(0, held_up=True) == 0
        ours.send(b"x")
        time.sleep(0.02)
        assert tcpinfo.of(ours).unanswered
        # It has been confirmed: that is all that is owed by one that need not answer.
        wait_until(lambda: not tcpinfo.of(ours).unconfirmed)
        assert calls.hang_up_on_silence(0, held_up=True, answers=False) == 0
        assert calls.hang_up_on_silence(0, held_up=True, one_way=port) == 0
        wait_until(lambda: calls.hang_up_on_silence(0, held_up=True))
    calls.close()


def test_another_host_is_not_hung_up_on() -> None:
    calls = Calls(ProcessHandle.open(os.getpid()), "127.0.0.2")
    with call("127.0.0.1") as (ours, _):
        assert calls.hang_up() == 0
        assert ours.send(b"x") == 1
    calls.close()


def test_who_is_gone_has_no_connections() -> None:
    calls = Calls(None, "no-such-host.invalid")
    assert calls.hang_up() == 0
    calls.close()


@contextmanager
def unanswered(
    address: str = "127.0.0.1",
) -> Generator[tuple[socket.socket, int, Callable[[], None]]]:
    """A socket, a port at which nobody answers, and what connects the one to the other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(family))
        server.bind((address, 0))
        server.listen(0)
        for _ in range(3):  # it takes one, and drops what others send
            full = stack.enter_context(socket.socket(family))
            full.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                full.connect(server.getsockname())
        one = stack.enter_context(socket.socket(family))
        yield one, server.getsockname()[1], lambda: one.connect(server.getsockname())


def connecting(one: socket.socket) -> bool:
    return tcpinfo.of(one).connecting


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_who_is_not_answered_is_hung_up_on(address: str) -> None:
    calls = Calls(ProcessHandle.open(os.getpid()), address)
    with unanswered(address) as (one, _, connect):
        attempt = asyncio.ensure_future(asyncio.to_thread(connect))
        await eventually(lambda: connecting(one))
        assert calls.hang_up_on_silence(60, held_up=True) == 0
        assert not attempt.done()
        assert calls.hang_up_on_silence(0, held_up=False) >= 1
        with pytest.raises(ConnectionError):
            await attempt
        calls.close()


@pytest.mark.parametrize("hang_up", [Calls.hang_up, Calls.hang_up_unanswered])
async def test_an_attempt_is_ended(hang_up: Callable[[Calls, int], int]) -> None:
    calls = Calls(ProcessHandle.open(os.getpid()), "127.0.0.1")
    with unanswered() as (one, port, connect), call("127.0.0.1") as (stands, _):
        attempt = asyncio.ensure_future(asyncio.to_thread(connect))
        await eventually(lambda: connecting(one))
        assert hang_up(calls, port) >= 1
        with pytest.raises(ConnectionError):
            await attempt
        if hang_up is Calls.hang_up_unanswered:
            assert stands.send(b"x") == 1
        calls.close()


def test_only_who_waits_for_a_silent_host_is_hung_up_on() -> None:
    """That nothing comes in is usual for who has not asked anything."""
    calls = Calls(ProcessHandle.open(os.getpid()), "127.0.0.1")
    with call("127.0.0.1") as (ours, _):
        wait_until(lambda: tcpinfo.of(ours).quiet)
        assert calls.hang_up_on_silence(0, held_up=False) == 0
        assert calls.hang_up_on_silence(60, held_up=True) == 0
        assert ours.send(b"x") == 1
        wait_until(lambda: tcpinfo.of(ours).quiet)
        # Round trips come on top.
        wait_until(lambda: calls.hang_up_on_silence(0, held_up=True))
        with pytest.raises(ConnectionError):
            ours.send(b"x")
    calls.close()
