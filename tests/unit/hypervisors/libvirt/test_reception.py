"""What libvirt had sent into a save is taken by it again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import socket
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.local import listening_here
from entourage.hypervisors.libvirt import reception as module
from entourage.hypervisors.libvirt.connection import Connection, RefusedError
from entourage.hypervisors.libvirt.constants import Flag, Parameter
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.reception import Reception, elsewhere
from tests.unit.hypervisors.libvirt.fakes import Failed, use_fakes

DOMAIN = Domain(name="web1", uuid="5b6e6d0e-0000-4000-8000-000000000001", memory=1 << 28)
HOST = b"<hostuuid>11111111-0000-4000-8000-000000000001</hostuuid>"
COOKIE = b"<qemu-migration><hostname>a</hostname>" + HOST + b"</qemu-migration>\0"
XML = "<domain/>"


class Stream:
    """A fake of ``virStream``.

    Args:
        message: Bytes that one of its messages has at most.
        refuses: Whether libvirt takes none.
    """

    def __init__(self, message: int = 3, *, refuses: bool = False) -> None:
        self.taken, self.size = hashlib.sha256(), 0
        self.message, self.finished, self.refuses = message, False, refuses

    def send(self, data: ctypes.Array[ctypes.c_char]) -> None:
        if self.refuses:
            raise Failed("broken pipe")
        self.taken.update(data)
        self.size += len(data)

    def finish(self) -> None:
        self.finished = True


class Phases:
    """A fake of libvirt's phases."""

    def __init__(self, known: Known, status: str) -> None:
        self.known, self.status = known, status
        self.told: list[Any] = []

    def prepare_tunnel(
        self, _connection: Any, _stream: Any, parameters: Any, cookie: bytes, flags: Flag
    ) -> None:
        self.told.append(("prepare", dict(parameters), flags))
        assert HOST not in cookie
        self.known.migration = self.status

    def send(self, stream: Stream, address: int, count: int) -> int:
        taken = min(count, stream.message)
        stream.send((ctypes.c_char * taken).from_address(address))
        return taken

    def finish(self, *_: Any, cancelled: bool) -> None:
        self.told.append(("finish", cancelled))


class Restore:
    """A reception under way, with fakes.

    Args:
        path: Where memory is sent to.
        monkeypatch: Puts the fakes in place.
        status: What QEMU says of its migration.
        refuses: Whether libvirt takes no stream.
    """

    def __init__(
        self,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
        status: str = "completed",
        *,
        refuses: bool = False,
    ) -> None:
        use_fakes(monkeypatch, "reception")
        self.stream = Stream(refuses=refuses)
        known = Known()
        self.phases = Phases(known, status)
        monkeypatch.setattr(module, "phases", lambda: self.phases)

        async def opened(uri: str) -> Connection:
            assert uri == "qemu:///system"
            raw = SimpleNamespace(newStream=self.new, close=self.closed)
            return Connection(raw, uri)

        async def arrived() -> None:
            if known.migration == "failed":
                raise HypervisorError("the machine being built has failed: bad section")

        monkeypatch.setattr(module.Connection, "open", opened)
        plan = LibvirtPlan(cookie=COOKIE, parameters={Parameter.DEST_XML: XML})
        self.path = path
        self.reception = Reception(
            "qemu:///system", DOMAIN.name, plan, arrived, listening_here(path)
        )

    def new(self, _flags: int) -> Stream:
        return self.stream

    def closed(self) -> None:
        """Nothing is open."""

    async def send(self, data: bytes, times: int = 1) -> None:
        def sent() -> None:
            with socket.socket(socket.AF_UNIX) as source:
                source.connect(str(self.path))
                with contextlib.suppress(OSError):
                    for _ in range(times):
                        source.sendall(data)

        await asyncio.to_thread(sent)


async def test_all_of_it_is_taken_and_its_guest_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is defined, and nothing is let run."""
    one = Restore(tmp_path / "m.sock", monkeypatch)
    taking = asyncio.create_task(one.reception.take())
    await one.send(b"0123456789")
    await taking
    assert one.stream.taken.digest() == hashlib.sha256(b"0123456789").digest()
    assert one.stream.finished
    [(_, parameters, flags), finish] = one.phases.told
    assert parameters == {Parameter.DEST_XML: XML}
    assert flags & Flag.PAUSED
    assert flags & Flag.TUNNELLED
    assert not flags & Flag.PERSIST_DEST
    assert finish == ("finish", False)
    assert not one.path.exists()
    await one.reception.end()
    assert len(one.phases.told) == 2  # what has arrived is not cancelled here


async def test_memory_is_no_object_of_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB, in messages that are no part of what comes at once; less is allocated than one."""
    one = Restore(tmp_path / "m.sock", monkeypatch)
    one.stream.message = 100_000
    data = os.urandom(1 << 20)
    taking = asyncio.create_task(one.reception.take())
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        await one.send(data, 64)
        await taking
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await one.reception.end()
    assert peak - before < 90_000
    assert one.stream.size == 64 << 20
    assert one.stream.taken.digest() == hashlib.sha256(data * 64).digest()


async def test_one_that_fails_is_told_and_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Restore(tmp_path / "m.sock", monkeypatch, "failed")
    taking = asyncio.create_task(one.reception.take())
    await one.send(b"0123456789")
    with pytest.raises(HypervisorError, match="has failed: bad section"):
        await taking
    await one.reception.end()
    assert one.phases.told[-1] == ("finish", True)


async def test_a_stream_that_libvirt_does_not_take_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Restore(tmp_path / "m.sock", monkeypatch, refuses=True)
    taking = asyncio.create_task(one.reception.take())
    await one.send(b"0123456789")
    with pytest.raises(OSError, match="broken pipe"):
        await taking
    await one.reception.end()


async def test_one_that_nothing_is_sent_to_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Restore(tmp_path / "m.sock", monkeypatch)
    taking = asyncio.create_task(one.reception.take())
    while not one.phases.told:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.001)
    taking.cancel()
    await asyncio.wait({taking})
    await one.reception.end()
    assert one.phases.told[-1] == ("finish", True)


async def test_one_that_is_ended_twice_waits_for_prepare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt goes on with it; what it makes is cancelled only after that."""
    one = Restore(tmp_path / "m.sock", monkeypatch)
    begun, go_on = threading.Event(), threading.Event()

    def prepare(*_: Any) -> None:
        begun.set()
        go_on.wait(5)
        one.phases.told.append("prepared")

    monkeypatch.setattr(one.phases, "prepare_tunnel", prepare)
    taking = asyncio.create_task(one.reception.take())
    await asyncio.to_thread(begun.wait, 5)
    for _ in range(2):
        taking.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await taking
    ending = asyncio.create_task(one.reception.end())
    await asyncio.sleep(0)
    go_on.set()
    await ending
    assert one.phases.told == ["prepared", ("finish", True)]


async def test_one_that_is_not_prepared_is_not_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Restore(tmp_path / "m.sock", monkeypatch)

    def refused(*_: Any) -> None:
        raise RefusedError("libvirt: no such machine type", 1)

    monkeypatch.setattr(one.phases, "prepare_tunnel", refused)
    with pytest.raises(RefusedError):
        await one.reception.take()
    await one.reception.end()
    assert one.phases.told == []


def test_a_cookie_is_another_hosts() -> None:
    changed = elsewhere(COOKIE)
    assert HOST not in changed
    assert changed.endswith(b"\0")
    assert len(changed) == len(COOKIE)
    with pytest.raises(HypervisorError, match="no cookie of libvirt"):
        elsewhere(b"<qemu-migration/>")
