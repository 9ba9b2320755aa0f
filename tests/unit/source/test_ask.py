"""Whether a target knows what was decided, and what `recover` does where it may not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entourage import messages
from entourage.errors import EntourageError, HypervisorError, LinkLost
from entourage.handover.values import (
    AnyInput,
    Connected,
    Finding,
    Message,
    MessageKind,
    Record,
    Role,
)
from entourage.hosts.frames import Notice
from entourage.journal.journal import Decision, Journal
from entourage.messages import Farewell, Say, Welcome
from entourage.recovery import findings_told
from entourage.settings.model import Settings
from entourage.source import ask
from entourage.source.ask import TargetQuery, declare_fenced, is_untold, note_told, tell
from tests.unit.decisions import ARMED


@pytest.fixture
def journal(tmp_path: Path) -> Generator[Journal]:
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.begin(ARMED)
        yield journal


def decided(journal: Journal, record: Record) -> Decision:
    assert journal.advance("m-1", Role.SOURCE, expected={Record.ARMED}, new=record)
    journal.clean("m-1", Role.SOURCE)
    return known(journal)


def known(journal: Journal) -> Decision:
    decision = journal.decision("m-1", Role.SOURCE)
    assert decision is not None
    return decision


def test_who_let_go_tells_it_until_it_is_heard(journal: Journal) -> None:
    assert not is_untold(known(journal))
    assert is_untold(decided(journal, Record.GONE))
    note_told(journal, "m-1")
    assert not is_untold(known(journal))


def test_who_came_back_by_the_target_s_own_word_need_not_tell_it(journal: Journal) -> None:
    assert not is_untold(decided(journal, Record.BACK))


def test_who_came_back_by_the_user_s_word_tells_it(journal: Journal) -> None:
    declare_fenced(journal, known(journal))
    assert not is_untold(known(journal))
    assert is_untold(decided(journal, Record.BACK))


def test_a_target_owes_nothing(journal: Journal) -> None:
    assert not is_untold(replace(ARMED, role=Role.TARGET, record=Record.OWNS))


@pytest.mark.parametrize(
    ("last", "said", "untold"),
    [
        (Farewell(settled=True), "", False),
        (Farewell(settled=True, problems=("ALARM",)), "ALARM", False),
        (Farewell(settled=False), "b still works on it", True),
        (None, "b has another journal", True),
        (LinkLost("no route"), "b cannot be told yet: no route", True),
        (TimeoutError(), "b cannot be told yet (there was no answer in time)", True),
    ],
)
def test_what_is_told_is_noted_only_once_it_is_settled_there(
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    last: Farewell | LinkLost | TimeoutError | None,
    said: str,
    untold: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    async def talk(_query: TargetQuery, _take: object) -> Farewell | None:
        if isinstance(last, Exception):
            raise last
        return last

    monkeypatch.setattr(TargetQuery, "talk", talk)
    monkeypatch.setattr(ask, "_ACTS_WITHIN", 0)
    decision = decided(journal, Record.GONE)
    problems = asyncio.run(tell(journal, Settings(), decision, set()))
    assert said in "".join(problems)
    assert bool(problems) is bool(said)
    assert is_untold(known(journal)) is untold


def test_a_target_that_is_still_at_it_is_asked_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Farewell(settled=False, problems=("wait",)), Farewell(settled=True)]

    async def talk(_query: TargetQuery, _take: object) -> Farewell:
        return answers.pop(0)

    monkeypatch.setattr(TargetQuery, "talk", talk)
    monkeypatch.setattr(ask, "_AGAIN", 0)
    assert asyncio.run(tell(journal, Settings(), decided(journal, Record.GONE), set())) == []
    assert not is_untold(known(journal))


def test_a_target_that_is_then_gone_has_said_what_it_said(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Farewell(settled=False, problems=("the disk is full",))]

    async def talk(_query: TargetQuery, _take: object) -> Farewell:
        if not answers:
            raise LinkLost("no route")
        return answers.pop(0)

    monkeypatch.setattr(TargetQuery, "talk", talk)
    monkeypatch.setattr(ask, "_AGAIN", 0)
    problems = asyncio.run(tell(journal, Settings(), decided(journal, Record.GONE), set()))
    assert problems == ["b still works on it: try again in a while", "the disk is full"]


def test_that_go_stood_is_not_told_of_what_is_settled() -> None:
    stood, handed = Finding.GO_STANDS, Finding.HANDED_OVER
    assert findings_told([stood, stood]) == (stood.value,)
    assert findings_told([stood, stood, handed]) == (handed.value,)


class Answers:
    """A fake of a link to a target that says RAN, and is then settled."""

    def __init__(self) -> None:
        self._handler: Callable[[Say], Awaitable[None]] | None = None
        self._acting: asyncio.Task[None] | None = None

    def on(self, kind: Notice[Any], handler: Callable[[Any], Awaitable[None]]) -> None:
        if kind is messages.HANDOVER:
            self._handler = handler

    def tell(self, _kind: Notice[Say], said: Say) -> None:
        assert self._handler is not None
        ran = Say(MessageKind.RAN.value, said.migration)
        self._acting = asyncio.ensure_future(self._handler(ran))

    async def settle(self) -> None:
        assert self._acting is not None
        await self._acting

    async def lost(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def call(self, _kind: object, _body: None) -> Farewell:
        told = asyncio.Event()  # a program in the guest is told that it has moved
        asyncio.get_running_loop().call_later(1, told.set)
        await told.wait()
        return Farewell(settled=True)


@pytest.fixture
def query(monkeypatch: pytest.MonkeyPatch) -> TargetQuery:
    """Asks a target that answers at once."""
    link = Answers()

    @contextlib.asynccontextmanager
    async def linked(*_: object) -> AsyncGenerator[Answers]:
        yield link

    async def welcomed(*_: object) -> Welcome:
        return Welcome(version="1", protocol=4, host="b", journal="T", address="", clock=0)

    monkeypatch.setattr(ask, "agent_link", linked)
    monkeypatch.setattr(ask, "greet", welcomed)
    return TargetQuery(Settings(), ARMED)


async def test_what_this_host_does_about_the_answer_may_take_its_time(
    query: TargetQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a machine with a terabyte of memory; and so may what the target does then."""
    monkeypatch.setattr(ask, "_ANSWER_WITHIN", 0.5)
    ended = asyncio.Event()

    async def take(given: AnyInput) -> None:
        if isinstance(given, Connected):
            query.send(Message(MessageKind.ASK, "m-1"))
        else:
            asyncio.get_running_loop().call_later(1, ended.set)
            await ended.wait()

    assert await query.talk(take) == Farewell(settled=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [(HypervisorError("QEMU said no"), "QEMU said no"), (KeyError("x"), "a bug: KeyError")],
)
async def test_what_this_host_could_not_do_about_the_answer_is_told(
    query: TargetQuery, error: Exception, said: str
) -> None:
    """The record may say BACK by then, and the guest stand still."""

    async def take(given: AnyInput) -> None:
        if not isinstance(given, Connected):
            raise error
        query.send(Message(MessageKind.ASK, "m-1"))

    with pytest.raises(EntourageError, match=said):
        await query.talk(take)


async def test_a_host_that_did_not_answer_is_not_asked_again_in_the_same_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each question to a host that hangs takes minutes, and there may be many domains."""
    asked: list[str] = []

    def linked(host: str, *_: object) -> object:
        asked.append(host)
        raise LinkLost("nothing was heard for 120.0 s")

    async def take(_given: AnyInput) -> None:
        pytest.fail("it did not answer")

    monkeypatch.setattr(ask, "agent_link", linked)
    silent = set[ask.Way]()
    for _ in range(2):
        with pytest.raises(LinkLost):
            await TargetQuery(Settings(), ARMED, silent).settle(take)
    assert asked == ["b"]
