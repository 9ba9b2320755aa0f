"""Two ends of a link over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entourage.errors import DeviceError, EntourageError, LinkError, LinkLost, Refused
from entourage.hosts.link import MAX_FRAME, Link


class Pair:
    """Both ends, and the raw socket beneath the second."""

    def __init__(self, one: Link, two: Link, raw: socket.socket) -> None:
        self.one, self.two, self.raw = one, two, raw


@contextlib.asynccontextmanager
async def linked(silence: float = 5.0, *, serve_two: bool = True) -> AsyncGenerator[Pair]:
    ends = socket.socketpair()
    one_streams = await asyncio.open_connection(sock=ends[0])
    two_streams = await asyncio.open_connection(sock=ends[1])
    one = Link(*one_streams, peer="two", silence=silence)
    two = Link(*two_streams, peer="one", silence=silence)
    tasks = [asyncio.create_task(one.serve())]
    if serve_two:
        tasks.append(asyncio.create_task(two.serve()))
    try:
        yield Pair(one, two, ends[1])
    finally:
        one.close()
        two.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def double(number: Any) -> int:
    return number * 2


async def test_calls_go_both_ways_and_answers_find_their_call() -> None:
    async with linked() as pair:
        pair.one.on("double", double)
        pair.two.on("double", double)
        answers = await asyncio.gather(
            *(pair.one.call("double", n, int) for n in range(50)),
            *(pair.two.call("double", n, int) for n in range(50)),
        )
    assert answers == [n * 2 for n in range(50)] * 2


async def test_an_error_arrives_with_its_class_and_fields() -> None:
    async def fail(_: Any) -> None:
        raise DeviceError("no space left", device="block/disk0", remedy="make room")

    async with linked() as pair:
        pair.two.on("fail", fail)
        with pytest.raises(DeviceError) as caught:
            await pair.one.call("fail", None, int)
    assert str(caught.value) == "block/disk0 on two: no space left (make room)"


async def test_an_error_with_fields_of_its_own_still_arrives() -> None:
    async def refuse(_: Any) -> None:
        raise Refused([])

    async with linked() as pair:
        pair.two.on("refuse", refuse)
        with pytest.raises(EntourageError):
            await pair.one.call("refuse", None, int)


async def test_a_bug_at_the_other_end_is_an_error_and_not_a_hang() -> None:
    async def stumble(_: Any) -> None:
        raise KeyError("x")

    async with linked() as pair:
        pair.two.on("stumble", stumble)
        with pytest.raises(LinkError, match="KeyError"):
            await pair.one.call("stumble", None, int)
        with pytest.raises(LinkError, match="not something"):
            await pair.one.call("unheard-of", None, int)
        assert pair.one.alive


async def test_an_answer_of_another_type_is_refused() -> None:
    async with linked() as pair:
        pair.two.on("double", double)
        with pytest.raises(LinkError, match="not understood"):
            await pair.one.call("double", 1, str)


async def test_who_waits_for_an_answer_hears_of_the_loss() -> None:
    async def never(_: Any) -> None:
        await asyncio.get_running_loop().create_future()

    async with linked() as pair:
        pair.two.on("never", never)
        call = asyncio.create_task(pair.one.call("never", None, int))
        await asyncio.sleep(0)
        pair.raw.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LinkLost):
            await call
        assert isinstance(await pair.one.lost(), LinkLost)
        with pytest.raises(LinkLost):
            pair.one.tell("anything")


async def test_silence_is_loss() -> None:
    async with linked(silence=0.1, serve_two=False) as pair:
        lost = await asyncio.wait_for(pair.one.lost(), 5)
    assert "nothing was heard" in str(lost)


async def test_heartbeats_keep_a_quiet_link_alive() -> None:
    async with linked(silence=0.2) as pair:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pair.one.lost(), 0.8)


async def test_a_frame_that_is_too_long_ends_the_link() -> None:
    async with linked(serve_two=False) as pair:
        pair.raw.setblocking(True)  # noqa: FBT003 - the socket module's own signature
        pair.raw.sendall((MAX_FRAME + 1).to_bytes(4, "big"))
        assert "not ours" in str(await asyncio.wait_for(pair.one.lost(), 5))


@given(st.binary(max_size=64))
def test_no_bytes_do_more_than_end_the_link(data: bytes) -> None:
    async def hear() -> None:
        async with linked(silence=0.05, serve_two=False) as pair:
            pair.raw.setblocking(True)  # noqa: FBT003
            pair.raw.sendall(len(data).to_bytes(4, "big") + data)
            pair.raw.shutdown(socket.SHUT_WR)
            assert isinstance(await asyncio.wait_for(pair.one.lost(), 5), LinkLost)

    asyncio.run(hear())


async def test_a_request_for_a_struct_is_converted() -> None:
    class Point(msgspec.Struct):
        x: int

    async def point(body: Any) -> Point:
        return Point(msgspec.convert(body, Point).x + 1)

    async with linked() as pair:
        pair.two.on("point", point)
        assert await pair.one.call("point", Point(1), Point) == Point(2)
