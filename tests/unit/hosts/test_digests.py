"""Digests are of all of a file, also where they are made while it is written."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hosts import digests
from entourage.hosts.digests import GrowingDigest, sha256
from entourage.hosts.turns import Turn
from tests.unit.eventually import eventually

DATA = os.urandom(3 << 20)
WHOLE = hashlib.sha256(DATA).hexdigest()


def nothing(_: str) -> None:
    """No program is found."""


@pytest.fixture(params=["openssl", "sha256sum"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What makes them: where there is no openssl, coreutils'."""
    if request.param == "sha256sum":
        monkeypatch.setattr(shutil, "which", nothing)
    elif shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    return str(request.param)


@pytest.mark.usefixtures("program")
async def test_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(DATA)
    assert await sha256(path) == WHOLE
    with pytest.raises(HypervisorError, match="no such file"):
        await sha256(tmp_path / "none")
    path.unlink()
    path.symlink_to("none")
    with pytest.raises(HypervisorError):
        await sha256(path)


@pytest.mark.parametrize("nice", [0, 7])
async def test_it_stands_back_for_others_as_far_as_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nice: int
) -> None:
    """Not at all where a guest waits for it."""
    set_to: list[int] = []

    def setpriority(_which: int, _who: int, priority: int) -> None:
        set_to.append(priority)

    monkeypatch.setattr(os, "setpriority", setpriority)
    (tmp_path / "memory").write_bytes(DATA)
    assert await sha256(tmp_path / "memory", nice=nice) == WHOLE
    assert set_to == ([nice] if nice else [])


async def test_of_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match=r"cannot be read: .*directory"):
        await sha256(tmp_path)


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("behind", [0, 14])
async def test_as_it_grows(tmp_path: Path, behind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes at its end and is cut off again is not part of it. Nothing is read once more."""

    async def again(_: Path) -> str:
        raise AssertionError

    monkeypatch.setattr(digests, "sha256", again)
    path = tmp_path / "memory"
    growing = GrowingDigest(path, behind=behind)
    await growing.begin()
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(DATA), 700_001):
            part = DATA[start : start + 700_001]
            file.write(part)
            growing.written(len(part))
        file.write(b"x" * behind)
        growing.written(behind)
        file.truncate(len(DATA))
    assert await growing.finish(len(DATA)) == WHOLE
    await growing.end()


TURNS = (Turn(0, b"part", b"save"), Turn(8, b"raw", b"raw"))
BEGINS = b"part" + DATA[4:8] + b"raw"


@pytest.mark.parametrize(
    ("begins", "ends", "again"),
    [
        (BEGINS, b"save", 0),
        (BEGINS, b"sAve", 1),  # it became something else
        (b"PART" + BEGINS[4:], b"save", 1),  # it is none of these
        (BEGINS[:8] + b"zip", b"save", 1),  # nor in that order
    ],
)
async def test_what_turns_into_something_else_as_it_is_whole(
    tmp_path: Path, begins: bytes, ends: bytes, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libvirt writes over its file's first bytes; a guess that is wrong harms nothing."""
    read: list[Path] = []

    async def read_again(path: Path) -> str:
        read.append(path)
        return await sha256(path)

    monkeypatch.setattr(digests, "sha256", read_again)
    path = tmp_path / "memory"
    data = begins + DATA[len(begins) :]
    growing = GrowingDigest(path, turns=TURNS)
    await growing.begin()
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), 40_001):  # less than what is looked at first
            file.write(data[start : start + 40_001])
            growing.written(min(40_001, len(data) - start))
        if not again:
            await eventually(lambda: growing.passed == len(data))
        os.pwrite(file.fileno(), ends, 0)
    assert await growing.finish(len(data)) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(read) == again
    await growing.end()


async def test_one_that_is_over_before_it_is_looked_at(tmp_path: Path) -> None:
    """Nobody has seen what stood there before."""
    path = tmp_path / "memory"
    path.write_bytes(b"save" + BEGINS[4:])
    growing = GrowingDigest(path, turns=TURNS)
    await growing.begin()
    assert (
        await growing.finish(path.stat().st_size) == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    await growing.end()


async def test_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory").touch()
    growing = GrowingDigest(tmp_path / "memory")
    await growing.begin()
    assert await growing.finish(0) == hashlib.sha256().hexdigest()
    await growing.end()


async def test_what_could_not_be_passed_on_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest of only a part would make a save that nothing can restore."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    path = tmp_path / "memory"
    path.write_bytes(DATA)
    growing = GrowingDigest(path)
    await growing.begin()
    growing.written(len(DATA))
    assert await growing.finish(len(DATA)) == WHOLE
    await growing.end()


@pytest.mark.parametrize("text", ["#!/bin/sh\nread -r _\nexit 1\n", "#!/none\n", "\x7fELF"])
async def test_a_program_that_does_not_work_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Its libraries may be half upgraded; or the kernel has ended it, for want of memory."""
    broken = tmp_path / "openssl"
    broken.write_text(text)
    broken.chmod(0o755)
    monkeypatch.setattr(digests, "_FAST", (str(broken),))
    path = tmp_path / "memory"
    path.write_bytes(DATA)
    assert await sha256(path) == WHOLE
    growing = GrowingDigest(path)
    await growing.begin()
    growing.written(len(DATA))
    assert await growing.finish(len(DATA)) == WHOLE
    await growing.end()


async def test_nobody_wants_it_any_more(tmp_path: Path) -> None:
    """The thread is not left: its program has ended, or it would wait for that."""
    before = set(threading.enumerate())
    growing = GrowingDigest(tmp_path / "memory")
    await growing.begin()
    asking = asyncio.create_task(growing.finish(1))
    await asyncio.sleep(0)
    await growing.end()
    with pytest.raises((asyncio.CancelledError, HypervisorError)):
        await asking
    deadline = time.monotonic() + 10
    while any(one.name == "digest" for one in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)  # a thread tells nobody of its end
