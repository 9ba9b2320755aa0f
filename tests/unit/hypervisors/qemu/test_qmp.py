"""One QMP connection, against a server that says what QEMU says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.qemu.qmp import Known, Monitor, MonitorLostError
from entourage.hypervisors.qmp_error import CommandError
from tests.unit.eventually import eventually

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""},
        "capabilities": ["oob"],
    }
}


class FakeQmp:
    """Answers each command with what ``answers`` has for it: a value, or an error's text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.before_greeting = b""
        self.before_answer = b""
        self.silent = False
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[FakeQmp]:
        server = await asyncio.start_unix_server(self._serve, self.path)
        try:
            yield self
        finally:
            server.close()
            self.hang_up()
            await asyncio.sleep(0)

    def hang_up(self) -> None:
        while self._writers:
            self._writers.pop().close()

    def say(self, event: str, **data: Any) -> None:
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now % 1 * 1e6)}
        self._tell({"event": event, "data": data, "timestamp": stamp})

    def _tell(self, message: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(json.dumps(message).encode() + b"\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(self.before_greeting)
        self._tell(GREETING)
        writer.write(self.before_answer)
        decoder, text = json.JSONDecoder(), ""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                text = (text + data.decode()).lstrip()  # a descriptor comes with a space
                while text.strip():
                    try:
                        request, end = decoder.raw_decode(text)
                    except ValueError:
                        break
                    text = text[end:].lstrip()
                    self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        command = request.get("execute") or request["exec-oob"]
        arguments = request.get("arguments", {})
        self.commands.append((command, arguments))
        if self.silent:
            return
        name = {"id": request["id"]} if "id" in request else {}
        try:
            value = self.answers.get(command, lambda _: {})(arguments)
        except ValueError as error:
            self._tell({"error": {"class": "GenericError", "desc": str(error)}, **name})
        else:
            self._tell({"return": value, **name})


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncGenerator[FakeQmp]:
    async with FakeQmp(tmp_path / "qmp.sock").serving() as fake:
        yield fake


@pytest.fixture
async def monitor(qemu: FakeQmp) -> AsyncGenerator[Monitor]:
    connected = await Monitor.connect(qemu.path)
    yield connected
    await connected.close()


def refuse(reason: str) -> Callable[[dict[str, Any]], Any]:
    def answer(_: dict[str, Any]) -> Any:
        raise ValueError(reason)

    return answer


async def test_a_command_returns_what_it_returns(qemu: FakeQmp, monitor: Monitor) -> None:
    qemu.answers["query-status"] = lambda _: {"status": "running"}
    assert monitor.version == (7, 2, 22)
    assert await monitor.execute("query-status") == {"status": "running"}
    assert qemu.commands[0] == ("qmp_capabilities", {"enable": ["oob"]})


async def test_a_refusal_names_the_device(qemu: FakeQmp, monitor: Monitor) -> None:
    qemu.answers["blockdev-add"] = refuse("No such file")
    with pytest.raises(CommandError) as caught:
        await monitor.execute("blockdev-add", {"a": 1}, device="block/disk0")
    assert caught.value.device == "block/disk0"
    assert caught.value.reason == "No such file"
    assert "blockdev-add" in str(caught.value)


async def test_commands_at_once_keep_their_order(qemu: FakeQmp, monitor: Monitor) -> None:
    await asyncio.gather(*(monitor.execute("x", {"n": n}) for n in range(20)))
    assert [arguments["n"] for name, arguments in qemu.commands if name == "x"] == list(range(20))


async def test_an_event_that_came_before_is_not_missed(qemu: FakeQmp, monitor: Monitor) -> None:
    qemu.say("MIGRATION", status="completed")
    await monitor.execute("query-status")
    assert await monitor.until(lambda known: known.migration or None) == "completed"


async def test_an_event_wakes_who_waits(qemu: FakeQmp, monitor: Monitor) -> None:
    waiting = asyncio.create_task(monitor.until(lambda known: known.stopped_at or None))
    await asyncio.sleep(0)
    assert not waiting.done()
    before = time.monotonic_ns()
    qemu.say("STOP")
    assert abs(await waiting - before) < 10**9


async def test_a_test_that_raises(qemu: FakeQmp, monitor: Monitor) -> None:
    def failed(known: Known) -> bool | None:
        if known.job("m0").ended:
            raise HypervisorError(known.job("m0").error)
        return None

    waiting = asyncio.create_task(monitor.until(failed))
    await asyncio.sleep(0)
    qemu.say("BLOCK_JOB_COMPLETED", device="m0", len=1, offset=0, error="No space")
    with pytest.raises(HypervisorError, match="No space"):
        await waiting


async def test_qemu_goes_away(qemu: FakeQmp, monitor: Monitor) -> None:
    waiting = asyncio.create_task(monitor.until(lambda known: known.migration or None))
    await asyncio.sleep(0)
    qemu.say("SHUTDOWN", guest=True, reason="guest-shutdown")
    await monitor.execute("x")
    qemu.hang_up()
    with pytest.raises(MonitorLostError, match="guest-shutdown"):
        await waiting
    with pytest.raises(MonitorLostError):
        await monitor.execute("query-status")
    with pytest.raises(MonitorLostError):
        await monitor.until(lambda known: known.migration or None)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(MonitorLostError, match="does not answer"):
        await Monitor.connect(tmp_path / "nothing")


async def test_a_monitor_that_was_lost() -> None:
    monitor = Monitor.lost()
    with pytest.raises(MonitorLostError):
        await monitor.execute("cont")
    with pytest.raises(MonitorLostError):
        await monitor.until(lambda known: known.migration or None)
    await monitor.close()


async def test_what_was_meant_for_another_is_skipped(tmp_path: Path) -> None:
    """QEMU says it to the next one who connects, and the first line may be torn."""
    fake = FakeQmp(tmp_path / "qmp.sock")
    fake.before_greeting = b'ds": 17}, "event": "RESUME"}\n{"event": "STOP"}\n{"return": {}}\n'
    fake.before_answer = b'{"event": "STOP", "timestamp": {}}\n'
    async with fake.serving():
        monitor = await Monitor.connect(fake.path)
        assert await monitor.execute("query-status") == {}
        assert monitor.known.stopped_at == 0
        await monitor.close()


async def test_given_up_while_nobody_greets(tmp_path: Path) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    connected = asyncio.Event()
    server = await asyncio.start_unix_server(silence, tmp_path / "s")
    connecting = asyncio.create_task(Monitor.connect(tmp_path / "s"))
    await connected.wait()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    server.close()
    await asyncio.sleep(0.05)


def test_what_is_known_of_jobs() -> None:
    known = Known()
    known.hear("BLOCK_JOB_READY", {"device": "m0"}, 1)
    assert known.job("m0").ready
    known.hear("BLOCK_JOB_ERROR", {"device": "m1", "operation": "write"}, 2)
    known.hear("BLOCK_JOB_CANCELLED", {"device": "m1"}, 3)
    assert known.job("m1").ended
    assert known.job("m1").error == "a write failed"
    known.hear("BLOCK_JOB_CANCELLED", {"device": "m2"}, 3)
    assert known.job("m2").error == "it was cancelled"
    known.hear("BLOCK_JOB_COMPLETED", {"device": "m0"}, 4)
    assert known.job("m0").ended
    assert not known.job("m0").error
    assert not known.job("m0").gone
    known.hear("JOB_STATUS_CHANGE", {"id": "m0", "status": "null"}, 5)
    assert known.job("m0").gone


def test_what_is_known_of_the_rest() -> None:
    known = Known()
    known.hear("MIGRATION", {"status": "pre-switchover"}, 7)
    assert (known.migration, known.held_at) == ("pre-switchover", 7)
    known.hear("SOMETHING_NEW", {}, 10)
    known.hear("BLOCK_EXPORT_DELETED", {"id": "d0"}, 4)
    assert known.exports_gone == {"d0"}


async def test_an_urgent_command_always_gets_through(qemu: FakeQmp, monitor: Monitor) -> None:
    """QEMU reads no more after eight commands that wait for its main loop."""
    qemu.silent = True
    slow = [asyncio.create_task(monitor.execute("block-job-cancel")) for _ in range(20)]
    await eventually(lambda: len(qemu.commands) >= 2)
    urgent = asyncio.create_task(monitor.execute("yank", urgent=True))
    await eventually(lambda: qemu.commands[-1][0] == "yank")
    assert 1 < len(qemu.commands) <= 8
    for task in (*slow, urgent):
        task.cancel()
    await asyncio.gather(*slow, urgent, return_exceptions=True)
