"""Once GO may have been said, no failure of the source is told as 'failed'; the rest is a fake."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entourage import messages
from entourage.domain import Domain
from entourage.errors import (
    HypervisorError,
    InDoubt,
    InternalError,
    JournalError,
    MigrationFailed,
)
from entourage.events import AnyEvent, Finished
from entourage.handover.values import Input, Record
from entourage.hosts.route import Route
from entourage.report.ending import ending
from entourage.settings.model import MigrationSettings, Settings
from entourage.source.migration import Migration
from entourage.source.outcome import await_outcome
from entourage.source.request import Request
from tests.unit.report.test_samples import started
from tests.unit.report.test_tables import text_of


class Side:
    """A source's half that fails where it is told to."""

    def __init__(self, at: Any, error: Exception) -> None:
        self.state = SimpleNamespace(record=Record.ARMED)
        self.findings: list[Any] = []
        self.problems: list[str] = []
        self._at, self._error = at, error

    async def take(self, what: Any) -> None:
        if what is self._at or (self._at == "heard" and not isinstance(what, Input)):
            raise self._error


def migration(side: Side) -> tuple[Any, Any, list[AnyEvent]]:
    events: list[AnyEvent] = []
    moving = cast("Any", Migration(Request(domain="web1", route=Route(host="b")), events.append))

    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    noted: list[str] = []
    session = SimpleNamespace(
        kind="move",
        host="a",
        source="a",
        target="b",
        machine=SimpleNamespace(domain=Domain(name="web1", memory=1 << 30)),
        link=SimpleNamespace(alive=True, lost=never),
        note=noted.append,
    )
    moving._session, moving._side = session, side
    return moving, session, events


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (JournalError("/var/lib/entourage/journal.db: disk I/O error"), "disk I/O error"),
        (OSError(28, "No space left on device", "/var/lib/x"), "/var/lib/x: no space left"),
        (ZeroDivisionError("x"), "a bug: ZeroDivisionError: x"),
    ],
)
async def test_the_source_fails_after_the_target_said_that_it_runs(
    error: Exception, said: str
) -> None:
    side = Side("heard", error)
    moving, session, _ = migration(side)

    async def hand_over() -> None:
        await moving._hand_over(session, side)

    async with asyncio.TaskGroup() as group:
        handing = group.create_task(asyncio.wait_for(asyncio.shield(never_raises(hand_over())), 5))
        await asyncio.sleep(0)
        await moving._on_handover(messages.Say("ran", moving.id))
    doubt = handing.result()
    assert isinstance(doubt, InDoubt)
    assert "web1 runs on b, and this host could not act on it" in doubt.message
    assert said in doubt.message
    assert doubt.__cause__ is error or getattr(doubt.__cause__, "__cause__", None) is error
    assert isinstance(doubt.__cause__, InternalError) is isinstance(error, ZeroDivisionError)
    assert "entourage recover web1" in doubt.remedy
    assert moving._runs_there == "b"


async def never_raises(work: Any) -> Any:
    """What it raises, as a value."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001 - looked at by the test
        return error


async def test_a_failure_as_go_is_said_is_in_doubt_unless_the_deadman_has_kept_it() -> None:
    moving, session, _ = migration(side := Side(Input.READY, JournalError("torn")))
    with pytest.raises(InDoubt, match="b was told to run web1, and this host cannot go on: torn"):
        await moving._hand_over(session, side)

    async def back(*_: Any) -> None:
        raise MigrationFailed("went back")

    moving, session, _ = migration(side := Side(Input.READY, HypervisorError("no answer")))
    moving._go_back = back
    with pytest.raises(MigrationFailed):
        await moving._hand_over(session, side)


async def test_an_answer_that_comes_as_time_runs_out_is_an_answer() -> None:
    """As where this process stood still for longer than it was to wait."""
    side = Side(None, KeyError("never"))
    _, session, _ = migration(side)

    async def take(what: Any) -> None:
        assert what is Input.UNREACHABLE  # which waits for what is being done about the answer
        side.state.record = Record.BACK

    side.take = take
    settings = Settings(migration=MigrationSettings(doubt_timeout=0.01))
    told = await await_outcome(session, cast("Any", side), asyncio.Event(), settings)
    assert told is False  # whether the target knows it is found out by `recover`


async def test_what_the_target_could_not_clean_up_is_told() -> None:
    side = Side(None, KeyError("never"))
    side.state.record = Record.BACK
    _, session, _ = migration(side)
    decided = asyncio.Event()

    async def call(_kind: Any, _body: None) -> messages.Farewell:
        return messages.Farewell(settled=True, problems=("on b: a tap is left",))

    async def lost() -> None:
        decided.set()
        await asyncio.get_running_loop().create_future()

    session.link = SimpleNamespace(alive=True, lost=lost, call=call)
    assert await await_outcome(session, cast("Any", side), decided, Settings())
    assert side.problems == ["on b: a tap is left"]


def test_who_runs_it_is_said_where_that_is_known() -> None:
    done = Finished(at=1, outcome="in-doubt", seconds=1, runs_on="b")
    text = text_of(*ending([started(), done]))
    assert "web1 runs on b; a has not recorded it: type `entourage recover web1`" in text
