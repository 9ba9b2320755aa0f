"""Both state machines of xl's handshake, on streams that are cut in every way."""

from __future__ import annotations

from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.xen.constants import BANNER, GO, READY, REPORT, RUNS, RUNS_NOT, Expect
from entourage.hypervisors.xen.receiver import Receiver, Said
from entourage.hypervisors.xen.sender import Do, Happened, Phase, Sender, Tell, ToXl, Word

# What xl's receiver writes when all goes well, and when the domain could not be let run.
WELL = BANNER + READY + REPORT + b"\0"
BADLY = BANNER + READY + REPORT + b"\3" + GO


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_words_are_those_of_xl() -> None:
    # As `strings xl` of Xen 4.17 has them; all but the banner are sent with their NUL.
    assert BANNER == b"xl migration receiver ready, send binary domain data.\n"
    assert READY == b"domain received, ready to unpause\x00"
    assert GO == b"domain is yours, you are cleared to unpause\x00"
    assert REPORT == b"my copy unpause results are as follows\x00"


@pytest.mark.parametrize("size", [1, 2, 7, 38, 39, 1000])
def test_a_receiver_that_succeeds_is_understood_however_it_is_cut(size: int) -> None:
    receiver, heard = Receiver(), list[Said]()
    for piece in pieces(WELL, size):
        heard += receiver.feed(piece)
    assert heard == [Said.BANNER, Said.READY, Said.RUNS]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_receiver_that_refuses_is_understood_however_it_is_cut(size: int) -> None:
    receiver, heard = Receiver(), list[Said]()
    for piece in pieces(BADLY, size):
        heard += receiver.feed(piece)
    assert heard == [Said.BANNER, Said.READY, Said.REFUSED, Said.DESTROYED]


@pytest.mark.parametrize(
    "said", [b"bash: xl: command not found\n", BANNER + b"domain lost", WELL + b"x"]
)
def test_a_receiver_that_says_something_else_is_an_error(said: bytes) -> None:
    with pytest.raises(HypervisorError, match="xl"):
        Receiver().feed(said)


def test_a_report_cut_before_its_last_byte_is_no_report() -> None:
    receiver = Receiver()
    receiver.feed(BANNER + READY + REPORT)
    assert receiver.said is Said.READY


def test_expect_gives_back_what_came_after() -> None:
    expect = Expect(b"abc")
    assert expect.feed(b"a") == b""
    assert expect.feed(b"bcde") == b"de"
    assert expect.complete


def held() -> Sender:
    sender = Sender()
    assert sender.begin() == (ToXl(BANNER), Tell(Word.BEGUN))
    assert sender.hear(Word.HOLD) == (ToXl(READY),)
    return sender


def given() -> Sender:
    sender = held()
    assert sender.xl_said(GO) == (Tell(Word.HELD),)
    return sender


@pytest.mark.parametrize("size", [1, 5, 43])
def test_held_only_once_all_of_go_is_here(size: int) -> None:
    sender = held()
    *first, last = pieces(GO, size)
    assert [sender.xl_said(piece) for piece in first] == [()] * len(first)
    assert sender.xl_said(last) == (Tell(Word.HELD),)
    assert sender.phase is Phase.GIVEN


def test_a_released_domain_is_destroyed_by_xl() -> None:
    assert given().hear(Word.RELEASE) == (ToXl(RUNS), Do.END)


def test_a_domain_that_failed_after_go_is_resumed_by_xl() -> None:
    assert given().hear(Word.FAIL) == (Do.DRAIN, ToXl(RUNS_NOT), Do.END)


def test_a_failure_in_the_stream_drains_before_xl_resumes() -> None:
    sender = Sender()
    sender.begin()
    assert sender.hear(Word.FAIL) == (Do.DRAIN, Do.END)


def test_a_failure_while_xl_renames_waits_for_its_go() -> None:
    sender = held()
    assert sender.hear(Word.FAIL) == ()
    assert sender.xl_said(GO) == (Do.DRAIN, ToXl(RUNS_NOT), Do.END)


def test_a_release_before_go_is_not_heard() -> None:
    sender = Sender()
    sender.begin()
    assert sender.hear(Word.RELEASE) == ()
    assert held().hear(Word.RELEASE) == ()


def test_the_deadman_resumes_until_go_is_given_and_never_after() -> None:
    sender = Sender()
    sender.begin()
    assert sender.happens(Happened.ENGINE_GONE) == (Do.DRAIN, Do.END)
    sender = held()
    assert sender.happens(Happened.ENGINE_GONE) == ()
    assert sender.xl_said(GO)[1] == ToXl(RUNS_NOT)
    assert given().happens(Happened.ENGINE_GONE) == (Do.END,)  # no report: xl leaves it suspended


def test_a_lost_target_ends_the_stream_and_nothing_after_it() -> None:
    sender = Sender()
    sender.begin()
    effects = sender.happens(Happened.STREAM_CLOSED)
    assert Do.END in effects
    assert any(isinstance(each, Tell) and each.word is Word.BROKEN for each in effects)
    assert held().happens(Happened.STREAM_CLOSED) == ()
    assert given().happens(Happened.STREAM_CLOSED) == ()


def test_no_sequence_gives_xl_a_report_before_its_go() -> None:
    """The one mistake that would let two copies run, or none: tried with every order of events."""
    events: list[Any] = [Word.HOLD, Word.RELEASE, Word.FAIL, *Happened, GO]

    def follow(depth: int, trail: list[Any], gone: frozenset[Any]) -> None:
        if depth == 0:
            return
        for event in events:
            if event in gone or (isinstance(event, Word) and Happened.ENGINE_GONE in gone):
                continue
            again = Sender()
            effects: list[Any] = list(again.begin())
            for each in [*trail, event]:
                if isinstance(each, Word):
                    effects += again.hear(each)
                elif isinstance(each, Happened):
                    effects += again.happens(each)
                elif again.phase is Phase.HELD:
                    effects += again.xl_said(each)
            said = [each.data for each in effects if isinstance(each, ToXl)]
            went = [each for each in [*trail, event] if each == GO]
            if RUNS in said or RUNS_NOT in said:
                assert READY in said
                assert went
            if RUNS in said:
                assert Tell(Word.HELD) in effects
            assert said.count(RUNS) + said.count(RUNS_NOT) <= 1
            once = frozenset({event}) if isinstance(event, Happened) else frozenset[Any]()
            follow(depth - 1, [*trail, event], gone | once)

    follow(4, [], frozenset())
