"""A way back that fails in the middle: what is told then, and what is tried once more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entourage import messages
from entourage.clock import Clock
from entourage.domain import Domain
from entourage.errors import EntourageError, HypervisorError, InDoubt, InternalError, JournalError
from entourage.events import AnyEvent
from entourage.handover.values import Finding, Guest, Heard, Input, Record
from entourage.hosts.route import Route
from entourage.source import abort
from entourage.source.abort import come_back
from entourage.source.migration import Migration
from entourage.source.request import Request
from entourage.source.session import FailuresThere


class Side:
    """A fake source: each ``take`` meets one of these errors, or none."""

    def __init__(self, *errors: Exception, live: bool = True, runs: bool = False) -> None:
        self.state = SimpleNamespace(record=Record.ARMED, live=live, guest=Guest.STOPPED)
        self.findings: list[Finding] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.runs_again = runs
        self.taken: list[Any] = []
        self._errors = list(errors)

    async def take(self, given: Any) -> None:
        self.taken.append(given)
        if self._errors:
            raise self._errors.pop(0)
        self.findings.append(Finding.CAME_BACK)

    async def idle(self) -> None:
        pass


def session() -> Any:
    async def call(_kind: Any, _body: None) -> list[str]:
        await asyncio.sleep(0)
        return ["on b: a tap is left"]

    async def check_stood_still(_until: int) -> None:
        """It has."""

    async def go_on() -> None:
        """It does already."""

    return SimpleNamespace(
        source="a",
        synced_at=7,
        host="a",
        kind="move",
        hypervisor="qemu",
        target="b",
        keeper="b",
        machine=SimpleNamespace(
            domain=Domain(name="web1", memory=1 << 30),
            check_stood_still=check_stood_still,
            go_on=go_on,
        ),
        welcome=SimpleNamespace(protocol=messages.NEWEST),
        link=SimpleNamespace(call=call, quiet=0.0),
        failures_there=FailuresThere(),
    )


async def back(side: Side) -> list[str]:
    return await come_back(session(), cast("Any", side), hurries=lambda: False)


async def test_a_hypervisor_that_refuses_once_is_asked_again() -> None:
    side = Side(HypervisorError("busy"))
    assert await back(side) == ["on b: a tap is left"]
    assert side.taken == [Input.ABORT] * 2


@pytest.mark.parametrize(
    ("error", "said"),
    [(HypervisorError("QEMU refuses cont"), "QEMU refuses cont"), (KeyError("x"), "a bug: KeyE")],
)
async def test_a_guest_that_cannot_be_let_run_is_no_rollback(error: Exception, said: str) -> None:
    with pytest.raises(InDoubt, match=said) as doubt:
        await back(Side(error, error))
    assert "web1 may stand still on a" in doubt.value.message
    assert "b was not told to run it" in doubt.value.message
    assert "`entourage recover web1` on a" in doubt.value.remedy
    ours = isinstance(error, EntourageError)
    assert (
        doubt.value.__cause__ is error if ours else isinstance(doubt.value.__cause__, InternalError)
    )


async def test_one_that_runs_again_and_is_not_written_down_is_rolled_back() -> None:
    side = Side(JournalError("no space left"), live=False, runs=True)
    problems = await back(side)
    assert side.taken == [Input.ABORT]  # it was in the journal's hands, and is not repeated blindly
    assert problems[0] == "on b: a tap is left"
    assert "a cannot finish going back: no space left" in problems[1]
    assert "`entourage recover web1` on a" in problems[1]


@pytest.mark.parametrize(
    ("kind", "fails", "told"),
    [
        ("move", None, None),
        ("save", None, ""),
        ("save", HypervisorError("QEMU refuses cont"), "is not known: QEMU refuses cont"),
        ("save", KeyError("x"), "is not known: 'x'"),
    ],
)
@pytest.mark.parametrize("hurries", [False, True])  # Ctrl-C is no reason to leave it as it is
async def test_a_guest_that_full_storage_has_stopped_goes_on_after_a_save(
    kind: str, fails: Exception | None, told: str | None, *, hurries: bool
) -> None:
    asked: list[str] = []

    async def go_on() -> None:
        asked.append("goes on")
        if fails is not None:
            raise fails

    opened = session()
    opened.kind, opened.machine.go_on, opened.clock = kind, go_on, Clock()
    problems = await abort.go_on(opened, hurries=lambda: hurries)
    assert asked == ([] if told is None else ["goes on"])
    assert [told in problem for problem in problems if told] == ([True] if told else [])
    assert bool(problems) == bool(told)


@pytest.mark.parametrize("hurries", [False, True])
async def test_a_hypervisor_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    hurries: bool,  # noqa: FBT001 - a case
) -> None:
    monkeypatch.setattr(abort, "_LOOK_AGAIN", 0.001)
    monkeypatch.setattr(abort, "GOES_ON_WITHIN", 1000 if hurries else 0.01)
    monkeypatch.setattr(abort, "SILENT", 0.01 if hurries else 1000)

    async def go_on() -> None:
        await asyncio.get_running_loop().create_future()

    opened = session()
    opened.kind, opened.machine.go_on, opened.clock = "save", go_on, Clock()
    [problem] = await abort.go_on(opened, hurries=lambda: hurries)
    assert "web1 stands still for want of room is not known" in problem
    assert "(if it does: say `cont` to the QEMU of web1" in problem


@pytest.mark.parametrize("hurries", [False, True])
async def test_what_was_sent_is_looked_at_unless_somebody_waits_for_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
    hurries: bool,  # noqa: FBT001 - a case
) -> None:
    monkeypatch.setattr(abort, "_LOOK_AGAIN", 0.001)
    opened, noted, known = session(), list[str](), asyncio.Event()
    fault = HypervisorError("memory is damaged")
    asked: list[asyncio.Task[Any] | None] = []

    async def look() -> HypervisorError:
        asked.append(asyncio.current_task())
        await known.wait()
        return fault

    def note(text: str) -> None:
        noted.append(text)
        if not hurries:
            known.set()

    opened.machine.at_fault, opened.note = look, note
    found = await abort.at_fault(opened, hurries=lambda: hurries and bool(noted))
    assert found is (None if hurries else fault)
    assert noted == ["looking whether what was sent is damaged"]
    [asking] = asked
    assert asking is not None
    await asyncio.gather(asking, return_exceptions=True)  # it is not left
    assert asking.cancelled() is hurries


async def test_nobody_who_waits_for_the_prompt_is_told_of_it() -> None:
    """They have given it up, and are told that."""
    opened = session()
    assert await abort.at_fault(opened, hurries=lambda: True) is None


async def test_what_fails_as_it_is_looked_at_leaves_nothing_as_it_is() -> None:
    async def look() -> HypervisorError:
        raise KeyError("x")

    opened = session()
    opened.machine.at_fault = look
    assert await abort.at_fault(opened, hurries=lambda: False) is None


async def test_a_second_try_that_does_nothing_does_not_hide_the_first() -> None:
    """As where the target's NEVER was acted on between them, and failed as well."""
    side = Side(HypervisorError("QEMU refuses cont"))
    first = side.take

    async def take(given: Any) -> None:
        if not side.taken:
            await first(given)

    side.take = take
    with pytest.raises(InDoubt, match="QEMU refuses cont"):
        await back(side)


async def test_a_target_that_gives_up_ends_the_story_and_not_the_devices_beside_it() -> None:
    """The devices are put back once their steps have ended, never while they go on."""
    events: list[AnyEvent] = []
    moving = cast("Any", Migration(Request(domain="web1", route=Route(host="b")), events.append))
    side, opened = Side(), session()
    moving._session, moving._side = opened, side
    await moving._on_handover(messages.Say("never", moving.id))
    assert side.taken == []
    with pytest.raises(HypervisorError, match="b has given the migration up"):
        await opened.failures_there.first()
    side.state.live = False  # GO may have been said: now it is the answer
    await moving._on_handover(messages.Say("never", moving.id))
    assert [type(one) for one in side.taken] == [Heard]


@pytest.mark.parametrize(
    ("record", "live", "goes_back"),
    [
        (None, False, True),
        (Record.ARMED, True, True),
        (Record.ARMED, False, False),
        (Record.GONE, False, False),
        (Record.BACK, False, True),
    ],
)
async def test_ctrl_c_is_told_to_go_back_unless_the_hand_over_has_begun(
    record: Record | None,
    live: bool,  # noqa: FBT001 - columns of the table above
    goes_back: bool,  # noqa: FBT001
) -> None:
    """Also where it has gone back by itself already, and waits for the target to clean up."""
    migration: Any = Migration(Request(domain="web1", route=Route(host="b")), lambda _event: None)
    migration._side = Side(live=live)
    migration._side.state.record = record
    assert migration.interrupt("interrupted with Ctrl-C") is goes_back
