"""Memory goes through programs and back, whole; one that fails is told."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from entourage.errors import HypervisorError, UsageError
from entourage.hosts import filters
from entourage.hosts.filters import (
    COMPRESS,
    ENCRYPT,
    Filter,
    Pipeline,
    absolute,
    check,
    check_key,
    check_recipient,
)

DATA = os.urandom(1 << 20) + bytes(4 << 20)
has_age = pytest.mark.skipif(shutil.which("age") is None, reason="there is no age")


async def through(commands: list[list[str]], source: Path, target: Path) -> None:
    with source.open("rb") as reads, target.open("wb") as writes:
        pipeline = await Pipeline.begin(commands, reads.fileno(), writes.fileno())
    try:
        await pipeline.finished()
    finally:
        await pipeline.end()


@pytest.mark.parametrize("names", [[COMPRESS], pytest.param([COMPRESS, ENCRYPT], marks=has_age)])
async def test_there_and_back(tmp_path: Path, names: list[str]) -> None:
    plain, saved, again = (tmp_path / name for name in ("plain", "saved", "again"))
    plain.write_bytes(DATA)
    key = tmp_path / "key"
    recipient = keygen(key) if ENCRYPT in names else ""
    there = [Filter(name, recipient if name == ENCRYPT else "") for name in names]
    await through([one.there() for one in there], plain, saved)
    assert saved.stat().st_size < len(DATA) // 2
    assert DATA[:64] not in saved.read_bytes() or ENCRYPT not in names
    back = [Filter(name, str(key) if name == ENCRYPT else "") for name in reversed(names)]
    await through([one.back() for one in back], saved, again)
    assert again.read_bytes() == DATA
    saved.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(HypervisorError, match="did not go through"):
        await through([one.back() for one in back], saved, again)


def keygen(path: Path) -> str:
    done = subprocess.run(["age-keygen", "-o", path], capture_output=True, text=True, check=True)
    return done.stderr.split()[-1]


@has_age
async def test_recipients_may_be_in_a_file(tmp_path: Path) -> None:
    plain, saved, again, key = (tmp_path / name for name in ("plain", "saved", "again", "key"))
    plain.write_bytes(DATA)
    (tmp_path / "all").write_text(f"{keygen(key)}\n")
    await through([Filter(ENCRYPT, str(tmp_path / "all")).there()], plain, saved)
    await through([Filter(ENCRYPT, str(key)).back()], saved, again)
    assert again.read_bytes() == DATA
    await check_key(Filter(ENCRYPT, str(key)), saved)
    keygen(tmp_path / "other")
    with pytest.raises(UsageError, match="does not decrypt"):
        await check_key(Filter(ENCRYPT, str(tmp_path / "other")), saved)


async def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with pytest.raises(HypervisorError, match="memory has no way"):
        await through([["cat"], ["no-such-program"]], tmp_path / "plain", tmp_path / "x")


async def test_they_end_wherever_they_are() -> None:
    out, inward = os.pipe()
    pipeline = await Pipeline.begin([["cat"], ["cat"]], out, inward)
    await pipeline.end()
    os.close(out)
    os.close(inward)


def test_what_is_not_there_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check([])
    with pytest.raises(UsageError, match="nothing is known of 'lz4'"):
        check([Filter("lz4")])
    with pytest.raises(UsageError, match="cannot be read"):
        check([Filter(COMPRESS, f"{tmp_path}/none")])
    monkeypatch.setattr(filters.shutil, "which", Mock(return_value=None))
    with pytest.raises(UsageError, match="age is not installed"):
        check([Filter(ENCRYPT, "age1x")])


def test_a_file_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all").touch()
    assert absolute("all") == str(tmp_path / "all")
    assert absolute("age1abc") == "age1abc"
    assert absolute("ssh-ed25519 AAAA/b+c me") == "ssh-ed25519 AAAA/b+c me"


@has_age
async def test_a_recipient_is_tried(tmp_path: Path) -> None:
    await check_recipient(Filter(ENCRYPT, keygen(tmp_path / "key")))
    with pytest.raises(UsageError, match="nothing can be encrypted to age1typo"):
        await check_recipient(Filter(ENCRYPT, "age1typo"))


@pytest.mark.parametrize("way", ["in", "out"])
async def test_sockets_that_do_not_block_are_waited_for(tmp_path: Path, way: str) -> None:
    """Both ends of memory's way are an event loop's; a slow one holds it up, and ends nothing."""
    plain = tmp_path / "plain"
    plain.write_bytes(DATA)
    mine, its = socket.socketpair()
    its.setblocking(False)  # noqa: FBT003 - the name of it
    with plain.open("rb") as file, (tmp_path / "out").open("wb") as out:
        ends = (its.fileno(), out.fileno()) if way == "in" else (file.fileno(), its.fileno())
        pipeline = await Pipeline.begin([["cat"]], *ends)
    its.close()
    with mine:
        if way == "in":
            await asyncio.to_thread(mine.sendall, DATA)
            mine.shutdown(socket.SHUT_WR)
            await pipeline.finished()
            came = (tmp_path / "out").read_bytes()
        else:
            with mine.makefile("rb") as read:
                came = await asyncio.to_thread(read.read)
            await pipeline.finished()
    await pipeline.end()
    assert came == DATA
