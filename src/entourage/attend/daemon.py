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

from entourage.attend import kept, shown
from entourage.attend.attended import Attended
from entourage.attend.control import Answered, Asked, unless_gone
from entourage.attend.domains import Domains
from entourage.attend.notify import notify
from entourage.attend.settling import Settling
from entourage.attend.source import Departure
from entourage.attend.target import Arrival, NotAttendedError
from entourage.attend.words import BEGIN, Begin, SshHost
from entourage.errors import (
    DomainBusy,
    EntourageError,
    HypervisorError,
    UsageError,
    ours,
    plain_words,
)
from entourage.events import AnyEvent, Finished, Listener
from entourage.hosts.link import Link
from entourage.hosts.local import listening_here
from entourage.hypervisors.attended.descriptor import (
    attended_name,
    open_toolstack,
    toolstack_here,
)
from entourage.hypervisors.attended.origin import SHOWN, Here, Where
from entourage.hypervisors.attended.toolstack import ENDED, Note
from entourage.journal.journal import Journal
from entourage.journal.lock import domain_lock
from entourage.report.lines import Teller
from entourage.report.text import clean
from entourage.settings.model import Settings

CONTROL: Final = "control"
"""The socket of the hook, and of ``attend --check`` and ``--off``."""
LINK: Final = "link"
"""The socket of other hosts' daemons, which come by ssh and ``attend --answer``."""
_log = logging.getLogger(__name__)
_MOST = 16 << 20  # bytes of a domain's XML, and of what is asked with it
_COMES_BACK_WITHIN = 25.0  # seconds for migrations from here to go back when the daemon is stopped
_ENDS_WITHIN = 35.0  # seconds for all else: libvirt waits for 30 for what it is at
_GONE = frozenset({"release", "stopped"})


def log_event(teller: Teller, name: str, event: AnyEvent) -> None:
    """Have the log say what an event of a domain's migration says, and what is left to be done."""
    if line := teller.tell(event):
        _log.info("%s: %s", name, line.strip())
    if isinstance(event, Finished):
        for problem in event.problems:
            _log.warning("%s: left to be done: %s", name, clean(problem))


class Daemon:
    """The daemon of one host.

    Args:
        settings: This host's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        name = toolstack_here(settings)
        self._hypervisor = attended_name(name)
        self._toolstack = open_toolstack(settings, name)
        self._domains = Domains(settings, self._toolstack, self._look_again)
        self._settling = Settling(settings, self._domains, self._hypervisor)
        self._departures: dict[asyncio.Task[None], Departure] = {}
        self._arrivals: dict[asyncio.Task[None], Arrival] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._kept: list[asyncio.Event] = []
        self._to_be_looked_at: dict[str, asyncio.TimerHandle] = {}
        self._ended = asyncio.Event()
        self._failed: BaseException | None = None

    async def run(self) -> None:
        """Attend until a signal comes.

        Raises:
            UsageError: Another daemon attends here.
            EntourageError: It cannot begin: its sockets cannot be made, the journal not be opened;
                or it cannot go on.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(
                    domain_lock(Path(self._settings.paths.run), shown.LOCK, "attends migrations")
                )
            except DomainBusy as busy:
                raise UsageError(
                    f"migrations are attended here already ({busy.message})",
                    remedy="one daemon is enough for a host: `systemctl status entourage-attend`",
                ) from busy
            await self._run()
        if self._failed is not None:
            raise ours(self._failed)

    def end(self) -> None:
        """Have ``run`` return, as a signal does."""
        self._ended.set()

    async def _run(self) -> None:
        with Journal.open(Path(self._settings.paths.state, "journal.db")):
            pass  # what cannot work is told at once
        place = shown.directory(self._settings)
        self._domains.open()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.end)
        control = await asyncio.start_unix_server(
            self._on_control, sock=listening_here(place / CONTROL), limit=_MOST
        )
        links = await asyncio.start_unix_server(
            self._on_link, sock=listening_here(place / LINK), limit=1 << 20
        )
        notify("READY=1\nSTATUS=looks for domains")
        for uuid, nonce, connection in kept.given():
            settled = asyncio.Event()
            self._kept.append(settled)
            self._start(kept.answer(self._settings, uuid, nonce, connection, settled))
        for work in (self._follow(), self._settling.run()):
            self._start(work).add_done_callback(self._cannot_go_on)
        try:
            await self._ended.wait()
        finally:
            notify("STOPPING=1")
            control.close()
            links.close()
            await self._stop()

    async def _stop(self) -> None:
        under_way = [task for task, each in self._departures.items() if each.interrupt()]
        under_way += [task for task, each in self._arrivals.items() if each.in_the_air]
        under_way += [self._start(each.wait()) for each in self._kept if not each.is_set()]
        if under_way:
            await asyncio.wait(under_way, timeout=_COMES_BACK_WITHIN)
        for planned in self._to_be_looked_at.values():
            planned.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_ENDS_WITHIN)
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

    def _cannot_go_on(self, task: asyncio.Task[Any]) -> None:
        """What must run as long as the daemon does has ended: systemd starts another."""
        if not task.cancelled():
            self._failed = task.exception() or RuntimeError("nothing is followed any more")
            self._ended.set()

    def _look_again(self, uuid: str, pause: float) -> None:
        """Look at a domain after so many seconds; of several times, at the first."""

        def look() -> None:
            del self._to_be_looked_at[uuid]
            self._start(self._domains.look(uuid))

        loop = asyncio.get_running_loop()
        planned = self._to_be_looked_at.get(uuid)
        if planned is not None:
            if planned.when() <= loop.time() + pause:
                return
            planned.cancel()
        self._to_be_looked_at[uuid] = loop.call_later(pause, look)

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
        begun: list[str] = []
        departures: list[asyncio.Task[None]] = []

        async def on_begin(begin: Begin) -> None:
            if begun:
                raise UsageError("one link is about one migration")
            begun.append(begin.uuid)
            link.peer = begin.target
            async with self._domains.turn(begin.uuid):
                departure = Departure(
                    self._domains.get(begin.uuid),
                    begin,
                    link,
                    toolstack=self._toolstack,
                    hypervisor=self._hypervisor,
                    settings=self._settings,
                    listening=self._listener,
                )
            task = self._start(self._depart(departure, begin.uuid, link))
            departures.append(task)
            self._departures[task] = departure
            task.add_done_callback(lambda done: self._departures.pop(done, None))

        async def on_where(asked: Where) -> Here:
            return Here(shown=await self._toolstack.shown(asked.uuid))

        link.on(BEGIN, on_begin)
        link.on(SHOWN, on_where)
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
        self._settling.soon()

    def _listener(self, uuid: str, name: str) -> Listener:
        """What takes the events of a migration from here: the log, and a file."""
        teller, events = Teller(verbose=True), shown.EventsFile(self._settings, uuid)

        def listen(event: AnyEvent) -> None:
            events.write(event)
            log_event(teller, name, event)

        return listen

    # What the hook asks, and commands

    async def _on_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = msgspec.json.decode(await reader.readline(), type=Asked)
            answered = await unless_gone(reader, writer, self._answer(asked))
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
                case Asked(hook=(_, "migrate", "started", *_)):
                    await self._waits_for_stream(asked.xml)
                    return Answered()
                case Asked(hook=(_, operation, *_)) if operation in _GONE:
                    await self._gone(asked.xml)
                    return Answered()
                case Asked(off=name) if name:
                    return Answered(done=await self._domains.switch(name, off=True))
                case Asked(on=name) if name:
                    return Answered(done=await self._domains.switch(name, off=False))
                case _:
                    return Answered()
        except (EntourageError, OSError) as error:
            # The other host, a tool or a QEMU has said some of it: virsh shows it as it is.
            return Answered(refuse="\n".join(map(clean, plain_words(error).split("\n"))))

    async def _arriving(self, xml: str) -> Answered:
        """A domain is about to come: its devices first.

        Raises:
            EntourageError: It may not.
        """
        coming = await self._toolstack.arriving(xml)
        note = coming.note
        if note is None:
            return Answered()
        begin = _begin(coming.uuid, note)
        async with self._domains.turn(begin.uuid):
            arrival, one = await self._expect(coming.name, note.host, begin)
            running = self._start(self._arrive(arrival, one))
            self._arrivals[running] = arrival
            running.add_done_callback(lambda done: self._arrivals.pop(done, None))
        try:
            await arrival.prepared(running)
        except asyncio.CancelledError:  # libvirt does not wait for the answer any more
            running.cancel()
            raise
        except NotAttendedError as error:
            if self._settings.attend.unattended == "refuse":
                raise
            _log.error("%s comes without its devices: %s", coming.name, error)
            return Answered()
        return Answered(xml=self._toolstack.with_object(xml, str(one.path)))

    async def _expect(self, name: str, source: str, begin: Begin) -> tuple[Arrival, Attended]:
        """A domain is about to come, and nothing else becomes of it meanwhile; in its turn."""
        uuid = begin.uuid
        if self._domains.is_busy(uuid) or await self._toolstack.shown(uuid) not in ENDED:
            raise DomainBusy(f"{name} is here, or on its way")
        one = self._domains.expect(uuid)
        try:
            await one.open()
            arrival = Arrival(
                one,
                source,
                begin,
                toolstack=self._toolstack,
                hypervisor=self._hypervisor,
                settings=self._settings,
            )
        except BaseException:
            self._start(self._domains.left_out(uuid))
            raise
        return arrival, one

    async def _arrive(self, arrival: Arrival, one: Attended) -> None:
        try:
            await arrival.run()
        finally:
            one.target = None
            await self._domains.look(one.uuid)
            await self._domains.left_out(one.uuid)
            self._settling.soon()

    async def _waits_for_stream(self, said: str) -> None:
        """The QEMU of a domain that comes has started, of a toolstack whose hook says so."""
        one = self._domains.get((await self._toolstack.arriving(said)).uuid)
        if one is None or (target := one.target) is None:
            return
        try:
            await self._toolstack.add_object(one.uuid, str(one.path))
        except HypervisorError as error:
            # Nobody may rely on what this hook ends with: a target that cannot load it ends here.
            target.end(f"its QEMU was not given its object: {error}")
            raise

    async def _gone(self, xml: str) -> None:
        coming = await self._toolstack.arriving(xml)
        one = self._domains.get(coming.uuid.lower())
        if one is not None and one.target is not None:
            one.target.end("libvirt has ended its machine")


def _begin(uuid: str, note: Note) -> Begin:
    """What the source is asked; raises UsageError where the hook was given something else."""
    said = {"uuid": uuid.lower(), "nonce": note.nonce, "target": socket.gethostname()}
    try:
        msgspec.convert(note.host, SshHost)
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
