"""After a crash: what is under way or in doubt on this host, and how it is settled.

``entourage status`` reads; ``entourage recover`` acts, and may be run twice and on either host.
Both go by the journal and by what the hypervisor shows; the rules are those of the hand-over.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from entourage import __version__, words
from entourage.errors import DomainBusy, EntourageError, LinkError, LinkLost
from entourage.hosts import ssh
from entourage.hosts.link import Link
from entourage.hypervisors.registry import all_domains
from entourage.journal import Decision, Journal
from entourage.lock import lock_holder
from entourage.passage import Clock, greet
from entourage.protocol import (
    TERMINAL,
    Connected,
    Event,
    Finding,
    Heard,
    Message,
    Record,
    Role,
    Verb,
)
from entourage.settings.model import Settings, SshSettings
from entourage.source import SourceSide
from entourage.takeup import taken_up_source, taken_up_target

_ANSWER_WITHIN = 20.0  # seconds for the other host to answer one question

_MEANS: dict[Record, str] = {
    Record.ARMED: "a migration to {peer} was begun; whether {peer} was told to run it is in doubt",
    Record.BACK: "it came back here; not everything is cleaned up",
    Record.GONE: "it belongs to {peer}; not everything is cleaned up here",
    Record.OPEN: "its arrival from {peer} was begun and not decided",
    Record.NEVER: "it never ran here; not everything is cleaned up",
    Record.GO: "{peer} handed it over; whether it runs here yet is not recorded",
    Record.RAN: "it belongs to this host; {peer} has not confirmed that it let go",
    Record.OWNS: "it belongs to this host; not everything is cleaned up",
    Record.FENCED: "it was given back to {peer} while this host was off",
}
_SETTLED: dict[Record, str] = {
    Record.BACK: "a migration to {peer} was rolled back; it is this host's",
    Record.GONE: "it went to {peer}",
    Record.NEVER: "a migration from {peer} never got here",
    Record.OWNS: "it came from {peer}; it is this host's",
    Record.FENCED: "it was given back to {peer}",
}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One migration as ``status`` shows it.

    Attributes:
        record: What this host's journal says, ``armed`` … ``fenced``.
        settled: Nothing is left to be done here.
        doing: What the process that works on it says; empty where none does.
        guest: What the hypervisor shows of this host's copy; empty where there is none.
        meaning: What all that means, in a sentence.
        remedy: What to type; empty where there is nothing to do.
    """

    domain: str
    uuid: str
    migration: str
    role: str
    record: str
    settled: bool
    peer: str
    doing: str
    guest: str
    meaning: str
    remedy: str


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What ``recover`` did about one migration, or would do (``dry_run``)."""

    domain: str
    migration: str
    role: str
    peer: str
    before: str
    after: str
    settled: bool
    findings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


async def status(settings: Settings, *, everything: bool = False) -> list[Standing]:
    """What is under way or in doubt here, newest first.

    Args:
        settings: This host's.
        everything: Settled migrations too: where domains went, and where they came from.

    Raises:
        JournalError: The journal cannot be read.
    """
    path = Path(settings.paths.state, "journal.db")
    if not path.exists():
        return []
    states = {state.uuid: state.state for state in await all_domains(settings)}
    with Journal.open(path, read_only=True) as journal:
        decisions = journal.decisions()
    standings: list[Standing] = []
    for decision in decisions:
        if decision.settled and not everything:
            continue
        holder = lock_holder(Path(settings.paths.run), decision.domain)
        words_for = _SETTLED if decision.settled else _MEANS
        standings.append(
            Standing(
                domain=decision.name,
                uuid=decision.domain,
                migration=decision.migration,
                role=decision.role.value,
                record=decision.record.value,
                settled=decision.settled,
                peer=decision.peer_host,
                doing=f"{holder.doing} (process {holder.pid})" if holder else "",
                guest=states.get(decision.domain, ""),
                meaning=words_for[decision.record].format(peer=decision.peer_host),
                remedy=_remedy(decision, busy=holder is not None),
            )
        )
    return standings


def _remedy(decision: Decision, *, busy: bool) -> str:
    if decision.settled:
        return ""
    if busy:
        return "wait: it is being worked on"
    if decision.record is Record.RAN:
        return f"entourage recover, on {decision.peer_host}"
    return f"entourage recover {decision.name}"


async def recover(
    settings: Settings,
    name: str | None = None,
    *,
    dry_run: bool = False,
    target_is_fenced: bool = False,
) -> list[Recovered]:
    """Settle every migration here that is not, or those of one domain.

    Args:
        settings: This host's.
        name: A domain's name or UUID; None for all.
        dry_run: Only say what would be looked at.
        target_is_fenced: The user vouches that the other host is off, and that its copy is gone
            for good.

    Raises:
        JournalError: The journal cannot be trusted.
    """
    path = Path(settings.paths.state, "journal.db")
    if not path.exists():
        return []
    done: list[Recovered] = []
    with Journal.open(path, read_only=dry_run) as journal:
        for decision in journal.unsettled():
            if name is not None and name not in {decision.name, decision.domain}:
                continue
            if dry_run:
                done.append(_report(journal, decision, (), ()))
                continue
            try:
                done.append(await _settle(journal, settings, decision, fenced=target_is_fenced))
            except DomainBusy as busy:
                done.append(_report(journal, decision, (), (str(busy),)))
            except (EntourageError, OSError) as error:
                done.append(_report(journal, decision, (), (str(error),)))
    return done


async def _settle(
    journal: Journal, settings: Settings, decision: Decision, *, fenced: bool
) -> Recovered:
    if decision.role is Role.TARGET:
        async with taken_up_target(
            journal, settings, decision.migration, send=lambda _message: None
        ) as arrival:
            if fenced:
                await arrival.take(Event.PEER_IS_FENCED)
            if arrival.record is Record.RAN:
                await arrival.take(Event.UNREACHABLE)
            return _report(journal, decision, arrival.findings, arrival.problems)
    way = _Way(settings, decision)
    async with taken_up_source(journal, settings, decision, send=way.send) as departure:
        if departure.state.in_doubt and fenced:
            await departure.take(Event.PEER_IS_FENCED)
        elif departure.state.record is not Record.BACK:
            await way.ask(departure)
        return _report(journal, decision, departure.findings, departure.problems)


def _report(
    journal: Journal, before: Decision, findings: Sequence[Finding], problems: Sequence[str]
) -> Recovered:
    after = journal.decision(before.migration, before.role) or before
    return Recovered(
        domain=before.name,
        migration=before.migration,
        role=before.role.value,
        peer=before.peer_host,
        before=before.record.value,
        after=after.record.value,
        settled=after.settled,
        findings=tuple(finding.value for finding in findings),
        problems=tuple(problems),
    )


class _Way:
    """The way to the target of one migration, found again."""

    def __init__(self, settings: Settings, decision: Decision) -> None:
        told = decision.details.get("ssh")
        reach = msgspec.convert(told, SshSettings) if told else settings.ssh
        self._settings = msgspec.structs.replace(settings, ssh=reach)
        self._decision = decision
        self._link: Link | None = None

    def send(self, message: Message) -> None:
        """Say a word of the hand-over, if there is a link."""
        if self._link:
            with contextlib.suppress(LinkLost):
                say = words.Say(message.verb.value, message.migration)
                self._link.tell(words.HANDOVER, say)

    async def ask(self, side: SourceSide) -> None:
        """Ask the target what it decided, and follow it."""
        heard = asyncio.Event()

        async def on_handover(body: Any) -> None:
            said = msgspec.convert(body, words.Say)
            await side.take(Heard(Message(Verb(said.verb), said.migration)))
            heard.set()

        hello = words.Hello(
            version=__version__,
            protocol=words.PROTOCOL,
            migration=self._decision.migration,
            source=socket.gethostname(),
            hypervisor=str(self._decision.details.get("hypervisor-there", "qemu")),
        )
        try:
            async with (
                asyncio.timeout(_ANSWER_WITHIN),
                ssh.connect(self._decision.peer_host, self._settings) as link,
            ):
                self._link = link
                link.on(words.HANDOVER, on_handover)
                welcome = await greet(link, Clock(), hello)
                await side.take(Connected(welcome.journal))
                if welcome.journal == self._decision.peer_journal and side.state.in_doubt:
                    await heard.wait()
                if side.state.record in TERMINAL:
                    await link.call(words.BYE, None, list[str])
        except (LinkError, TimeoutError) as error:
            await side.take(Event.UNREACHABLE)
            if side.state.record not in TERMINAL:
                side.problems.append(f"{self._decision.peer_host} does not answer: {error}")
        finally:
            self._link = None
