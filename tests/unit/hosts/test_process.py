"""Processes that are started for good."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from entourage.errors import EntourageError
from entourage.hosts import process
from entourage.hosts.process import (
    ProcessHandle,
    await_marked,
    last_lines,
    launch,
    scope_request,
    start_time,
)
from entourage.hosts.resources import MARKER, end_processes, marked_processes
from tests.unit.eventually import eventually

# Says what it has, and stays.
SHOW = """
import os, sys, json, time
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
fds = [fd for fd in fds if os.path.lexists(f"/proc/self/fd/{fd}")]  # not the one that listed
print(json.dumps([fds, os.getsid(0) == os.getpid(), os.getcwd(), dict(os.environ)]))
sys.stdout.flush()
time.sleep(60)
"""


async def test_it_has_nothing_of_ours_but_what_it_is_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    given, other = os.pipe()
    os.set_inheritable(other, True)  # noqa: FBT003 - a careless one of somebody else's
    try:
        await launch(
            [sys.executable, "-I", "-S", "-c", SHOW],
            marker="m1",
            log=log,
            unit="u",
            pass_fds=(given,),
            environment={"MORE": "1"},
        )
        await eventually(lambda: log.read_text().endswith("\n"))
        descriptors, own_session, cwd, environment = json.loads(log.read_text())
        assert descriptors == [0, 1, 2, given]
        assert own_session
        assert cwd == "/"
        assert environment[MARKER] == "m1"
        assert set(environment) == {"PATH", "LANG", "MORE", MARKER}
        assert log.stat().st_mode & 0o777 == 0o600
    finally:
        await end_processes("m1")
        os.close(given)
        os.close(other)


async def test_what_cannot_be_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(EntourageError, match="not installed"):
        await launch(["no-such-program-at-all"], marker="m", log=log, unit="u")
    with pytest.raises(EntourageError, match="cannot be started"):
        await launch([str(tmp_path)], marker="m", log=log, unit="u")


async def test_a_handle_hears_of_the_end(tmp_path: Path) -> None:
    pid = await launch(["sleep", "60"], marker="m2", log=tmp_path / "log", unit="u")
    began = start_time(pid)
    handle = ProcessHandle.open(pid, began)
    assert handle
    assert ProcessHandle.open(pid, (began or 0) + 1) is None  # another one of the same id
    waiting = [asyncio.create_task(handle.ended()) for _ in range(2)]
    await asyncio.sleep(0)
    handle.kill()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert start_time(pid) is None
    assert ProcessHandle.open(pid) is None
    handle.kill()
    handle.close()
    handle.close()
    assert marked_processes("m2") == []


async def test_a_handle_is_let_go_while_one_waits(tmp_path: Path) -> None:
    pid = await launch(["sleep", "60"], marker="m3", log=tmp_path / "log", unit="u")
    handle = ProcessHandle.open(pid)
    assert handle
    waiting = asyncio.create_task(handle.ended())
    await asyncio.sleep(0)
    handle.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await end_processes("m3")


def test_no_process_has_id_0() -> None:
    assert ProcessHandle.open(0) is None
    assert ProcessHandle.open(-1) is None
    assert ProcessHandle.open(1 << 30) is None


async def test_those_that_end_by_themselves_are_waited_for(tmp_path: Path) -> None:
    await launch(["sleep", "0.1"], marker="m4", log=tmp_path / "log", unit="u")
    await await_marked("m4", 5)
    assert marked_processes("m4") == []
    await await_marked("m4", 5)


async def test_those_that_do_not_are_killed(tmp_path: Path) -> None:
    pid = await launch(["sleep", "60"], marker="m5", log=tmp_path / "log", unit="u")
    os.kill(pid, signal.SIGSTOP)
    await await_marked("m5", 0.1)
    assert marked_processes("m5") == []


async def test_a_scope_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd runs, it is asked; that it does not answer keeps nothing from starting."""
    asked = tmp_path / "asked"
    busctl = tmp_path / "busctl"
    busctl.write_text(f'#!/bin/sh\necho "$@" > {asked}; echo "no bus" >&2; exit 1\n')
    busctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(process, "_SYSTEMD_RUNS", tmp_path)
    pid = await launch(["sleep", "60"], marker="m6", log=tmp_path / "log", unit="entourage-x")
    user = os.geteuid() != 0
    assert (
        asked.read_text().split()
        == " ".join(scope_request(pid, "entourage-x", user=user)[1:]).split()
    )
    assert "entourage-x.scope" in asked.read_text()
    assert "no bus" in (tmp_path / "log").read_text()
    await end_processes("m6")


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log, 0) == ""
    log.write_bytes(b"old\none\n\ntwo \xff\nthree\nfour\n")
    assert last_lines(log, 4) == "two \ufffd / three / four"
    assert last_lines(log, 4, 1) == "four"
