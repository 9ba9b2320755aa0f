"""Mutation of inputs: what is nearly right finds more than what is random."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

_LONGEST = 1 << 16
_WORD = re.compile(rb"[A-Za-z0-9_.:/-]+")
_STRANGE = (
    *(b"", b"\0", b"\xff\xfe", b"\xc3\x28", b"\r", b"\n\n", b"\t", b"'", b'"', b"\\", b"\x1b[2J"),
    *(b"0", b"-1", b"1e999", b"nan", b"9" * 30, b"0x" + b"f" * 40, b"18446744073709551616"),
    *(b"true", b"null", b"None", b"[]", b"{}", b"()", b"<a>", b"]]>", b"<!--", b"&lt;", b"&x;"),
    *(b"../../etc/shadow", b"/" * 300, b"%s%n", b"$(id)", b"--help", b"; rm", b"\xe2\x80\xae"),
    *(b"[" * 5000, b"(" * 5000, b"{" * 5000, b"a" * 70000, b"<x>" * 3000),
)


class Mutator:
    """Makes new inputs of known ones; the same seed makes the same.

    Args:
        seed: Of the random numbers.
        examples: Inputs that are right, at least one.
    """

    def __init__(self, seed: str, examples: Sequence[bytes]) -> None:
        self._random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self._examples = examples
        self._words = sorted({word for text in examples for word in _WORD.findall(text)})
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            self._flip, self._cut, self._double, self._splice, self._strange, self._swap_word,
            self._swap_word, self._number,
        )  # fmt: skip

    def next(self) -> bytes:
        """One more input: an example, changed at one to six places."""
        data = self._random.choice(self._examples)
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 6))):
            data = self._random.choice(self._ways)(data)[:_LONGEST]
        return data

    def _place(self, data: bytes) -> int:
        return self._random.randrange(len(data) + 1)

    def _span(self, data: bytes) -> tuple[int, int]:
        start = self._place(data)
        return start, start + self._random.choice((1, 2, 8, 40, 400))

    def _flip(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + bytes([self._random.randrange(256)]) + data[at + 1 :]

    def _cut(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _double(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:end] + data[start:]

    def _splice(self, data: bytes) -> bytes:
        other = self._random.choice(self._examples)
        start, end = self._span(other)
        at = self._place(data)
        return data[:at] + other[start:end] + data[at:]

    def _strange(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + self._random.choice(_STRANGE) + data[at:]

    def _swap_word(self, data: bytes) -> bytes:
        """Put another word, or something strange, in the place of a word."""
        if not (found := list(_WORD.finditer(data))):
            return self._strange(data)
        word = self._random.choice(found)
        pool = self._words if self._words and self._random.random() < 0.5 else _STRANGE
        return data[: word.start()] + self._random.choice(pool) + data[word.end() :]

    def _number(self, data: bytes) -> bytes:
        if not (found := list(re.finditer(rb"[0-9]+", data))):
            return self._flip(data)
        number = self._random.choice(found)
        new = self._random.choice((b"0", b"1", b"-1", b"65536", b"4294967296", b"9" * 25, b"1.5"))
        return data[: number.start()] + new + data[number.end() :]
