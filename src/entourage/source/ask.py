"""Asking the target of a migration what it decided, once the command that began it has gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from msgspec.structs import replace

from entourage import messages
from entourage.clock import Clock
from entourage.errors import (
    EntourageError,
    LinkError,
    LinkLost,
    ours,
)
from entourage.handover.executor import Executor
from entourage.handover.rules import Source, decide_source
from entourage.handover.values import (
    TERMINAL,
    AnyInput,
    Connected,
    Effect,
    Heard,
    Input,
    Message,
    MessageKind,
    Record,
    Role,
    Send,
)
from entourage.hosts.link import Link
from entourage.hosts.ssh import LOGIN_WITHIN
from entourage.hypervisors.agents import agent_link
from entourage.journal.journal import Decision, Journal
from entourage.settings.model import Settings
from entourage.source.greeting import greet
from entourage.source.role import SourceSide
from entourage.version import __version__

_ANSWER_WITHIN: Final = 20.0  # seconds for the other host to answer, once it has been reached
_ACTS_WITHIN: Final = 10.0  # seconds for another agent there to do what it is at
_AGAIN: Final = 0.5  # seconds between two questions to a host that is still at it


Way: TypeAlias = tuple[str, str]
"""A target's host and hypervisor: one host may be reached in several ways."""


class TargetQuery:
    """Asks the target of one migration what it decided, over a new link.

    Args:
        settings: This host's.
        decision: The migration.
        silent: The ways to a target by which none has answered just before: none is taken again.
    """

    def __init__(
        self, settings: Settings, decision: Decision, silent: set[Way] | None = None
    ) -> None:
        reach = decision.of_source.ssh or settings.ssh
        self._settings = replace(settings, ssh=reach)
        self._decision = decision
        self._silent = set[Way]() if silent is None else silent
        self._link: Link | None = None

    @property
    def _way(self) -> Way:
        return self._decision.peer_host, self._decision.of_source.hypervisor_there

    def send(self, message: Message) -> None:
        """Send a hand-over message, if there is a link."""
        if self._link:
            with contextlib.suppress(LinkLost):
                say = messages.Say(message.kind.value, message.migration)
                self._link.tell(messages.HANDOVER, say)

    async def ask(self, side: SourceSide) -> bool:
        """Ask the target what it decided, and follow it.

        Returns:
            Whether both sides have decided, and know it.
        """
        try:
            last = await self.settle(side.take)
        except (LinkError, TimeoutError) as error:
            await side.take(Input.UNREACHABLE)
            side.problems.append(f"{self._decision.peer_host} does not answer{_why(error)}")
            return False
        except EntourageError as error:  # what was found so far is told as well
            side.problems.append(str(error))
            return False
        if last is None:  # the role has found that itself
            return False
        side.problems += last.problems
        return last.settled and side.state.record in TERMINAL

    async def settle(self, take: Callable[[AnyInput], Awaitable[None]]) -> messages.Farewell | None:
        """As ``talk``; again for a while where another agent there has not done all that it is at.

        Each time over a new link: an agent knows only what it has read or done itself.
        """
        try:
            last = await self.talk(take)
        except (LinkError, TimeoutError):
            self._silent.add(self._way)
            raise
        patience = time.monotonic() + _ACTS_WITHIN
        while last is not None and not last.settled and time.monotonic() < patience:
            await asyncio.sleep(_AGAIN)
            try:
                last = await self.talk(take)
            except (LinkError, TimeoutError):  # what it said before is what is known
                break
        return last

    async def talk(self, take: Callable[[AnyInput], Awaitable[None]]) -> messages.Farewell | None:
        """Reach the target, bring its answer to a role, and return once the target has acted.

        Args:
            take: Brings an event to the role.

        Returns:
            Its last word, with what went wrong there; None where it is another host than it was.

        Raises:
            LinkError, TimeoutError: It cannot be reached, or does not answer.
            EntourageError: This host could not do what follows from the answer.
        """
        if self._way in self._silent:
            raise LinkLost("it did not do so just before", host=self._decision.peer_host)
        problems: list[str] = []
        broken: list[Exception] = []
        heard = asyncio.Event()

        async def on_handover(said: messages.Say) -> None:
            heard.set()
            message = Message(MessageKind(said.verb), said.migration)  # else the link says no
            try:
                await take(Heard(message))
            except Exception as error:  # noqa: BLE001 - raised below, where somebody hears it
                broken.append(error)

        async def on_failed(failure: messages.Failure) -> None:
            remedy = f" ({failure.remedy})" if failure.remedy else ""
            problems.append(f"{self._decision.peer_host}: {failure.message}{remedy}")

        there = self._decision.of_source.hypervisor_there
        hello = messages.Hello(
            version=__version__,
            protocol=messages.OLDEST,
            newest=messages.NEWEST,
            migration=self._decision.migration,
            source=socket.gethostname(),
            hypervisor=there,
        )
        try:
            async with (
                asyncio.timeout(LOGIN_WITHIN + _ANSWER_WITHIN) as limit,
                agent_link(self._decision.peer_host, there, self._settings) as link,
            ):
                self._link = link
                link.on(messages.HANDOVER, on_handover)
                link.on(messages.FAILED, on_failed)
                welcome = await greet(link, Clock(), hello)
                limit.reschedule(asyncio.get_running_loop().time() + _ANSWER_WITHIN)
                await take(Connected(welcome.journal))
                if welcome.journal != self._decision.peer_journal:
                    return None
                lost = asyncio.create_task(link.lost())
                lost.add_done_callback(lambda _: heard.set())
                try:
                    await heard.wait()
                finally:
                    lost.cancel()
                # What this host does about it may take its time: the end of a large machine, say.
                limit.reschedule(None)
                await link.settle()
                _raise_first(broken)
                # It has acted on the last word as well when this returns: what a device does there
                # on arrival may take its time, too.
                acts = self._settings.migration.recover_timeout
                limit.reschedule(asyncio.get_running_loop().time() + acts + _ANSWER_WITHIN)
                last = await link.call(messages.BYE, None)
                _raise_first(broken)
                return replace(last, problems=(*last.problems, *problems))
        finally:
            self._link = None


def _raise_first(broken: Sequence[Exception]) -> None:
    """Raise what failed on this host, if anything: it is no word of whether the target answers."""
    if not broken:
        return
    made = ours(broken[0])
    raise EntourageError(made.message, remedy=made.remedy) if isinstance(made, LinkError) else made


def _why(error: Exception) -> str:
    """A time-out says nothing of itself."""
    return f": {error}" if str(error) else " (there was no answer in time)"


# What a target may not know of a migration that is decided here


def declare_fenced(journal: Journal, decision: Decision) -> None:
    """Record that the user declared the target fenced: it must be told when it is back.

    Comes before the deed. Where the target turns out to have said NEVER, telling it does no harm.
    """
    journal.detail(
        decision.migration, Role.SOURCE, replace(decision.of_source, peer_is_fenced=True)
    )


def note_told(journal: Journal, migration: str) -> None:
    """Write down that the target knows what was decided here."""
    decision = journal.decision(migration, Role.SOURCE)
    if decision is not None:
        journal.detail(migration, Role.SOURCE, replace(decision.of_source, peer_was_told=True))


def is_untold(decision: Decision) -> bool:
    """Whether the target may not know yet that this host let go, or that the domain came back.

    It waits for the second only where it was declared fenced: else it has decided that itself.
    """
    details = decision.of_source
    fenced = decision.record is Record.BACK and details.peer_is_fenced
    decided = decision.role is Role.SOURCE and (fenced or decision.record is Record.GONE)
    return decided and not details.peer_was_told


async def tell(
    journal: Journal, settings: Settings, decision: Decision, silent: set[Way]
) -> list[str]:
    """Tell the target what was decided here, over a new link.

    Needs no lock: the domain here, which may have moved on long since, is not touched.

    Args:
        journal: This host's.
        settings: This host's.
        decision: The migration.
        silent: See ``TargetQuery``.

    Returns:
        Why it does not know it yet, or what it had to do about it.
    """
    query = TargetQuery(settings, decision, silent)

    async def do(effect: Effect) -> None:
        if isinstance(effect, Send):
            query.send(effect.message)

    state = Source(
        migration=decision.migration,
        peer_journal=decision.peer_journal,
        record=decision.record,
        clean=True,
        holds_lock=False,
    )
    role = Executor(state, decide_source, do)
    host = decision.peer_host
    try:
        last = await query.settle(role.take)
    except (LinkError, TimeoutError) as error:
        return [f"{host} cannot be told yet{_why(error)}"]
    if last is None:
        return [f"{host} has another journal than it had: there is nobody left to tell"]
    if not last.settled:
        return [f"{host} still works on it: try again in a while", *last.problems]
    note_told(journal, decision.migration)
    return [*last.problems]
