"""All that a migration has open while it goes on: machine, lock, journal and the link.

``open_session`` opens them in the order in which they can be refused, and closes them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec

from entourage import messages
from entourage.admission import known
from entourage.clock import Clock
from entourage.devices.base import AnyController, Here, Options
from entourage.errors import EntourageError, LinkLost, NoAgent, PeerVersionError, UsageError
from entourage.events import Kind, Listener
from entourage.handover.values import Message, Role
from entourage.hosts.link import Link
from entourage.hosts.proxy_agent import own_settings, proxy_settings
from entourage.hosts.route import Route, host_of
from entourage.hosts.ssh import forwarded
from entourage.hypervisors.agents import agent_link
from entourage.hypervisors.base import DataPlane, Machine, Secret
from entourage.hypervisors.registry import (
    counterpart,
    elsewhere,
    in_directory,
    name_elsewhere,
    usual,
)
from entourage.hypervisors.values import LocalData
from entourage.journal.details import SourceDetails
from entourage.journal.journal import Journal, MigrationLedger
from entourage.journal.lock import DomainLock, domain_lock
from entourage.settings.model import Settings
from entourage.steps import Refusal, Step
from entourage.version import __version__

Reply = TypeVar("Reply")


class Opening(Protocol):
    """What opens a session, and closes it again: ``open_session``."""

    def __call__(  # noqa: D102 - as there
        self,
        migration: str,
        name: str,
        route: Route,
        *,
        connect: str | None,
        settings: Settings,
        options: Options,
        tool: str | None,
        emit: Listener,
        clock: Clock,
    ) -> contextlib.AbstractAsyncContextManager[Session]: ...


_AGAIN_WITHIN = 20.0  # seconds for one attempt to reach the target again
_MOST_TOLD = 100  # failures of a target that are kept
_WEAKER = (
    "has no Entourage: this host keeps its half of the record, asks its libvirt over the network,"
    " and cannot put its TPM's state on the disk (docs/libvirt.md tells what is weaker)"
)


class FailuresThere:
    """What went wrong on the target without having been asked for."""

    def __init__(self) -> None:
        self.all: list[EntourageError] = []
        self._arrived = asyncio.Event()

    def add(self, error: EntourageError) -> None:
        """The target has told of one."""
        if len(self.all) < _MOST_TOLD:
            self.all.append(error)
        self._arrived.set()

    @property
    def last(self) -> EntourageError | None:
        """The last of them, if any."""
        return self.all[-1] if self.all else None

    async def first(self) -> NoReturn:
        """Wait for the first, and raise it."""
        await self._arrived.wait()
        raise self.all[0]


@dataclass(slots=True)
class Session:
    """All that a migration has open.

    Attributes:
        migration: The migration's id.
        kind: What is done with the domain.
        host: This host's name.
        source, target: The names of both hosts; of a save, its directory is one of them.
        hypervisor: The name of this host's.
        hypervisor_there: The name of the target's, of the same kind: who has it is asked.
        machine: The running domain.
        journal, lock: This host's, for this domain.
        link: To the target's agent; another one after it was lost in doubt.
        welcome: What the agent said of itself.
        clock: Puts both hosts' moments on one scale.
        held: Takes what else is to be closed at the end.
        has_landed_there: Set when the target has said LANDED.
        failures_there: What went wrong on the target without having been asked for.
        blockers: What the hypervisor itself marks as not migratable.
        landed: Both sides have said that memory is all there.
        address: Where memory and disks go, once TEST has found it out; numeric, or empty where the
            hypervisor knows best.
    """

    migration: str
    kind: Kind
    host: str
    source: str
    target: str
    hypervisor: str
    hypervisor_there: str
    settings: Settings
    options: Options
    tool: str | None
    machine: Machine
    journal: Journal
    lock: DomainLock
    link: Link
    welcome: messages.Welcome
    clock: Clock
    emit: Listener
    held: contextlib.AsyncExitStack
    has_landed_there: asyncio.Event = field(default_factory=asyncio.Event)
    failures_there: FailuresThere = field(default_factory=FailuresThere)
    blockers: tuple[Refusal, ...] = ()
    landed: bool = False
    address: str = ""

    @property
    def uuid(self) -> str:
        """The domain's UUID; a running domain has one."""
        return self.machine.domain.uuid or ""

    @property
    def is_agentless(self) -> bool:
        """Whether no Entourage is on the target, and a proxy agent answers for it."""
        there = elsewhere(self.hypervisor_there)
        return there is not None and there.is_host

    @property
    def keeper(self) -> str:
        """The host that the target's half of the record is on."""
        if self.kind == "move":
            return self.host if self.is_agentless else self.target
        return host_of(self.target) or self.host

    @property
    def weaker(self) -> str:
        """What the user is to know of that; empty where an agent is there."""
        return f"{self.target} {_WEAKER}" if self.is_agentless else ""

    def plane(self, generation: int, *, paused: bool) -> DataPlane:
        """How disks and memory will travel, with a fresh key.

        Args:
            generation: The domain's, as this host's journal counts it.
            paused: The guest was paused by its user.
        """
        wanted = self.settings.migration
        local = None
        if self.kind != "move":
            disks = {disk.id: disk.path for disk in self.machine.domain.block}
            local = LocalData(
                socket=_local_socket(self.settings, self.migration),
                far=bool(host_of(self.target)),
                generation=generation,
                paused=paused,
                checkpoint=self.kind == "checkpoint",
                copies={disk: disks[disk] for disk in self.options.copies},
                sealed=self.options.sealed,
                filters=self.options.filters,
                revert=self.options.revert,
            )
        encrypted = wanted.tls and local is None
        secret = Secret("entourage", secrets.token_bytes(32)) if encrypted else None
        return DataPlane(
            local=local,
            address=self.address,
            ports=wanted.ports,
            secret=secret,
            bandwidth=wanted.bandwidth,
            host=self.target,
        )

    async def forward(self, plane: DataPlane) -> None:
        """Have ssh take what goes to a save on another host; written down before it is made.

        Args:
            plane: What ``plane`` has said.

        Raises:
            LinkLost: It does not.
        """
        local, far = plane.local, host_of(self.target)
        if local is None or not local.far:
            return
        sockets = [local.socket, *(local.disk_socket(disk) for disk in sorted(local.copies))]
        ledger = MigrationLedger(self.journal, self.migration, Role.SOURCE)
        for path in sockets:
            ledger.record("scratch", path=path)
        await self.held.enter_async_context(forwarded(far, self.settings, sockets))

    def here(self, controller: AnyController, half: str, settled: Callable[[], None]) -> Here:
        """What the source half of a controller works with, in this half of a step."""
        label = controller.device.label

        async def peer(request: Any, reply: type[Reply]) -> Reply:
            ask = messages.AskDevice(device=label, half=half, request=request)
            return await self.link.call(messages.DEVICE.replying(reply), ask)

        return Here(
            migration=self.migration,
            source=self.source,
            target=self.target,
            machine=self.machine,
            settings=self.settings,
            options=self.options,
            peer=peer,
            emit=self.emit,
            now=self.clock.now,
            blockers=self.blockers,
            settled=settled,
        )

    def send(self, message: Message) -> None:
        """Send a hand-over message, if there is a link; nobody waits for its arrival."""
        with contextlib.suppress(LinkLost):
            self.link.tell(messages.HANDOVER, messages.Say(message.kind.value, message.migration))

    def details(self, step: Step, controllers: Sequence[AnyController] = ()) -> SourceDetails:
        """What recovery needs on this host: no key, no secret."""
        return SourceDetails(
            domain=self.machine.domain,
            was_running=self.machine.was_running,
            hypervisor=self.hypervisor,
            hypervisor_there=self.hypervisor_there,
            ssh=self.settings.ssh,
            keep_source_disks=self.options.keep_source_disks,
            tool=self.tool,
            tools=self.settings.tool,
            step=step,
            memos={
                controller.device.label: controller.memo()
                for controller in controllers
                if step > Step.TEST or controller.undoes_prepare
            },
        )

    def note(self, doing: str) -> None:
        """Set what ``status`` shows of this migration; costs no sync."""
        self.lock.note(f"migrates {self.machine.domain.name} to {self.target}: {doing}")

    def progress(self, doing: str) -> None:
        """Do ``note``, and tell the target, for its ``status``. Never called in the blackout."""
        self.note(doing)
        if self.welcome.protocol >= messages.TOLD_PROGRESS:
            with contextlib.suppress(LinkLost):
                said = messages.Progress(doing=doing[: messages.MOST_TOLD])
                self.link.tell(messages.PROGRESS, said)

    async def landed_there(self) -> None:
        """Wait until the target has said that all of memory is there."""
        await self.has_landed_there.wait()


def _kind(hypervisor: str, hypervisor_there: str) -> Kind:
    """What is done with a domain, by the names of both hypervisors."""
    if in_directory(hypervisor_there):
        return "save"
    return "restore" if in_directory(hypervisor) else "move"


def _local_socket(settings: Settings, migration: str) -> str:
    """Where memory is taken that does not leave this host, or leaves it by ssh alone."""
    return str(Path(own_settings(settings).paths.run, f"{migration}.sock"))


def hello_of(migration: str, source: str, hypervisor: str) -> messages.Hello:
    """The first word on a link: who calls, about which migration, and for which hypervisor."""
    return messages.Hello(
        version=__version__,
        protocol=messages.OLDEST,
        newest=messages.NEWEST,
        migration=migration,
        source=source,
        hypervisor=hypervisor,
    )


async def greet(link: Link, clock: Clock, hello: messages.Hello) -> messages.Welcome:
    """Exchange Hello and Welcome, agree on a protocol, and measure the clock's offset.

    Raises:
        LinkLost, PeerVersionError: There is nobody to talk to.
    """
    asked = time.monotonic_ns()
    welcome = await link.call(messages.HELLO, hello)
    asked, welcome = time.monotonic_ns(), await link.call(messages.HELLO, hello)
    clock.set_by(asked, time.monotonic_ns(), welcome.clock)
    if not hello.protocol <= welcome.protocol <= (hello.newest or hello.protocol):
        raise PeerVersionError(
            f"Entourage {welcome.version} there speaks protocol {welcome.protocol},"
            f" {__version__} here speaks {hello.speaks}",
            host=link.peer,
            remedy="install the same version on both hosts",
        )
    return welcome


@contextlib.asynccontextmanager
async def open_session(
    migration: str,
    name: str,
    route: Route,
    *,
    connect: str | None,
    settings: Settings,
    options: Options,
    tool: str | None,
    emit: Listener,
    clock: Clock,
) -> AsyncGenerator[Session]:
    """Open the domain, its lock, the journal and the link, and close them again.

    Args:
        migration: The migration's id.
        name: The domain's name.
        route: How the target is reached.
        connect: The URI of the libvirtd that has the domain; None: whoever has it.
        settings: This host's.
        options: What the user asked for, of devices.
        tool: An external tool for every class.
        emit: Takes the events.
        clock: The migration's.

    Raises:
        UsageError: No such domain, or the target is this host.
        DomainBusy: Another command works on the domain.
        JournalError: The journal cannot be trusted.
        LinkError: The target cannot be reached, or has another Entourage.
    """
    if connect is None and route.there is not None:
        connect = usual(route.there)  # who names one there means a domain of its like here
    hypervisor, found = await known(settings, name, connect)
    there = counterpart(hypervisor.name, route.there)
    source, target = socket.gethostname(), route.host
    paths = settings.paths
    if directory := in_directory(hypervisor.name):  # of which this host keeps the record
        source, paths = directory, proxy_settings(settings).paths
    async with contextlib.AsyncExitStack() as stack:
        journal = stack.enter_context(
            Journal.open(Path(paths.state, "journal.db"), keep=settings.journal)
        )
        uuid = found.uuid or ""
        lock = stack.enter_context(
            domain_lock(Path(paths.run), uuid, f"migrates {name} to {target}")
        )
        machine = await hypervisor.machine(name)
        if route.agentless is not None and in_directory(route.agentless):
            machine = machine.saving or machine
        stack.push_async_callback(machine.close)
        reached = await stack.enter_async_context(
            _reached(route, there, hello_of(migration, source, there), settings, clock)
        )
        link, welcome, there = reached
        if welcome.journal == journal.uuid:
            raise UsageError(
                f"{target} is this host", remedy=f"{name} runs here already; name another host"
            )
        yield Session(
            migration=migration,
            kind="checkpoint" if options.checkpoint else _kind(hypervisor.name, there),
            host=socket.gethostname(),
            source=source,
            target=target,
            hypervisor=hypervisor.name,
            hypervisor_there=there,
            settings=settings,
            options=options,
            tool=tool,
            machine=machine,
            journal=journal,
            lock=lock,
            link=link,
            welcome=welcome,
            clock=clock,
            emit=emit,
            held=stack,
        )


@contextlib.asynccontextmanager
async def _reached(
    route: Route, there: str, hello: messages.Hello, settings: Settings, clock: Clock
) -> AsyncGenerator[tuple[Link, messages.Welcome, str]]:
    """The target's agent, or a proxy agent where it has none; and what its hypervisor is called."""
    names = [] if route.by_ssh == "no" else [there]
    if route.agentless is not None:
        names.append(name_elsewhere(route.agentless))
    for name in names:
        async with contextlib.AsyncExitStack() as attempt:
            link = await attempt.enter_async_context(agent_link(route.host, name, settings))
            try:
                about = msgspec.structs.replace(hello, hypervisor=name)
                welcome = await greet(link, clock, about)
            except LinkLost as error:
                missing = isinstance(error, NoAgent) or route.by_ssh == "if-it-answers"
                if missing and name is not names[-1]:
                    continue
                raise
            yield link, welcome, name
            return


@contextlib.asynccontextmanager
async def another_link(session: Session) -> AsyncGenerator[Session]:
    """The same session with a new link, after the old one was lost."""
    async with agent_link(session.target, session.hypervisor_there, session.settings) as link:
        hello = hello_of(session.migration, session.source, session.hypervisor_there)
        patience = max(_AGAIN_WITHIN, session.settings.migration.link_silence)
        try:
            async with asyncio.timeout(patience):
                welcome = await greet(link, session.clock, hello)
        except TimeoutError as error:
            raise LinkLost("there was no answer in time", host=session.target) from error
        link.take_handlers_of(session.link)
        session.link, session.welcome = link, welcome
        yield session
