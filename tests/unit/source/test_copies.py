from __future__ import annotations

import pytest

from entourage.events import AnyEvent, CopyProgress
from entourage.source.copies import Copies

MIB = 1 << 20


class Watch:
    """Copies whose events and notes are kept."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.notes: list[str] = []
        self.copies = Copies(self.events.append, self.notes.append)

    def disk(self, at: float, done: int, what: str = "block/disk0") -> CopyProgress:
        self.copies.seen(CopyProgress(at=at, what=what, done=done, total=1000 * MIB))
        last = self.events[-1]
        assert isinstance(last, CopyProgress)
        return last


def test_a_disk_has_a_rate_and_an_estimate() -> None:
    watch = Watch()
    assert watch.disk(0, 0).eta is None
    assert watch.disk(0.5, 50 * MIB).rate == 0  # too early to say
    seen = watch.disk(2, 200 * MIB)
    assert seen.rate == 100 * MIB
    assert seen.eta == 8
    assert watch.notes[-1] == "copying block/disk0, 20 %, 100 MiB/s, 8 s left"
    assert watch.disk(10, 1000 * MIB).eta == 0
    assert watch.notes[-1] == "the disks are the same"


def test_the_estimate_does_not_jump_for_a_moment_of_nothing() -> None:
    watch = Watch()
    for at in range(9):
        watch.disk(at, at * 10 * MIB)
    before, after = watch.disk(9, 90 * MIB).eta, watch.disk(10, 90 * MIB).eta
    assert before is not None
    assert after is not None
    assert after == pytest.approx(before, rel=0.15)


def test_what_hardly_moves_has_no_estimate() -> None:
    watch = Watch()
    watch.disk(0, 0)
    assert watch.disk(2, 2048).eta is None


def test_disks_at_once_are_told_together() -> None:
    watch = Watch()
    for at in (0, 2):
        watch.disk(at, at * 100 * MIB)
        watch.disk(at, at * 50 * MIB, "block/disk1")
    assert watch.notes[-1] == "copying block/disk0, block/disk1, 15 %, 150 MiB/s, 18 s left"


def test_memory_that_the_guest_writes_to_as_fast_has_no_end() -> None:
    watch = Watch()
    watch.disk(4, 10 * MIB)
    for at in (5, 7):
        memory = CopyProgress(
            at=at, what="memory", done=600 * MIB, total=1000 * MIB, sent=900 * MIB,
            rate=100.0 * MIB, dirty_rate=120.0 * MIB, iteration=3,
        )  # fmt: skip
        watch.copies.seen(memory)
        assert watch.events[-1] == memory
    assert watch.notes[-1] == "copying memory, round 3, 60 %, 100 MiB/s"


def test_memory_that_gets_less_has_an_end() -> None:
    watch = Watch()
    for at, done in ((5, 600), (7, 700)):
        watch.copies.seen(
            CopyProgress(
                at=at,
                what="memory",
                done=done * MIB,
                total=1000 * MIB,
                rate=100.0 * MIB,
                dirty_rate=50.0 * MIB,
                iteration=2,
            )
        )
    assert watch.notes[-1] == "copying memory, round 2, 70 %, 100 MiB/s, 6 s left"
