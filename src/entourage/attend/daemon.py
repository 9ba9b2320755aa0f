"""``entourage attend``: attends the migrations of this host's domains, whoever begins them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from entourage import recovery
from entourage.attend import shown
from entourage.attend.attended import Attended
from entourage.attend.domains import Domains
from entourage.attend.notify import notify
from entourage.attend.source import Departure
from entourage.attend.target import Arrival, NotAttendedError
from entourage.attend.words import BEGIN, Begin
from entourage.errors import (
    DomainBusy,
    EntourageError,
    UsageError,
    plain_words,
)
from entourage.events import AnyEvent, Listener
from entourage.hosts.link import Link
from entourage.hosts.local import listening_here
from entourage.hypervisors.attended.descriptor import LIBVIRT, attended_name, open_toolstack
from entourage.hypervisors.attended.toolstack import Note, Shown
from entourage.journal.journal import Journal
from entourage.report.lines import Teller
from entourage.settings.model import Settings

CONTROL: Final = "control"
"""The socket of the hook, and of ``attend --check`` and ``--off``."""
LINK: Final = "link"
"""The socket of other hosts' daemons, which come by ssh and ``attend --answer``."""
_log = logging.getLogger(__name__)
_HYPERVISOR = attended_name(LIBVIRT)
_MOST = 16 << 20  # bytes of a domain's XML, and of what is asked with it
_SETTLE_EVERY = 60.0  # seconds between two attempts to settle what a crash has left
_SETTLES_SOON = 2.0
_COMES_BACK_WITHIN = 25.0  # seconds for migrations from here to go back when the daemon is stopped
_LOOKS_AGAIN = 1.0  # seconds, at a domain that another command works on
_GONE = frozenset({"release", "stopped"})


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the hook or a command asks, as one line of JSON.

    Attributes:
        hook: The hook's words: the domain's name, operation and sub-operation.
        xml: What it was given.
        off, on: Stop attending, or attend again, the domain of that name; ``*``: all.
    """

    hook: tuple[str, ...] = ()
    xml: str = ""
    off: str = ""
    on: str = ""


class Answered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer.

    Attributes:
        xml: What the hook is to print; empty: nothing.
        refuse: Why the migration is refused; empty: it is not.
        done: What a command has done.
    """

    xml: str = ""
    refuse: str = ""
    done: str = ""


class Daemon:
    """The daemon of one host.

    Args:
        settings: This host's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._toolstack = open_toolstack(settings, LIBVIRT)
        self._domains = Domains(settings, self._toolstack, self._look_again)
        self._departures: dict[asyncio.Task[None], Departure] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()
        self._settle_now = asyncio.Event()

    async def run(self) -> None:
        """Attend until a signal comes.

        Raises:
            EntourageError: It cannot begin: its sockets cannot be made, the journal not be opened.
        """
        with Journal.open(Path(self._settings.paths.state, "journal.db")):
            pass  # what cannot work is told at once
        place = shown.directory(self._settings)
        self._domains.open()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._ended.set)
        control = await asyncio.start_unix_server(
            self._on_control, sock=listening_here(place / CONTROL), limit=_MOST
        )
        links = await asyncio.start_unix_server(
            self._on_link, sock=listening_here(place / LINK), limit=1 << 20
        )
        notify("READY=1\nSTATUS=looks for libvirtd")
        self._start(self._follow())
        self._start(self._settle())
        try:
            await self._ended.wait()
        finally:
            notify("STOPPING=1")
            control.close()
            links.close()
            await self._stop()

    async def _stop(self) -> None:
        if under_way := [task for task, each in self._departures.items() if each.interrupt()]:
            await asyncio.wait(under_way, timeout=_COMES_BACK_WITHIN)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._domains.close()

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s", plain_words(error))

    def _look_again(self, uuid: str) -> None:
        async def later() -> None:
            await asyncio.sleep(_LOOKS_AGAIN)
            await self._domains.look(uuid)

        self._start(later())

    async def _follow(self) -> None:
        """Look at a domain when something becomes of it; at all of them when libvirtd is there."""
        async for uuid in self._domains.follow():
            if uuid:
                self._start(self._domains.look(uuid))
                continue
            notify(f"STATUS=attends {len(self._domains)} domains")
            _log.info("attends %d domains", len(self._domains))

    # What the target's daemon asks

    async def _on_link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silence = self._settings.migration.link_silence
        link = Link(reader, writer, peer="the target", silence=silence)
        departures: list[asyncio.Task[None]] = []

        async def on_begin(begin: Begin) -> None:
            if departures:
                raise UsageError("one link is about one migration")
            link.peer = begin.target
            one = self._domains.get(begin.uuid)
            departure = Departure(
                one,
                begin,
                link,
                toolstack=self._toolstack,
                hypervisor=_HYPERVISOR,
                settings=self._settings,
                listening=self._listener,
            )
            task = self._start(self._depart(departure, begin.uuid, link))
            departures.append(task)
            self._departures[task] = departure
            task.add_done_callback(lambda done: self._departures.pop(done, None))

        link.on(BEGIN, on_begin)
        try:
            await link.serve()
        finally:
            link.close()
            if departures:
                await asyncio.wait(departures)

    async def _depart(self, departure: Departure, uuid: str, link: Link) -> None:
        try:
            await departure.run()
        finally:
            link.close()
        await self._domains.look(uuid)
        self._settle_now.set()

    def _listener(self, uuid: str, name: str) -> Listener:
        """What takes the events of a migration from here: the log, and a file."""
        teller, events = Teller(verbose=True), shown.EventsFile(self._settings, uuid)

        def listen(event: AnyEvent) -> None:
            events.write(event)
            if line := teller.tell(event):
                _log.info("%s: %s", name, line.strip())

        return listen

    # What the hook asks, and commands

    async def _on_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = msgspec.json.decode(await reader.readline(), type=Asked)
            answered = await self._answer(asked)
            writer.write(msgspec.json.encode(answered) + b"\n")
            await writer.drain()
        except (OSError, ValueError):
            pass  # who asked has gone, or asked nothing that is understood
        finally:
            writer.close()

    async def _answer(self, asked: Asked) -> Answered:
        try:
            match asked:
                case Asked(hook=(_, "migrate", "begin", *_)):
                    return await self._arriving(asked.xml)
                case Asked(hook=(_, operation, *_)) if operation in _GONE:
                    self._gone(asked.xml)
                    return Answered()
                case Asked(off=name) if name:
                    return Answered(done=await self._domains.switch(name, off=True))
                case Asked(on=name) if name:
                    return Answered(done=await self._domains.switch(name, off=False))
                case _:
                    return Answered()
        except (EntourageError, OSError) as error:
            return Answered(refuse=plain_words(error))

    async def _arriving(self, xml: str) -> Answered:
        """A domain is about to come: its devices first.

        Raises:
            EntourageError: It may not.
        """
        coming = self._toolstack.arriving(xml)
        note = coming.note
        if note is None:
            return Answered()
        begin = _begin(coming.uuid, note)
        uuid = begin.uuid
        old = self._domains.get(uuid)
        if old is not None and (old.busy or await self._toolstack.shown(uuid) is Shown.RUNNING):
            raise DomainBusy(f"{coming.name} runs here, or is on its way")
        one = self._domains.expect(uuid)
        await one.open()
        arrival = Arrival(
            one,
            note.host,
            begin,
            toolstack=self._toolstack,
            hypervisor=_HYPERVISOR,
            settings=self._settings,
        )
        running = self._start(self._arrive(arrival, one))
        try:
            await arrival.prepared(running)
        except NotAttendedError as error:
            if self._settings.attend.unattended == "refuse":
                raise
            _log.error("%s comes without its devices: %s", coming.name, error)
            return Answered()
        return Answered(xml=self._toolstack.with_object(xml, str(one.path)))

    async def _arrive(self, arrival: Arrival, one: Attended) -> None:
        try:
            await arrival.run()
        finally:
            one.target = None
            await self._domains.look(one.uuid)
            await self._domains.left_out(one.uuid)
            self._settle_now.set()

    def _gone(self, xml: str) -> None:
        coming = self._toolstack.arriving(xml)
        one = self._domains.get(coming.uuid.lower())
        if one is not None and one.target is not None:
            one.target.end("libvirt has ended its machine")

    # What a crash has left

    async def _settle(self) -> None:
        """Settle what was left unsettled, of attended migrations, again and again."""
        while True:
            left = False
            try:
                for name in self._unsettled():
                    done = await recovery.recover(self._settings, name)
                    left = left or any(not one.settled for one in done)
                    for one in done:
                        _log.info("%s: %s -> %s", one.domain, one.before, one.after)
            except EntourageError as error:
                _log.error("what was left is not settled: %s", error)
            self._settle_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLES_SOON if left else _SETTLE_EVERY):
                    await self._settle_now.wait()

    def _unsettled(self) -> set[str]:
        path = Path(self._settings.paths.state, "journal.db")
        with Journal.open(path, read_only=True) as journal:
            left = [one for one in journal.decisions() if not one.settled]
        ours = {one.domain for one in left if one.hypervisor == _HYPERVISOR}
        return {uuid for uuid in ours if not self._domains.is_busy(uuid)}


def _begin(uuid: str, note: Note) -> Begin:
    """What the source is asked; raises UsageError where the hook was given something else."""
    said = {"uuid": uuid.lower(), "nonce": note.nonce, "target": socket.gethostname()}
    try:
        return msgspec.convert(said, Begin)
    except msgspec.ValidationError as error:
        raise UsageError(f"the domain's metadata is not Entourage's: {error}") from error


def main(settings: Settings) -> int:
    """Run it; returns the exit status.

    Raises:
        EntourageError: It cannot begin.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(Daemon(settings).run())
    return 0
