"""Where a stream of xl's ends is found by its records alone, however they are made up."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as some

from entourage.errors import HypervisorError
from entourage.hypervisors.xen import header
from entourage.hypervisors.xen.records import pass_on
from tests.unit.hypervisors.xen.stream import record, stream

_KINDS = some.integers(min_value=2, max_value=0x8000_0000 + 20)
_BODIES = some.binary(max_size=40)
RECORDS = some.lists(some.tuples(_KINDS, _BODIES), max_size=5)
"""Also such as later versions have: only END and LIBXC_CONTEXT mean anything here."""


class Bytes:
    """A stream in memory, and what was passed on of it."""

    def __init__(self, data: bytes) -> None:
        self._rest = data
        self.passed = b""

    def read(self, count: int) -> bytes:
        found, self._rest = self._rest[:count], self._rest[count:]
        self.passed += found
        if len(found) < count:
            raise EOFError
        return found

    def move(self, count: int) -> None:
        self.read(count)


@given(RECORDS, RECORDS, some.binary(max_size=20))
def test_all_of_it_is_passed_on_and_nothing_after_it(
    memory: Sequence[tuple[int, bytes]], more: Sequence[tuple[int, bytes]], after: bytes
) -> None:
    whole = stream(memory, more)
    way = Bytes(whole + after)
    pass_on(way)
    assert way.passed == whole


@given(some.data())
def test_one_that_ends_early_has_not_ended(data: some.DataObject) -> None:
    whole = stream([(1, bytes(16))], [(2, b"x")])
    cut = data.draw(some.integers(min_value=header.SIZE, max_value=len(whole) - 1))
    with pytest.raises(EOFError):
        pass_on(Bytes(whole[:cut]))


@pytest.mark.parametrize("at", ["libxl", "libxc"])
def test_another_form_is_refused(at: str) -> None:
    whole = stream([], [])
    mark = {"libxl": b"LibxlFmt\0\0\0\2", "libxc": struct.pack(">II", 0x58454E46, 3)}[at]
    assert whole.count(mark) == 1
    with pytest.raises(HypervisorError, match=f"{at}'s stream"):
        pass_on(Bytes(whole.replace(mark, mark[:-1] + b"\x09")))


def test_a_record_of_a_length_that_cannot_be_is_refused() -> None:
    whole = stream([], [(2, b"x")])
    mark = record(2, b"x")[:8]
    with pytest.raises(HypervisorError, match="4294967295 bytes"):
        pass_on(Bytes(whole.replace(mark, struct.pack("<II", 2, 0xFFFFFFFF))))
