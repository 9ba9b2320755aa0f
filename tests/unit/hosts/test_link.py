"""Two ends of a link over a real socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from types import NoneType, SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entourage.errors import DeviceError, EntourageError, LinkError, LinkLost, Refused
from entourage.hosts import link as link_module
from entourage.hosts.frames import MAX_FRAME, Beat, Notice, Question, Tell, encoder
from entourage.hosts.link import Link


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


DOUBLE = Question("double", int, int)


def asks_nothing(name: str) -> Question[None, int]:
    """A question without a body."""
    return Question(name, NoneType, int)


async def double(number: int) -> int:
    return number * 2


async def test_calls_go_both_ways_and_answers_find_their_call() -> None:
    async with linked() as pair:
        pair.one.on(DOUBLE, double)
        pair.two.on(DOUBLE, double)
        answers = await asyncio.gather(
            *(pair.one.call(DOUBLE, n) for n in range(50)),
            *(pair.two.call(DOUBLE, n) for n in range(50)),
        )
    assert answers == [n * 2 for n in range(50)] * 2


async def test_an_error_arrives_with_its_class_and_fields() -> None:
    async def fail(_: None) -> int:
        raise DeviceError("no space left", device="block/disk0", remedy="make room")

    async with linked() as pair:
        pair.two.on(asks_nothing("fail"), fail)
        with pytest.raises(DeviceError) as caught:
            await pair.one.call(asks_nothing("fail"), None)
    assert str(caught.value) == "block/disk0 on two: no space left (make room)"


async def test_an_error_with_fields_of_its_own_still_arrives() -> None:
    async def refuse(_: None) -> int:
        raise Refused([])

    async with linked() as pair:
        pair.two.on(asks_nothing("refuse"), refuse)
        with pytest.raises(EntourageError):
            await pair.one.call(asks_nothing("refuse"), None)


async def test_a_bug_at_the_other_end_is_an_error_and_not_a_hang() -> None:
    async def stumble(_: None) -> int:
        raise KeyError("x")

    async with linked() as pair:
        pair.two.on(asks_nothing("stumble"), stumble)
        with pytest.raises(LinkError, match="KeyError"):
            await pair.one.call(asks_nothing("stumble"), None)
        with pytest.raises(LinkError, match="not something"):
            await pair.one.call(asks_nothing("unheard-of"), None)
        assert pair.one.alive


async def test_an_answer_of_another_type_is_refused() -> None:
    async with linked() as pair:
        pair.two.on(DOUBLE, double)
        with pytest.raises(LinkError, match="not understood"):
            await pair.one.call(DOUBLE.replying(str), 1)


async def test_who_waits_for_an_answer_hears_of_the_loss() -> None:
    async def never(_: None) -> int:
        return await asyncio.get_running_loop().create_future()

    async with linked() as pair:
        pair.two.on(asks_nothing("never"), never)
        call = asyncio.create_task(pair.one.call(asks_nothing("never"), None))
        await asyncio.sleep(0)
        pair.raw.shutdown(socket.SHUT_RDWR)
        with pytest.raises(LinkLost):
            await call
        assert isinstance(await pair.one.lost(), LinkLost)
        with pytest.raises(LinkLost):
            pair.one.tell(Notice("anything", int), 1)


async def test_what_arrives_after_it_was_closed_is_not_acted_on() -> None:
    heard: list[int] = []

    first = asyncio.Event()

    async def hear(number: int) -> None:
        heard.append(number)
        first.set()

    # As with a program's: that its input is closed does not end what it still prints.
    reader, nothing = asyncio.StreamReader(), SimpleNamespace(get_write_buffer_size=int)
    writer: Any = SimpleNamespace(transport=nothing, write=len, close=lambda: None)
    link = Link(reader, writer, peer="two", silence=5.0)
    link.on(Notice("said", int), hear)
    serving = asyncio.create_task(link.serve())
    frames = [encoder.encode(Tell("said", number)) for number in (1, 2)]
    said = [len(frame).to_bytes(4, "big") + frame for frame in frames]
    reader.feed_data(said[0])
    await first.wait()
    link.close()
    reader.feed_data(said[1])
    reader.feed_eof()
    await serving
    await link.settle()
    assert heard == [1]


async def test_silence_is_loss() -> None:
    async with linked(silence=0.1, serve_two=False) as pair:
        lost = await asyncio.wait_for(pair.one.lost(), 5)
    assert "nothing was heard" in str(lost)


async def test_the_first_word_may_take_longer() -> None:
    """Somebody types a password; from the first word on, silence is loss."""
    ours, theirs = socket.socketpair()
    silent = Link(
        *await asyncio.open_connection(sock=ours), peer="b", silence=0.05, first_word=1000
    )
    serving = asyncio.create_task(silent.serve())
    with theirs:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent.lost(), 0.3)
        beat = encoder.encode(Beat(1, 0))
        theirs.sendall(len(beat).to_bytes(4, "big") + beat)
        assert "nothing was heard" in str(await asyncio.wait_for(silent.lost(), 5))
    await serving


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


@pytest.mark.parametrize(
    "data",
    [
        msgspec.msgpack.encode(["call", 1, "hello", None]).replace(
            b"hello", b"he\xffo"[:4] + b"\xff"
        ),
        b"\x91" * 100_000,
    ],
    ids=["text that is no UTF-8", "a value within a value within …"],
)
async def test_a_damaged_frame_ends_the_link_and_says_so(data: bytes) -> None:
    async with linked(serve_two=False) as pair:
        pair.raw.setblocking(True)  # noqa: FBT003
        pair.raw.sendall(len(data).to_bytes(4, "big") + data)
        assert "is not ours" in str(await asyncio.wait_for(pair.one.lost(), 5))


async def test_a_request_for_a_struct_is_converted() -> None:
    class Point(msgspec.Struct):
        x: int

    async def point(body: Point) -> Point:
        return Point(body.x + 1)

    async with linked() as pair:
        pair.two.on(Question("point", Point, Point), point)
        assert await pair.one.call(Question("point", Point, Point), Point(1)) == Point(2)
        with pytest.raises(LinkError, match="Expected `object`, got `str`"):
            await pair.one.call(Question("point", str, Point), "no point")


async def test_what_only_its_reader_understands_arrives_as_it_was() -> None:
    kind = Question("plan", msgspec.Raw, int)

    async def length(plan: msgspec.Raw) -> int:
        return len(msgspec.msgpack.decode(plan, type=list[int]))

    async with linked() as pair:
        pair.two.on(kind, length)
        assert await pair.one.call(kind, msgspec.Raw(msgspec.msgpack.encode([1, 2, 3]))) == 3


@pytest.mark.parametrize("printed", [b"", b"\n", b"Welcome to b!\n\xff\xe9\n", b"x" * 60_000])
async def test_what_a_shell_prints_before_is_passed_over(printed: bytes) -> None:
    ends = socket.socketpair()
    one = Link(*await asyncio.open_connection(sock=ends[0]), peer="b", silence=5, noisy=True)
    ends[1].setblocking(True)  # noqa: FBT003
    sending = asyncio.create_task(asyncio.to_thread(ends[1].sendall, printed))
    serving = asyncio.create_task(one.serve())
    await sending
    two = Link(*await asyncio.open_connection(sock=ends[1]), peer="a", silence=5)
    two.on(DOUBLE, double)
    speaking = asyncio.create_task(two.serve())
    assert await asyncio.wait_for(one.call(DOUBLE, 21), 5) == 42
    two.close()
    assert ".bashrc" not in str(await asyncio.wait_for(one.lost(), 5))  # it is not to blame
    await asyncio.gather(serving, speaking, return_exceptions=True)


@pytest.mark.parametrize("printed", [b"Your password has expired\n", b"no end " * 20_000])
async def test_what_it_prints_instead_is_quoted(printed: bytes) -> None:
    ends = socket.socketpair()
    one = Link(*await asyncio.open_connection(sock=ends[0]), peer="b", silence=5, noisy=True)
    serving = asyncio.create_task(one.serve())

    def speak() -> None:
        ends[1].setblocking(True)  # noqa: FBT003
        with contextlib.suppress(OSError):
            ends[1].sendall(printed)
        with contextlib.suppress(OSError):
            ends[1].shutdown(socket.SHUT_WR)

    await asyncio.to_thread(speak)
    said = str(await asyncio.wait_for(one.lost(), 5))
    assert printed.decode().split()[0] in said
    assert "~/.bashrc" in said
    await asyncio.gather(serving, return_exceptions=True)
    ends[1].close()


async def test_no_more_is_read_than_can_be_handled() -> None:
    """A peer that asks and asks, and is answered late, is not read meanwhile."""
    begun, may = list[int](), asyncio.Event()

    async def late(body: str) -> int:
        begun.append(len(body))
        await may.wait()
        return 0

    async with linked(serve_two=True) as pair:
        large = Question("large", str, int)
        pair.two.on(large, late)
        asked = [asyncio.create_task(pair.one.call(large, "x" * (1 << 20))) for _ in range(20)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.gather(*asked)), 0.5)
        assert 0 < len(begun) < 9
        may.set()
        await asyncio.wait_for(asyncio.gather(*asked), 20)
        assert len(begun) == 20


async def test_a_peer_that_reads_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_MOST_UNREAD", 1 << 20)
    async with linked(serve_two=False) as pair:

        def tell() -> None:
            for _ in range(100):
                pair.one.tell(Notice("x", str), "x" * (1 << 16))

        with pytest.raises(LinkLost, match="reads nothing"):
            tell()
