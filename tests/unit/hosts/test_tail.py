"""The kernel keeps the end of what goes through a pipe."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from entourage.hosts import tail as module
from entourage.hosts.tail import PIPE, Pipe, Tail

KEPT = 256 << 10


def passed(pipe: Pipe, tail: Tail, data: bytes) -> None:
    """Write into a pipe, have the tail take it, and see that the same comes out."""
    os.write(pipe.inward, data)
    left = len(data)
    while left:
        taken = tail.take(pipe, left)
        assert taken > 0
        assert os.read(pipe.out, taken) == data[len(data) - left :][:taken]
        left -= taken


def test_what_is_looked_at_is_kept() -> None:
    with closing(Pipe(PIPE)) as pipe, closing(Tail()) as tail:
        assert tail.last(1) == b""
        passed(pipe, tail, b"0123456789")
        for _ in range(2):
            assert tail.last(1) == b"9"
            assert tail.last(4) == b"6789"
            assert tail.last(100) == b"0123456789"
        passed(pipe, tail, b"ab")
        assert tail.last(4) == b"89ab"


@pytest.mark.parametrize(
    ("size", "count"), [(1, 2000), (100, 6000), (4095, 600), (4097, 600), (200_000, 20)]
)
def test_so_much_is_kept_whatever_it_came_in(size: int, count: int) -> None:
    """A piece has a page of the pipe's at least; there are more pieces than pages."""
    pieces = [os.urandom(size) for _ in range(count)]
    with closing(Pipe(PIPE)) as pipe, closing(Tail()) as tail:
        for piece in pieces:
            passed(pipe, tail, piece)
        kept = tail.last(1 << 30)
        whole = b"".join(pieces)
        assert len(kept) >= min(KEPT, len(whole))
        assert len(kept) <= PIPE
        assert whole.endswith(kept)
        assert whole.endswith(tail.last(KEPT))


def test_one_that_would_keep_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a user has as many pages in pipes as he may; nothing stays open."""
    monkeypatch.setattr(module, "PIPE", 8192)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=r"fs\.pipe-max-size"):
        Tail()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
