"""libvirt as the toolstack of attended migrations, with a stand-in for libvirtd that can be killed.

No libvirt is needed: what is called is Python's.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.attended.toolstack import Shown
from entourage.hypervisors.libvirt import toolstack as module
from entourage.hypervisors.libvirt.connection import LostError, RefusedError
from entourage.hypervisors.libvirt.constants import NO_DOMAIN, State
from entourage.hypervisors.libvirt.events import Feed
from entourage.hypervisors.libvirt.toolstack import LibvirtToolstack, LibvirtWatch

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
SECOND = 1_000_000_000


@dataclass
class Libvirtd:
    """A stand-in: one domain; each restart ends what was connected before."""

    started: int = 1
    runs: bool = True
    state: tuple[int, int] = (State.RUNNING, 1)
    job: tuple[int, ...] = (0,) * 12
    absent: bool = False
    opened: list[int] = field(default_factory=list[int])

    async def connect(self, _uri: str) -> Raw:
        if not self.runs:
            raise LostError("nobody listens")
        self.opened.append(self.started)
        return Raw(self, self.started)


class Raw:
    """A connection of that libvirtd, and its domain."""

    def __init__(self, libvirtd: Libvirtd, started: int) -> None:
        self.raw = self
        self._libvirtd = libvirtd
        self._started = started

    def _answers(self) -> Libvirtd:
        if not self._libvirtd.runs or self._started != self._libvirtd.started:
            raise LostError("Cannot recv data: Connection reset by peer")
        return self._libvirtd

    def lookupByUUIDString(self, _uuid: str) -> Raw:  # noqa: N802 - libvirt's
        if self._answers().absent:
            raise RefusedError("no such domain", NO_DOMAIN)
        return self

    def state(self, _flags: int) -> tuple[int, int]:
        return self._answers().state

    def jobInfo(self) -> tuple[int, ...]:  # noqa: N802 - libvirt's
        return self._answers().job

    def listAllDomains(self, _flags: int) -> list[Raw]:  # noqa: N802 - libvirt's
        self._answers()
        return [self]

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's
        return UUID

    async def close(self) -> None:
        pass


@pytest.fixture
def libvirtd(monkeypatch: pytest.MonkeyPatch) -> Libvirtd:
    one = Libvirtd()

    class StandIn:
        open = one.connect

    monkeypatch.setattr(module, "Connection", StandIn)
    return one


@pytest.mark.parametrize("question", ["running", "shown"])
async def test_a_libvirtd_that_was_restarted_is_asked_again(
    libvirtd: Libvirtd, question: str
) -> None:
    """The connection that there was is dead; the first question after that finds it out."""
    stack = LibvirtToolstack("qemu:///system")

    async def ask() -> Any:
        return await (stack.running() if question == "running" else stack.shown(UUID))

    before = await ask()
    libvirtd.started = 2
    assert await ask() == before
    assert await ask() == before
    assert libvirtd.opened == [1, 2]


async def test_one_that_stays_away_is_told(libvirtd: Libvirtd) -> None:
    stack = LibvirtToolstack("qemu:///system")
    await stack.running()
    libvirtd.runs = False
    for _ in range(2):
        with pytest.raises(HypervisorError):
            await stack.running()
    libvirtd.runs, libvirtd.started = True, 2
    assert await stack.running() == [UUID]


async def test_a_job_is_asked_for_of_the_new_one(libvirtd: Libvirtd) -> None:
    """Not twice: while QEMU waits for us the answer may take long."""
    stack = LibvirtToolstack("qemu:///system")
    assert not await stack.migrates(UUID)
    libvirtd.started, libvirtd.job = 2, (2,) * 12
    with pytest.raises(LostError):
        await stack.migrates(UUID)
    assert await stack.migrates(UUID)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ((State.RUNNING, 1), Shown.RUNNING),
        ((State.BLOCKED, 0), Shown.RUNNING),
        ((State.PAUSED, 1), Shown.PAUSED),
        ((State.PAUSED, 2), Shown.HELD),
        ((State.PAUSED, 11), Shown.HELD),
        ((State.SHUT_OFF, 0), Shown.IDLE),
        ((State.SHUT_OFF, 1), Shown.OFF),
        ((State.SHUT_OFF, 6), Shown.FAILED),
        ((State.CRASHED, 0), Shown.OFF),
        (None, Shown.ABSENT),
    ],
)
async def test_what_is_shown(
    libvirtd: Libvirtd, state: tuple[int, int] | None, shown: Shown
) -> None:
    if state is None:
        libvirtd.absent = True
    else:
        libvirtd.state = state
    assert await LibvirtToolstack("qemu:///system").shown(UUID) is shown


def feed(*told: tuple[str, Any]) -> Feed:
    """What is known of a domain after these were heard."""
    one = Feed(None, UUID, one_clock=True)  # type: ignore[arg-type]
    for what, value in told:
        one._take(what, value, keep=False)  # pyright: ignore[reportPrivateUsage]
    return one


async def test_the_moment_of_the_stop_is_the_switchovers() -> None:
    now = time.monotonic_ns()
    watch = LibvirtWatch(feed(("stopped_at", now), ("migration", "pre-switchover")))
    assert await watch.switches() == now


@pytest.mark.parametrize("resumed", [None, 1])
async def test_a_guest_that_was_suspended_long_before(resumed: int | None) -> None:
    """``virsh migrate --timeout`` does so, and QEMU does not stop it again for its switchover."""
    suspended = time.monotonic_ns() - 5 * SECOND
    told = [("stopped_at", suspended)]
    if resumed:
        told.append(("resumed_at", suspended + SECOND))
    watch = LibvirtWatch(feed(*told, ("migration", "pre-switchover")))
    assert await watch.switches() == 0


async def test_a_guest_that_ran_on_after_a_stop_runs_again() -> None:
    """One that its user had suspended and resumed before has not."""
    now = time.monotonic_ns()
    one = feed(("stopped_at", now - 3), ("resumed_at", now - 2), ("stopped_at", now - 1))
    watch = LibvirtWatch(one)
    waiting = asyncio.create_task(watch.resumed())
    await asyncio.sleep(0)
    assert not waiting.done()
    one._take("resumed_at", now, keep=False)  # pyright: ignore[reportPrivateUsage]
    assert await waiting == now
