"""Programs are run to their end, and none is waited for without one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.errors import DeviceError, HypervisorError, UsageError
from entourage.hosts import account, filters, programs
from entourage.hosts.account import Account, Wanted
from entourage.hosts.filters import ENCRYPT, Filter, check_key, check_recipient


async def test_what_it_said() -> None:
    status, out, said = await programs.run("sh", "-c", "pwd; echo 'a  b' >&2; exit 3", cwd="/")
    assert (status, out, said) == (3, "/\n", "a b")
    with pytest.raises(DeviceError, match="no-such-program cannot be run"):
        await programs.run("no-such-program")


async def test_one_that_does_not_end_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(DeviceError, match=r"sh has not ended within 0\.5 s") as told:
        await programs.run("sh", "-c", f"echo $$ > {pid}; exec sleep 1000", within=0.5)
    assert told.value.remedy
    assert not Path("/proc", pid.read_text().strip()).exists()


async def test_one_that_the_kernel_holds_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal ends no process that waits for a file server: only the server's answer does."""
    killed: list[bool] = []

    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    held: Any = SimpleNamespace(returncode=None, kill=lambda: killed.append(True), wait=never)
    monkeypatch.setattr(programs, "_KILLED_WITHIN", 0.01)
    async with asyncio.timeout(60):
        await programs.kill(held)
    assert killed


def hangs(directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name that does not end."""
    program = directory / "bin" / name
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


async def test_age_that_waits_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks for a passphrase, say, or whose key is on storage that hangs."""
    hangs(tmp_path, "age", monkeypatch)
    monkeypatch.setattr(filters, "_ANSWERS_WITHIN", 0.1)
    with pytest.raises(UsageError, match="has not ended"):
        await check_recipient(Filter(ENCRYPT, "age1abc"))
    (tmp_path / "memory").touch()
    with pytest.raises(UsageError, match="not within"):
        await check_key(Filter(ENCRYPT, "/key"), tmp_path / "memory")
    with pytest.raises(UsageError, match="no such file"):
        await check_key(Filter(ENCRYPT, "/key"), tmp_path / "none")


async def test_what_a_user_may_open_on_storage_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs(tmp_path, "setpriv", monkeypatch)
    monkeypatch.setattr(account, "_ANSWERS_WITHIN", 0.1)
    with pytest.raises(HypervisorError, match="what qemu may open is not known"):
        await Account("qemu", 64055, 64055).denied([Wanted("/srv/web1.raw", "w")])
