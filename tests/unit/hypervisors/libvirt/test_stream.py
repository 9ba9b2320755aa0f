"""QEMU's stream is read to its end, and QEMU is told so; by none before."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
import tracemalloc

import pytest

from entourage.hypervisors.libvirt.stream import QemuStream, is_end

SAID = bytes([0, 1, 0, 4, 0, 0, 0, 0])


def end(text: bytes = b'{"page_size": 4096, "devices": []}') -> bytes:
    return b"\x00\x06" + struct.pack(">I", len(text)) + text


def padded(length: int) -> bytes:
    return b'{"a": "' + b"x" * (length - 9) + b'"}'


@pytest.mark.parametrize(
    ("tail", "is_one"),
    [
        (b"QEVM" + end(), True),
        (end(padded(0x00060030)), True),  # whose length has the mark in it
        (b"\x00\x06" * 3 + end(), True),
        (end() + b"\x00", False),
        (end()[:-1], False),
        (end()[1:], False),
        (b"\x00\x06}", False),
        (b"}", False),
        (b"", False),
        (b"\x00\x06" + struct.pack(">I", 7) + b'{"a": 1}', False),
    ],
)
def test_the_end_is_known_by_its_length(tail: bytes, *, is_one: bool) -> None:
    assert is_end(tail) == is_one


class Ends:
    """QEMU's end of a connection, and that of what it is passed on to."""

    def __init__(self) -> None:
        self.qemu, ours = socket.socketpair()
        self.taker, target = socket.socketpair()
        for one in (self.qemu, self.taker):
            one.settimeout(5)
        self.stream = QemuStream(ours, target)

    async def hears(self) -> bytes:
        return await asyncio.to_thread(self.qemu.recv, 64)

    async def close(self) -> None:
        self.qemu.close()
        self.taker.close()
        await self.stream.end()


async def test_qemu_hears_that_all_has_come_once_it_has() -> None:
    """In pieces, with what looks like an end before it."""
    ends = Ends()
    await asyncio.to_thread(ends.qemu.sendall, b"QEVM}")
    while ends.stream.silent_for == 0:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.001)
    assert not ends.stream.has_ended
    last = end()
    await asyncio.to_thread(ends.qemu.sendall, last[:20])
    await asyncio.to_thread(ends.qemu.sendall, last[20:])
    assert await ends.hears() == SAID
    assert ends.stream.has_ended
    ends.qemu.close()
    await ends.stream.finished()
    assert await asyncio.to_thread(ends.taker.recv, 4096) == b"QEVM}" + last
    assert await asyncio.to_thread(ends.taker.recv, 1) == b""
    await ends.close()


async def test_one_that_does_not_listen_has_sent_all_the_same() -> None:
    """What it has not read breaks the connection as it closes it."""
    ends = Ends()
    await asyncio.to_thread(ends.qemu.sendall, end())
    while not ends.stream.has_ended:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.001)
    ends.qemu.close()
    await ends.stream.finished()
    await ends.close()


async def test_what_takes_no_more_is_heard_of_by_qemu() -> None:
    ends = Ends()
    ends.taker.close()

    def send() -> None:
        while True:
            ends.qemu.sendall(b"x" * 4096)

    with pytest.raises(OSError, match="Broken pipe"):
        await asyncio.to_thread(send)
    with pytest.raises(OSError, match="Broken pipe"):
        await ends.stream.finished()
    await ends.close()


async def test_it_is_cut_off_while_nobody_takes_it() -> None:
    """As where storage hangs: QEMU, which waits to send, hears of it at once."""
    ends = Ends()

    def send() -> None:
        while True:
            ends.qemu.sendall(b"x" * 4096)

    sending = asyncio.ensure_future(asyncio.to_thread(send))
    while ends.stream.passed < 1 << 14:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.001)
    ends.stream.cut()
    with pytest.raises(OSError, match="Broken pipe"):
        await asyncio.wait_for(sending, 5)
    await ends.close()


async def test_an_end_that_comes_byte_by_byte_is_one() -> None:
    """More writes than a pipe has room for: it is seen all the same."""
    ends = Ends()
    text = end(padded(6000))

    def send() -> None:
        for at in range(len(text)):
            ends.qemu.sendall(text[at : at + 1])

    taking = asyncio.ensure_future(asyncio.to_thread(_taken, ends.taker))
    await asyncio.to_thread(ends.qemu.sendall, b"x" * (3 << 20))
    await asyncio.to_thread(send)
    assert await ends.hears() == SAID
    ends.qemu.close()
    await ends.stream.finished()
    size, digest = await taking
    assert size == (3 << 20) + len(text)
    assert digest == hashlib.sha256(b"x" * (3 << 20) + text).hexdigest()
    await ends.close()


@pytest.mark.parametrize("length", [40, 60_000, 300_000])
async def test_an_end_after_many_small_writes_is_seen(length: int) -> None:
    """They have filled what keeps the tail, each a page of it."""
    ends = Ends()

    def send() -> None:
        for number in range(5000):
            ends.qemu.sendall(b"%d}" % number)
        ends.qemu.sendall(end(padded(length)))

    taking = asyncio.ensure_future(asyncio.to_thread(_taken, ends.taker))
    await asyncio.to_thread(send)
    assert await ends.hears() == SAID
    ends.qemu.close()
    await ends.stream.finished()
    assert (await taking)[0] == sum(len(b"%d}" % number) for number in range(5000)) + len(
        end(padded(length))
    )
    await ends.close()


async def test_memory_is_no_object_of_pythons() -> None:
    """64 MiB are the same at the other end, and less is allocated than a piece of them."""
    ends = Ends()
    data = os.urandom(1 << 20)
    last = end(padded(30_000))

    def send() -> None:
        for _ in range(64):
            ends.qemu.sendall(data)
        ends.qemu.sendall(last)

    expected = hashlib.sha256(data * 64 + last).hexdigest()
    buffer = bytearray(1 << 18)
    tracemalloc.start()
    try:
        taking = asyncio.ensure_future(asyncio.to_thread(_taken, ends.taker, buffer))
        await asyncio.to_thread(send)
        assert await ends.hears() == SAID
        ends.qemu.close()
        await ends.stream.finished()
        assert await taking == ((64 << 20) + len(last), expected)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400_000  # of which 128 KiB are the end, copied twice
    await ends.close()


def _taken(taker: socket.socket, buffer: bytearray | None = None) -> tuple[int, str]:
    """How much has come, and its digest."""
    buffer = bytearray(1 << 18) if buffer is None else buffer
    size, digest = 0, hashlib.sha256()
    while count := taker.recv_into(buffer):
        size += count
        digest.update(memoryview(buffer)[:count])
    return size, digest.hexdigest()
