"""Stand-ins for what these tests need of a host: a toolstack, and a daemon's socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.handover.values import Flush, Record, Role
from entourage.hypervisors.attended.toolstack import Arriving, Commands, Note, Shown
from entourage.hypervisors.seams import NoGuest
from entourage.hypervisors.values import MemoryProgress
from entourage.journal.details import SourceDetails, TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.settings.model import Settings


def answering(control: Path, answer: bytes) -> list[dict[str, str]]:
    """Stand in for the daemon, once; what it is asked comes into the list.

    Args:
        control: Its socket; the directory is made.
        answer: What it says.
    """
    control.parent.mkdir(parents=True, exist_ok=True)
    asked: list[dict[str, str]] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(control))
    server.listen()

    def serve() -> None:
        with server, server.accept()[0] as client, client.makefile("rwb") as lines:
            asked.append(json.loads(lines.readline()))
            lines.write(answer)

    threading.Thread(target=serve, daemon=True).start()
    return asked


def recorded(
    settings: Settings,
    uuid: str,
    details: SourceDetails | TargetDetails,
    *records: Record,
    clean: bool = False,
) -> None:
    """Let a host's journal have a migration between a and b.

    Args:
        settings: That host's.
        uuid: The domain's.
        details: Whose say which of the two the host is.
        records: What was decided, one after the other.
        clean: All that it made is undone.
    """
    leaves = isinstance(details, SourceDetails)
    role = Role.SOURCE if leaves else Role.TARGET
    decision = Decision(
        migration="m1",
        role=role,
        domain=uuid,
        name="web1",
        generation=1,
        record=records[0],
        peer_host="b" if leaves else "a",
        details=details,
    )
    with Journal.open(Path(settings.paths.state, "journal.db")) as journal:
        for old, new in itertools.pairwise((None, *records)):
            assert new is not None
            journal.flush(decision, Flush(old, new))
        if clean:
            journal.clean("m1", role)


class StandInWatch:
    """Hears nothing, until a test has it hear something."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[int] = loop.create_future()
        self.running: asyncio.Future[int] = loop.create_future()
        self.over: asyncio.Future[str] = loop.create_future()
        self.word: asyncio.Future[str] = loop.create_future()
        self.more = asyncio.Event()
        self.closed = False

    async def switches(self) -> int:
        return await asyncio.shield(self.stopped)

    async def resumed(self) -> int:
        return await asyncio.shield(self.running)

    async def ended(self) -> str:
        return await asyncio.shield(self.over)

    async def given_up(self) -> str:
        return await asyncio.shield(self.word)

    async def news(self) -> None:
        await self.more.wait()
        self.more.clear()

    async def close(self) -> None:
        self.closed = True


class StandInToolstack:
    """One domain; shows what a test has it show, and notes what is done to it."""

    def __init__(
        self,
        uuid: str,
        now: Shown | Exception = Shown.RUNNING,
        domain: Domain | Exception | None = None,
    ) -> None:
        self.way_back = True
        self.uuid = uuid
        self.now = now
        self.domain = domain
        self.job = False
        self.written: Note | None = None
        self.writes = 0
        self.objects: list[str] = []
        self.refuses: Exception | None = None
        self.gave_up = 0
        self.looks = 0
        self.cleared = 0
        self.looking: asyncio.Event | None = None
        self.coming = Arriving(name="web1", uuid=uuid, note=None)
        self.changed: asyncio.Queue[str | Exception] = asyncio.Queue()

    async def shown(self, uuid: str) -> Shown:
        assert uuid == self.uuid
        self.looks += 1
        if self.looking is not None:
            await self.looking.wait()
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    async def running(self) -> list[str]:
        return [self.uuid] if self.now is Shown.RUNNING else []

    async def read(self, uuid: str) -> Domain:
        if isinstance(self.domain, Exception):
            raise self.domain
        assert self.domain is not None
        return self.domain

    async def changes(self) -> AsyncIterator[str]:
        while True:
            what = await self.changed.get()
            if isinstance(what, Exception):
                raise what
            yield what

    async def migrates(self, uuid: str) -> bool:
        return self.job

    async def progress(self, uuid: str) -> MemoryProgress:
        return MemoryProgress(remaining=0, total=0, dirty_rate=0.0, rate=0.0, iteration=0)

    async def give_up(self, uuid: str) -> None:
        self.gave_up += 1
        self.now = Shown.RUNNING

    async def watch(self, uuid: str) -> StandInWatch:
        return StandInWatch()

    async def note(self, uuid: str) -> Note | None:
        return self.written

    async def write_note(self, uuid: str, note: Note | None) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.written = note
        self.writes += 1

    async def add_object(self, uuid: str, socket: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.objects = [socket]

    async def remove_object(self, uuid: str) -> None:
        self.objects = []

    async def arriving(self, description: str) -> Arriving:
        if not description:
            raise HypervisorError("no XML")
        return self.coming

    def with_object(self, description: str, socket: str) -> str:
        return f"{description} with {socket}"

    async def clear_notes(self) -> None:
        self.cleared += 1

    async def commands(self, domain: Domain) -> Commands:
        name = domain.name
        return Commands(
            see=f"see {name}",
            resume=f"resume {name}",
            end=f"end {name}",
            abort=f"abort {name}",
        )

    def guest_agent(self, domain: Domain) -> NoGuest:
        return NoGuest()

    async def owner(self) -> int:
        return -1
