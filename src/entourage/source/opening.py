"""Opening a session: its parts, in the order in which they can be refused; then closing them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from entourage import messages
from entourage.admission import known
from entourage.clock import Clock
from entourage.devices.base import Options
from entourage.errors import LinkLost, NoAgent, UsageError
from entourage.events import Kind, Listener
from entourage.hosts.link import Link
from entourage.hosts.proxy_agent import proxy_settings
from entourage.hosts.route import Route, host_of
from entourage.hypervisors.agents import agent_link
from entourage.hypervisors.registry import (
    counterpart,
    in_directory,
    name_elsewhere,
    usual,
)
from entourage.journal.journal import Journal
from entourage.journal.lock import DomainLock, domain_lock
from entourage.settings.model import JournalSettings, PathSettings, Settings
from entourage.source.greeting import greet, hello_of
from entourage.source.session import Session

LinkTo: TypeAlias = Callable[[str, str, Settings], contextlib.AbstractAsyncContextManager[Link]]
"""By a host, the name of its hypervisor and settings, a link to its agent; see ``agent_link``."""
_AGAIN_WITHIN = 20.0  # seconds for one attempt to reach the target again


class Reached(NamedTuple):
    """An agent that answers.

    Attributes:
        link: To it.
        welcome: What it has said of itself.
        name: What its hypervisor is called.
    """

    link: Link
    welcome: messages.Welcome
    name: str


class Reaching(Protocol):
    """What reaches a target's agent: ``reached``."""

    def __call__(  # noqa: D102 - as there
        self, route: Route, there: str, hello: messages.Hello, settings: Settings, clock: Clock
    ) -> contextlib.AbstractAsyncContextManager[Reached]: ...


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


@dataclass(frozen=True, slots=True)
class Departing:
    """A domain that is to leave: its UUID and name, and the host that it goes to."""

    uuid: str
    name: str
    target: str


def held_here(
    stack: contextlib.AsyncExitStack, paths: PathSettings, keep: JournalSettings, who: Departing
) -> tuple[Journal, DomainLock]:
    """This host's journal, and its lock of a domain that is to leave; closed with the stack.

    Raises:
        DomainBusy: Another command works on the domain.
        JournalError: The journal cannot be trusted.
    """
    journal = stack.enter_context(Journal.open(Path(paths.state, "journal.db"), keep=keep))
    doing = f"migrates {who.name} to {who.target}"
    return journal, stack.enter_context(domain_lock(Path(paths.run), who.uuid, doing))


def refuse_itself(welcome: messages.Welcome, journal: Journal, who: Departing) -> None:
    """Raise UsageError where a domain's target turns out to be this host."""
    if welcome.journal == journal.uuid:
        raise UsageError(
            f"{who.target} is this host", remedy=f"{who.name} runs here already; name another host"
        )


def _kind(hypervisor: str, hypervisor_there: str) -> Kind:
    """What is done with a domain, by the names of both hypervisors."""
    if in_directory(hypervisor_there):
        return "save"
    return "restore" if in_directory(hypervisor) else "move"


@contextlib.asynccontextmanager
async def reached(
    route: Route,
    there: str,
    hello: messages.Hello,
    settings: Settings,
    clock: Clock,
    *,
    link_to: LinkTo | None = None,
) -> AsyncGenerator[Reached]:
    """The target's agent, or a proxy agent where it has none; and what its hypervisor is called.

    Args:
        route: How the target is reached.
        there: The name of the hypervisor that is asked for.
        hello: The first word.
        settings: This host's.
        clock: Is set by the target's.
        link_to: What makes the link, if not ``agent_link``.

    Raises:
        LinkError: The target cannot be reached, or has another Entourage.
    """
    names = [] if route.by_ssh == "no" else [there]
    if route.agentless is not None:
        names.append(name_elsewhere(route.agentless))
    for name in names:
        async with contextlib.AsyncExitStack() as attempt:
            linked = (link_to or agent_link)(route.host, name, settings)
            link = await attempt.enter_async_context(linked)
            try:
                about = msgspec.structs.replace(hello, hypervisor=name)
                welcome = await greet(link, clock, about)
            except LinkLost as error:
                missing = isinstance(error, NoAgent) or route.by_ssh == "if-it-answers"
                if missing and name is not names[-1]:
                    continue
                raise
            yield Reached(link, welcome, name)
            return


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
    reach: Reaching = reached,
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
        reach: What reaches the target's agent.

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
        who = Departing(found.uuid or "", name, target)
        journal, lock = held_here(stack, paths, settings.journal, who)
        machine = await hypervisor.machine(name)
        if route.agentless is not None and in_directory(route.agentless):
            machine = machine.saving or machine
            if options.filters or host_of(route.host):
                machine = machine.sending or machine
        stack.push_async_callback(machine.close)
        link, welcome, there = await stack.enter_async_context(
            reach(route, there, hello_of(migration, source, there), settings, clock)
        )
        refuse_itself(welcome, journal, who)
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
