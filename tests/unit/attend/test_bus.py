"""The bus of a domain, with a real QEMU on it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from entourage.attend import kept
from entourage.attend.bus import Bus, _user_of  # pyright: ignore[reportPrivateUsage]
from entourage.errors import HypervisorError
from entourage.handover.values import Record
from entourage.hypervisors.attended.switchover import state_of
from entourage.journal.details import TargetDetails
from entourage.settings.model import PathSettings, Settings
from tests.unit.attend.standins import recorded
from tests.unit.eventually import idle

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
QEMU = "/usr/bin/qemu-system-x86_64"
pytestmark = pytest.mark.skipif(not Path(QEMU).exists(), reason="needs QEMU")


class Recording:
    """A helper that notes what QEMU asks of it."""

    def __init__(self, answer: bytes | str = b"state") -> None:
        self.answer = answer
        self.saved = 0
        self.expected = True
        self.loaded: list[bytes] = []
        self.on_bus = asyncio.Event()
        self.left = asyncio.Event()

    async def check_expected(self) -> None:
        if not self.expected:
            raise HypervisorError("nobody attends it")

    async def save(self) -> bytes:
        self.saved += 1
        if isinstance(self.answer, str):
            raise HypervisorError(self.answer)
        return self.answer

    async def load(self, state: bytes) -> None:
        self.loaded.append(state)
        if isinstance(self.answer, str):
            raise HypervisorError(self.answer)

    def connected(self) -> None:
        self.on_bus.set()

    def gone(self) -> None:
        self.left.set()


class Qemu:
    """A QEMU without a machine, and its monitor."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"execute": command, "arguments": arguments, "id": command}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        while line := await self.process.stdout.readline():
            answer = json.loads(line)
            if answer.get("id") == command:
                return answer.get("return", answer.get("error"))
        raise EOFError

    async def migrated(self) -> str:
        while True:
            status = (await self.ask("query-migrate")).get("status", "")
            if status in {"completed", "failed"}:
                return str(status)
            await asyncio.sleep(0.01)  # the monitor tells nobody who has not asked for events


@asynccontextmanager
async def qemu(address: Path, *more: str) -> AsyncGenerator[Qemu]:
    process = await asyncio.create_subprocess_exec(
        QEMU, "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio",
        "-object", f"dbus-vmstate,id=o,addr=unix:path={address},id-list=entourage", *more,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    one = Qemu(process)
    try:
        await one.ask("qmp_capabilities")
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        _, stderr = await process.communicate()
        one.said = stderr.decode()


@asynccontextmanager
async def bus(path: Path, helper: Recording) -> AsyncGenerator[Bus]:
    one = Bus(path, helper, os.getuid())
    await one.open()
    try:
        yield one
    finally:
        await one.close()


async def test_state_goes_from_one_qemu_to_the_other(tmp_path: Path) -> None:
    helper, there, stream = Recording(b"\0\1nonce"), Recording(), tmp_path / "stream"
    async with bus(tmp_path / "a", helper), qemu(tmp_path / "a") as source:
        await helper.on_bus.wait()
        await source.ask("migrate", uri=f"exec:cat >{stream}")
        assert await source.migrated() == "completed"
    async with asyncio.timeout(10):
        await helper.left.wait()
    assert (helper.saved, helper.loaded) == (1, [])
    async with bus(tmp_path / "b", there), qemu(tmp_path / "b", "-incoming", "defer") as target:
        await target.ask("migrate-incoming", uri=f"exec:cat {stream}")
        assert await target.migrated() == "completed"
    assert there.loaded == [b"\0\1nonce"]


@pytest.mark.parametrize(("decided", "interrupted"), [(True, False), (True, True), (False, False)])
async def test_qemu_is_answered_after_its_daemon_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, decided: bool, interrupted: bool
) -> None:
    """By the next one, which systemd gives the connection; only where the guest is this host's.

    Where that one ends as well before it was asked, by the one after it.
    """
    forgotten: list[str] = []

    def forget(uuid: str, _nonce: str) -> None:
        forgotten.append(uuid)

    monkeypatch.setattr(kept, "forget", forget)
    nonce, stream = "0" * 32, tmp_path / "stream"
    settings = Settings(paths=PathSettings(run=str(tmp_path / "run"), state=str(tmp_path)))
    details = TargetDetails(hypervisor="attended:proxmox")
    recorded(settings, UUID, details, Record.OPEN, Record.GO if decided else Record.NEVER)
    async with bus(tmp_path / "a", Recording(state_of(nonce))), qemu(tmp_path / "a") as source:
        await source.ask("migrate", uri=f"exec:cat >{stream}")
        await source.migrated()
    helper = Recording()
    first = Bus(tmp_path / "b", helper, os.getuid())
    await first.open()
    async with qemu(tmp_path / "b", "-incoming", "defer") as target:
        await helper.on_bus.wait()
        monkeypatch.setattr(kept, "_FIRST", os.dup(first.connection))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", f"{UUID}-{nonce}")
        await first.close()
        [(uuid, known, connection)] = kept.given()
        assert (uuid, known) == (UUID, nonce)
        if interrupted:
            copy = connection.dup()
            ended = answering_on(settings, nonce, copy)
            await idle()
            ended.cancel()
            await asyncio.wait({ended})
            assert not forgotten
        answering = answering_on(settings, nonce, connection)
        if not decided:
            await answering
        await target.ask("migrate-incoming", uri=f"exec:cat {stream}")
        if decided:
            assert await target.migrated() == "completed"
        else:
            async with asyncio.timeout(10):
                assert await target.process.wait()
    await answering
    assert helper.loaded == []
    assert forgotten == [UUID]


def answering_on(settings: Settings, nonce: str, connection: socket.socket) -> asyncio.Task[None]:
    settled = asyncio.Event()
    return asyncio.create_task(kept.answer(settings, UUID, nonce, connection, settled))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"},
        {"LISTEN_FDS": "many", "LISTEN_FDNAMES": "x"},
    ],
)
def test_what_is_not_given_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert kept.given() == []


def test_a_connection_is_given_to_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        kept.keep(UUID, "0" * 32, theirs.fileno())
        said, descriptors, _, _ = socket.recv_fds(systemd, 4096, 4)
        assert said.decode() == f"FDSTORE=1\nFDNAME={UUID}-{'0' * 32}"
        with socket.socket(fileno=descriptors[0]) as same:
            same.sendall(b"x")
            assert ours.recv(1) == b"x"
        kept.forget(UUID, "0" * 32)
        assert systemd.recv(4096).decode() == f"FDSTOREREMOVE=1\nFDNAME={UUID}-{'0' * 32}"


def test_a_connection_that_is_not_kept_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it waited for where systemd does not read: its guest stands still."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    kept.keep(UUID, "0" * 32, 0)
    assert "is lost if this daemon ends" in caplog.text
    caplog.clear()
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        while not caplog.text:
            kept.keep(UUID, "0" * 32, theirs.fileno())


async def test_a_load_that_is_refused_fails_the_migration(tmp_path: Path) -> None:
    helper, there, stream = Recording(), Recording("not now"), tmp_path / "stream"
    async with bus(tmp_path / "a", helper), qemu(tmp_path / "a") as source:
        await source.ask("migrate", uri=f"exec:cat >{stream}")
        await source.migrated()
    async with bus(tmp_path / "b", there), qemu(tmp_path / "b", "-incoming", "defer") as target:
        await target.ask("migrate-incoming", uri=f"exec:cat {stream}")
        async with asyncio.timeout(10):
            await there.left.wait()
    assert "not now" in target.said


async def test_a_bus_that_is_closed_fails_the_migration(tmp_path: Path) -> None:
    helper = Recording()
    async with bus(tmp_path / "a", helper) as one, qemu(tmp_path / "a") as source:
        await helper.on_bus.wait()
        await one.close()
        await source.ask("migrate", uri="exec:cat >/dev/null")
        assert await source.migrated() == "failed"
    assert helper.saved == 0


async def test_what_nobody_attends_fails_before_anything_is_saved(tmp_path: Path) -> None:
    """A domain that is saved into a file could not be restored from it."""
    helper = Recording()
    helper.expected = False
    async with bus(tmp_path / "a", helper), qemu(tmp_path / "a") as source:
        await source.ask("migrate", uri="exec:cat >/dev/null")
        assert await source.migrated() == "failed"
        assert (await source.ask("query-status"))["running"]
    assert helper.saved == 0
    assert "nobody attends it" in source.said


GARBAGE = [
    b"GET / HTTP/1.0\r\n\r\n",
    b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n" + b"\xff" * 64,
    b"\0AUTH EXTERNAL 30\r\nBEGIN\r\nl\1\0\1\xff\xff\xff\xff\1\0\0\0\xff\xff\xff\xff",
    b"\0AUTH EXTERNAL 30\r\nBEGIN\r\nl\1\0\1\0\0\0\0\1\0\0\0\x08\0\0\0\1\1s\0\xff\xff\0\0",
    b"\0" + b"AUTH\r\n" * 100,
    b"\0" + b"x" * 100_000,
]


@pytest.mark.parametrize("said", GARBAGE)
async def test_who_is_no_qemu_is_let_go(tmp_path: Path, said: bytes) -> None:
    helper = Recording()
    async with bus(tmp_path / "a", helper):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "a")
        writer.write(said)
        async with asyncio.timeout(10):
            try:
                while await reader.read(4096):
                    pass
            except ConnectionError:
                pass
        writer.close()
    assert helper.saved == 0


async def test_only_its_owner_may_connect(tmp_path: Path) -> None:
    async with bus(tmp_path / "a", Recording()):
        status = (tmp_path / "a").stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.getuid())
    assert not (tmp_path / "a").exists()


async def test_another_user_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rights of the socket have become."""

    def another(_connection: socket.socket) -> int:
        return os.getuid() + 1

    monkeypatch.setattr("entourage.attend.bus._user_of", another)
    helper = Recording()
    async with bus(tmp_path / "a", helper):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "a")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
    assert not helper.on_bus.is_set()


def test_the_user_is_whom_the_kernel_says() -> None:
    here, there = socket.socketpair()
    with here, there:
        assert _user_of(here) == os.getuid()


async def test_a_second_client_that_leaves_is_not_the_end(tmp_path: Path) -> None:
    """A QEMU that is given its object anew is on the bus twice for a moment."""
    helper = Recording()
    async with bus(tmp_path / "a", helper) as one:
        async with qemu(tmp_path / "a") as first:
            await helper.on_bus.wait()
            helper.on_bus.clear()
            connection = one.connection
            async with qemu(tmp_path / "a"):
                await helper.on_bus.wait()
                assert one.connection not in {-1, connection}
            helper.on_bus.clear()
            async with qemu(tmp_path / "a"):
                await helper.on_bus.wait()  # by then the second one has left
            await first.ask("query-status")
            assert not helper.left.is_set()
        async with asyncio.timeout(10):
            await helper.left.wait()
        assert one.connection == -1


async def test_who_is_not_let_in_is_not_whose_connection_is_kept(tmp_path: Path) -> None:
    async with bus(tmp_path / "a", Recording()) as one:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "a")
        writer.write(b"\0AUTH EXTERNAL 30\r\n")
        assert (await reader.readline()).startswith(b"OK")
        assert one.connection == -1
        writer.close()


async def test_words_that_cannot_be_read_end_the_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else QEMU would wait for its answer, and its guest with it."""
    helper = Recording()
    async with bus(tmp_path / "a", helper):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "a")
        writer.write(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n" + call("Load", b"\xff\0\0\0"))
        async with asyncio.timeout(10):
            said = await reader.read()
        writer.close()
    assert said.startswith(b"OK")
    assert said[-1:] == b"\n"  # no answer
    assert helper.loaded == []
    assert "a call of Load is not understood" in caplog.text


def call(member: str, body: bytes) -> bytes:
    """A call of a helper's, as D-Bus has it; its signature promises an array of bytes."""
    fields = b""
    for code, kind, value in (
        (1, b"o", "/org/qemu/VMState1"),
        (2, b"s", "org.qemu.VMState1"),
        (3, b"s", member),
        (8, b"g", "ay" if body else ""),
    ):
        fields += b"\0" * (-len(fields) % 8) + bytes([code, 1]) + kind + b"\0"
        text = value.encode()
        length = bytes([len(text)]) if kind == b"g" else struct.pack("<I", len(text))
        fields += length + text + b"\0"
    head = struct.pack("<cBBBIII", b"l", 1, 0, 1, len(body), 1, len(fields))
    return head + fields + b"\0" * (-len(fields) % 8) + body
