"""Hanging up on a target that is silent while the copies of the disks are connected."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from entourage.domain import Block
from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import silence
from entourage.hypervisors.libvirt.job import Job
from entourage.hypervisors.libvirt.silence import fallen_silent

DISK = Block(id="vda", path="/srv/web1.img")


class FakeCalls:
    """Connections of QEMU's: what is asked of them, and what there is to hang up."""

    def __init__(self, found: Callable[[bool], int]) -> None:
        self.asked: list[bool] = []
        self._found = found

    def hang_up_on_silence(self, _patience: float, *, held_up: bool, **_: Any) -> int:
        self.asked.append(held_up)
        return self._found(held_up)


class FakeDomain:
    """A fake of ``virDomain`` whose QEMU answers only when it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()

    def blockJobInfo(self, _name: str, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's
        self.may_answer.wait(10)
        return {"cur": 1, "end": 2}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(silence, "_LOOK_EVERY", 0.001)
    monkeypatch.setattr(silence, "_SILENT_AFTER", 0.02)
    job = Job()
    job.host = "b"
    job.disks.carry(DISK, top_only=False)
    return job


def use(job: Job, found: Callable[[bool], int]) -> FakeCalls:
    calls = FakeCalls(found)
    job.calls = calls  # type: ignore[assignment]
    return calls


async def test_who_is_not_taken_is_hung_up_on(job: Job) -> None:
    use(job, lambda _held_up: 1)
    with pytest.raises(HypervisorError, match="b fell silent") as caught:
        await asyncio.wait_for(fallen_silent(job), 5)
    assert "filters the way" in caught.value.remedy


async def test_who_waits_for_a_greeting_is_hung_up_on_once_qemu_does_not_answer(job: Job) -> None:
    calls = use(job, int)
    raw: Any = FakeDomain()
    handle: Any = type("Handle", (), {"raw": raw})()
    watching = asyncio.ensure_future(fallen_silent(job))
    await asyncio.wait({watching}, timeout=0.05)
    assert not watching.done()
    assert not any(calls.asked)
    looking = asyncio.ensure_future(job.disks.look(handle))
    try:
        with pytest.raises(HypervisorError):
            await asyncio.wait_for(watching, 5)
    finally:
        raw.may_answer.set()
        await looking


async def test_once_the_copies_are_under_way_it_is_the_links_to_say_so(job: Job) -> None:
    calls = use(job, lambda _held_up: 0)
    raw: Any = FakeDomain()
    raw.may_answer.set()
    handle: Any = type("Handle", (), {"raw": raw})()
    await job.disks.look(handle)
    assert job.disks.under_way
    watching = asyncio.ensure_future(fallen_silent(job))
    await asyncio.wait({watching}, timeout=0.05)
    assert not watching.done()
    assert calls.asked == []
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
