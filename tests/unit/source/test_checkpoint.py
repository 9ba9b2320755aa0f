"""The end of a checkpoint: its guest goes on whatever becomes of what was saved."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entourage import messages
from entourage.devices.base import Options
from entourage.errors import GuestEnded, HypervisorError, Interrupted, MigrationFailed
from entourage.events import AnyEvent, Warned
from entourage.handover.values import Input
from entourage.source.checkpoint import Keeping, keep
from tests.unit.source.test_going_back import Side, session


def asked(answer: Any) -> tuple[Any, list[Any]]:
    """A session whose target answers PUBLISH so, and what it was asked for."""
    opened: Any = session()
    opened.machine.mirroring = None
    heard: list[Any] = []
    called_off = asyncio.Event()

    async def call(kind: Any, _body: None) -> Any:
        heard.append(kind)
        if kind is messages.ABORT:
            called_off.set()
            return list[str]()
        if answer in {"called off", "done all the same"}:
            await called_off.wait()
        if answer == "called off":
            raise HypervisorError("the migration was called off")
        if isinstance(answer, Exception):
            raise answer
        return answer

    opened.link = SimpleNamespace(call=call, quiet=0.0)
    opened.note = str
    opened.options = Options()
    return opened, heard


def warned(events: Sequence[AnyEvent]) -> list[Warned]:
    return [event for event in events if isinstance(event, Warned)]


class Ended(Side):
    has_ended = True


class Lives(Side):
    has_ended = False


async def test_it_is_kept_and_then_settled() -> None:
    opened, heard = asked(None)
    side = Lives()
    assert await keep(opened, cast("Any", side), Keeping(opened, lambda: "")) == ()
    assert side.taken == [Input.ABORT]
    assert heard == [messages.PUBLISH, messages.ABORT]


@pytest.mark.parametrize("answer", [None, HypervisorError("the disk is full")])
async def test_only_of_one_that_is_kept_it_is_known_what_is_written_after_it(answer: Any) -> None:
    """Also where that cannot be begun, it is kept, and that is told."""
    opened, _ = asked(answer)
    told: list[str] = []
    events: list[AnyEvent] = []
    opened.emit = events.append
    opened.clock = SimpleNamespace(now=lambda: datetime.now(UTC))

    async def kept() -> None:
        told.append("kept")
        raise HypervisorError("QEMU begins no record", device="block/disk0")

    opened.machine.mirroring = SimpleNamespace(kept=kept)
    with contextlib.suppress(MigrationFailed):
        await keep(opened, cast("Any", Lives()), Keeping(opened, lambda: ""))
    assert told == (["kept"] if answer is None else [])
    assert [(one.device, "QEMU begins no record" in one.message) for one in warned(events)] == (
        [("block/disk0", True)] if answer is None else []
    )


async def test_what_cannot_be_kept_is_told_while_its_guest_runs() -> None:
    opened, heard = asked(HypervisorError("the disk is full", remedy="make room"))
    side = Lives()
    with pytest.raises(MigrationFailed, match="the disk is full") as failed:
        await keep(opened, cast("Any", side), Keeping(opened, lambda: ""))
    assert (failed.value.exit_code, failed.value.remedy) == (4, "make room")
    assert side.taken == [Input.ABORT]
    assert heard[-1] is messages.ABORT


async def test_it_can_be_given_up_while_it_is_written_down() -> None:
    opened, heard = asked("called off")
    with pytest.raises(Interrupted, match="given up: Ctrl-C"):
        await keep(opened, cast("Any", Lives()), Keeping(opened, lambda: "Ctrl-C"))
    assert heard[-1] is messages.ABORT


async def test_what_was_as_good_as_done_is_kept_though_it_was_given_up() -> None:
    opened, _ = asked("done all the same")
    keeping = Keeping(opened, lambda: "Ctrl-C")
    assert await keep(opened, cast("Any", Lives()), keeping) == ()
    assert keeping.done


async def test_a_guest_that_has_ended_is_no_checkpoint_that_went_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ended(*_: object) -> GuestEnded:
        return GuestEnded("it is off")

    monkeypatch.setattr("entourage.source.checkpoint.guest_ended", ended)
    opened, _ = asked(None)
    with pytest.raises(GuestEnded):
        await keep(opened, cast("Any", Ended()), Keeping(opened, lambda: ""))


class Watched(Lives):
    """Writes down when it is let run."""

    def __init__(self, done: list[str]) -> None:
        super().__init__()
        self._done = done

    async def take(self, given: Any) -> None:
        self._done.append(given.value)
        await super().take(given)


async def test_its_guest_is_not_let_run_where_it_is_to_stay_paused() -> None:
    opened, _ = asked(None)
    done: list[str] = []
    opened.options = Options(stays_paused=True)
    opened.machine.stay_paused = lambda: done.append("stays paused")
    await keep(opened, cast("Any", Watched(done)), Keeping(opened, str))
    assert done == ["stays paused", Input.ABORT.value]


async def test_where_it_is_not_kept_its_guest_goes_on_all_the_same() -> None:
    opened, _ = asked(HypervisorError("the disk is full"))
    done: list[str] = []
    opened.options = Options(stays_paused=True)
    opened.machine.stay_paused = lambda: done.append("stays paused")
    with pytest.raises(MigrationFailed, match="the disk is full"):
        await keep(opened, cast("Any", Watched(done)), Keeping(opened, str))
    assert done == [Input.ABORT.value]


async def test_what_is_of_two_moments_is_not_kept() -> None:
    """Somebody has let the guest run while an external tool still worked on its devices."""
    opened, heard = asked(None)

    async def check_stood_still(until: int) -> None:
        assert until == opened.synced_at
        raise HypervisorError("it has not stood still")

    opened.machine.check_stood_still = check_stood_still
    with pytest.raises(MigrationFailed, match="it has not stood still"):
        await keep(opened, cast("Any", Lives()), Keeping(opened, str))
    assert messages.PUBLISH not in heard
