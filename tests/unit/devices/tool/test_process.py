from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from entourage.devices.tool.output import AT_ONCE, LONGEST
from tests.unit.devices.tool.harness import call, failure, gone, killed_at_last, tool, written

# What it prints


@pytest.mark.parametrize("flood", ["yes", "cat /dev/zero", "tr '\\0' '\\n' </dev/zero"])
async def test_a_flood_is_survived(tmp_path: Path, flood: str) -> None:
    lines: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await call(tool(tmp_path, f"({flood}) | head -c 100000000; echo; echo done")).run(
        60, lines.append
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    assert len(lines) < AT_ONCE * 10
    assert all(len(line) <= LONGEST + 1 and line.isprintable() for line in lines)


async def test_both_streams_flooded_at_once(tmp_path: Path) -> None:
    lines: list[str] = []
    await call(
        tool(tmp_path, "yes err | head -c 10000000 >&2 & yes out | head -c 10000000; wait")
    ).run(60, lines.append)
    assert "more lines" in lines[-1]


async def test_binary_is_made_harmless(tmp_path: Path) -> None:
    lines: list[str] = []
    await call(tool(tmp_path, "head -c 1000000 /dev/urandom | tr -d Er")).run(60, lines.append)
    assert all(line.isprintable() for line in lines)


async def test_a_background_child_holds_nothing_up_and_lives_on(tmp_path: Path) -> None:
    lines: list[str] = []
    body = (
        '(read -r _ <"$HERE/go"; yes | head -c 1000000; echo >"$HERE/survived"; sleep 1000) &\n'
        'echo $! >"$HERE/child"; echo done'
    )
    os.mkfifo(tmp_path / "go")
    with killed_at_last(tmp_path / "child"):
        async with asyncio.timeout(5), written(tmp_path / "survived"):
            await call(tool(tmp_path, body)).run(5, lines.append)
            assert lines == ["done"]
            (tmp_path / "go").write_text("\n")
        # It has printed a megabyte into a pipe that nobody listens to, and was not ended by it.
        assert not gone(int((tmp_path / "child").read_text()), patience=0)
        assert lines == ["done"]


async def test_a_failed_call_leaves_nothing_in_the_background(tmp_path: Path) -> None:
    await failure(tool(tmp_path, 'sleep 1000 & echo $! >"$HERE/child"; exit 1'))
    assert gone(int((tmp_path / "child").read_text()))


# Armed, cancelled, many


async def test_an_armed_tool_waits(tmp_path: Path) -> None:
    asked = call(tool(tmp_path, 'echo >"$HERE/ran"'))
    process = asked.start(armed=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await process.gone()
    assert not (tmp_path / "ran").exists()
    await asked.run(10, armed=process)
    assert (tmp_path / "ran").exists()


async def test_an_armed_tool_that_is_dismissed_never_runs(tmp_path: Path) -> None:
    process = call(tool(tmp_path, 'echo >"$HERE/ran"')).start(armed=True)
    await process.end()
    assert gone(process.pid)
    assert not (tmp_path / "ran").exists()


async def test_an_armed_tool_that_has_died_is_started_anew(tmp_path: Path) -> None:
    asked = call(tool(tmp_path, 'echo >>"$HERE/ran"'))
    process = asked.start(armed=True)
    os.kill(process.pid, signal.SIGKILL)
    await process.gone()
    await asked.run(10, armed=process)
    assert (tmp_path / "ran").read_text() == "\n"


async def test_an_armed_tool_does_not_outlive_who_armed_it(tmp_path: Path) -> None:
    process = call(tool(tmp_path, 'echo >"$HERE/ran"')).start(armed=True)
    assert process.gate
    process.gate.close()  # as the kernel does
    async with asyncio.timeout(5):
        await process.gone()
    assert not (tmp_path / "ran").exists()
    await process.end()


@pytest.mark.parametrize("trap", ["", "trap '' TERM HUP INT;"])
async def test_a_cancelled_call_ends_the_tool(tmp_path: Path, trap: str) -> None:
    body = f'{trap} echo $$ >"$HERE/pid"; echo >"$HERE/up"; while :; do sleep 1000; done'
    async with written(tmp_path / "up"):
        task = asyncio.create_task(call(tool(tmp_path, body)).run(100))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(int((tmp_path / "pid").read_text()), patience=0)


async def test_cancelled_again_while_it_is_ended(tmp_path: Path) -> None:
    body = 'trap \'\' TERM; echo $$ >"$HERE/pid"; echo >"$HERE/up"; while :; do sleep 1000; done'
    async with written(tmp_path / "up"):
        task = asyncio.create_task(call(tool(tmp_path, body)).run(100))
    task.cancel()
    await asyncio.wait([task], timeout=0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(int((tmp_path / "pid").read_text()))


async def test_64_at_once_take_hardly_longer_than_one(tmp_path: Path) -> None:
    lines: list[str] = []
    asked = [call(tool(tmp_path, "sleep 0.2; echo done"), device=f"block/{n}") for n in range(64)]
    armed = [one.start(lines.append, armed=True) for one in asked]
    begin = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for one, process in zip(asked, armed, strict=True):
            group.create_task(one.run(10, lines.append, process))
    took = time.monotonic() - begin
    assert lines == ["done"] * 64
    assert took < 2  # 12.8 s one after the other; no benchmark, the machine may be busy


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    good, bad = tool(tmp_path, "echo"), tool(tmp_path, "exit 1", "bad")
    await call(good).run(10)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        await call(good).run(10, armed=call(good).start(armed=True))
        await failure(bad)
        await call(good).start(armed=True).end()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
