"""A guest of libvirt's that has ended by itself, where its libvirtd told nobody."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError
from entourage.hypervisors.libvirt import process
from entourage.hypervisors.libvirt.connection import LostError
from entourage.hypervisors.libvirt.constants import PAUSED_BY_IO_ERROR, State
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from tests.unit.eventually import wait_until

UUID = "5b6e6d0e-0000-4000-8000-000000000001"
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 28)


class Off:
    """A fake of ``virDomain``, off."""

    def __init__(self, reason: int) -> None:
        self._state = [State.SHUT_OFF, reason]

    def state(self, _flags: int) -> list[int]:
        return self._state


class LostFeed:
    """A fake of a feed whose libvirtd went away before it could tell."""

    async def until(self, _check: Any) -> Any:
        raise HypervisorError("libvirtd has gone")


def machine_of(handle: Handle, directory: Path) -> Any:
    """A machine that hears nothing more, and whose way back has nothing to do but run it."""
    ended: Any = LibvirtMachine(handle, directory / "log")
    ended._job.feed = LostFeed()
    ended._rollback.abort = handle.run_again
    return ended


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (Off(1), "guest-shutdown"),
        (Off(3), "libvirt does not know why"),  # its word after it was started again
        (Off(0), "libvirt does not know why"),
        (None, "libvirt does not know why"),  # transient
    ],
)
async def test_it_is_seen_where_it_was_to_run_again(
    tmp_path: Path, raw: Off | None, why: str
) -> None:
    connection: Any = None
    handle = Handle(connection, raw, DOMAIN, was_running=True, transient=raw is None)
    ended = machine_of(handle, tmp_path)
    with pytest.raises(GoneError, match="the machine of web1 is gone"):
        await ended.abort()
    assert await ended.died() == f"its machine has ended ({why})"


async def test_one_whose_qemu_runs_on_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A libvirtd that was started again and cannot take it up says that it is off."""
    connection: Any = None

    def outlives(_uuid: str) -> bool:
        return True

    monkeypatch.setattr(process, "outlives", outlives)
    monkeypatch.setattr(process, "_ENDS_WITHIN", 0.01)
    handle = Handle(connection, Off(0), DOMAIN, was_running=True, transient=False)
    lives = machine_of(handle, tmp_path)
    with pytest.raises(HypervisorError, match="its QEMU runs on") as caught:
        await lives.abort()
    assert not isinstance(caught.value, GoneError)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lives.died(), 0.05)
    with pytest.raises(HypervisorError, match="its QEMU runs on"):  # nor is it for `recover`
        await lives.reattach(was_running=True)


@pytest.mark.parametrize(
    ("state", "why", "was_running", "lost", "goes_on"),
    [
        ((State.PAUSED, PAUSED_BY_IO_ERROR), "nospace", True, False, True),
        ((State.PAUSED, PAUSED_BY_IO_ERROR), "nospace", True, True, True),
        ((State.PAUSED, PAUSED_BY_IO_ERROR), "failed", True, False, False),  # its user's to mend
        ((State.PAUSED, PAUSED_BY_IO_ERROR), "nospace", False, False, False),
        ((State.PAUSED, 1), "ok", True, False, False),  # somebody has, meanwhile
        ((State.RUNNING, 1), "ok", True, False, False),
    ],
)
async def test_a_guest_that_full_storage_has_stopped_is_let_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    state: tuple[State, int],
    why: str,
    was_running: bool,
    lost: bool,
    goes_on: bool,
) -> None:
    """The save that has filled it is removed by then."""
    resumed: list[bool] = []

    away = [LostError("libvirtd has gone")] if lost else []

    def answer(_flags: int) -> list[int]:
        if away:
            raise away.pop()
        return list(state)

    async def asked(_self: Handle, command: str) -> list[dict[str, str]]:
        assert command == "query-block"
        return [{"io-status": why}]

    async def find_again(_self: Handle) -> None:
        """It is back."""

    monkeypatch.setattr(Handle, "tell_qemu", asked)
    monkeypatch.setattr(Handle, "find_again", find_again)

    raw = SimpleNamespace(state=answer, resume=lambda: resumed.append(True))
    connection: Any = None
    handle = Handle(connection, raw, DOMAIN, was_running=was_running, transient=False)
    await machine_of(handle, tmp_path).go_on()
    assert resumed == [True] * goes_on


def test_a_qemu_is_known_by_its_domains_uuid() -> None:
    assert not process.outlives(UUID)
    program = [sys.executable, "-c", "input()", "-uuid", UUID, "-more"]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as qemu:
        wait_until(lambda: process.outlives(UUID))
        qemu.communicate(b"\n")
    assert not process.outlives(UUID)


class ShuttingDown(Off):
    """A fake of ``virDomain`` that shuts down, twice, and then is something else."""

    def __init__(self, then: State) -> None:
        super().__init__(0)
        self._states = [State.SHUTDOWN, State.SHUTDOWN]
        self._then = then

    def state(self, _flags: int) -> list[int]:
        return [self._states.pop() if self._states else self._then, 0]


async def test_one_that_shuts_down_is_soon_off() -> None:
    connection: Any = None
    raw = ShuttingDown(State.SHUT_OFF)
    handle = Handle(connection, raw, DOMAIN, was_running=True, transient=False)
    with pytest.raises(GoneError):
        await handle.run_again()


async def test_or_it_reboots_and_runs() -> None:
    """libvirt makes a reboot of a shutdown, where its user has asked for one."""
    connection: Any = None
    raw = ShuttingDown(State.RUNNING)
    handle = Handle(connection, raw, DOMAIN, was_running=True, transient=False)
    await handle.run_again()
    assert not handle.gone
