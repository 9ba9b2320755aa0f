"""After a crash: what is under way or in doubt on this host, and how it is settled.

``entourage status`` reads; ``entourage recover`` acts, and may be run twice and on either host.
Both go by the journal and by what the hypervisor shows; the rules are those of the hand-over.
"""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Container, Sequence
from pathlib import Path

import msgspec

from entourage.errors import DomainBusy, EntourageError, UsageError, plain_words
from entourage.handover.values import Finding, Input, Record, Role
from entourage.hosts.proxy_agent import proxy_settings
from entourage.hosts.route import host_of
from entourage.hypervisors.registry import all_domains, elsewhere, in_directory, start_command
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import Holder, lock_holder
from entourage.settings.model import Settings
from entourage.source.ask import TargetQuery, Way, declare_fenced, is_untold, note_told, tell
from entourage.source.going_on import have_go_on
from entourage.source.reattach import reattach_source
from entourage.target.reattach import reattach_target

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


_MEANS_SAVE: dict[Record, str] = {
    Record.ARMED: "a save in {peer} was begun; whether it stands is not recorded here",
    Record.BACK: "it was not saved, and is this host's; not everything is cleaned up",
    Record.GONE: "it is saved in {peer}; not everything is cleaned up here",
}
_SETTLED_SAVE: dict[Record, str] = {
    Record.BACK: "a save in {peer} was given up; it is this host's",
    Record.GONE: "it was saved in {peer}",
}
_MEANS_KEPT: dict[Record, str] = {
    Record.ARMED: "it was being restored; whether it runs is in doubt",
    Record.BACK: "it was not restored; its claim is not given up",
    Record.GONE: "it was restored; that is not noted in it",
    Record.GO: "it is whole; whether it has its name yet is not recorded",
    Record.RAN: "it stands; {peer} has not confirmed that its copy is ended",
}
_SETTLED_KEPT: dict[Record, str] = {
    Record.BACK: "it was not restored, and can be",
    Record.GONE: "it was restored",
    Record.NEVER: "{peer} has given it up",
    Record.OWNS: "{peer} has saved it",
}
_UNDER_WAY = frozenset({Record.ARMED, Record.OPEN})
_MIGRATES = " migrates "  # in what either half says that it does


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One migration as ``status`` shows it.

    Attributes:
        record: What this host's journal says, ``armed`` … ``fenced``.
        settled: Nothing is left to be done here.
        doing: What the process that works on it says; empty where none does.
        guest: What the hypervisor shows of this host's copy; empty where there is none.
        meaning: What all that means, in a sentence.
        began: When the migration began, ISO 8601 with this host's offset.
        changed: When the record was last set.
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
    began: str = ""
    changed: str = ""


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What ``recover`` did about one migration, or would do (``dry_run``).

    Attributes:
        start: What starts the domain, where it is this host's and off.
    """

    domain: str
    migration: str
    role: str
    peer: str
    before: str
    after: str
    settled: bool
    start: str = ""
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
    decisions = [(settings, decision) for decision in _kept(settings)]
    decisions += [
        (proxy_settings(settings), decision) for decision in _kept(proxy_settings(settings))
    ]
    if not decisions:
        return []
    states = {state.uuid: state.state for state in await all_domains(settings)}
    standings: list[Standing] = []
    for keeper, decision in decisions:
        untold = is_untold(decision)
        if decision.settled and not everything and not untold:
            continue
        holder = lock_holder(Path(keeper.paths.run), decision.domain)
        meaning = _meaning(decision)
        if holder is not None and (moving := _moving(decision, holder)):
            meaning = moving
        if proxied := _proxied_host(decision):
            meaning = f"kept here for {proxied}: {meaning}"
        if untold:
            meaning += "; whether {peer} knows that is not certain"
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
                guest="" if proxied else states.get(decision.domain, ""),
                meaning=meaning.format(peer=decision.peer_host),
                remedy=_remedy(decision, busy=holder is not None),
                began=_moment(decision.began),
                changed=_moment(decision.changed),
            )
        )
    return standings


def _meaning(decision: Decision) -> str:
    """What a record means, in a sentence with a place for the other host's name."""
    known = _SETTLED if decision.settled else _MEANS
    if decision.role is Role.SOURCE and decision.peer_is_a_save:
        known = known | (_SETTLED_SAVE if decision.settled else _MEANS_SAVE)
    elif in_directory(decision.hypervisor):  # what is kept for the save itself
        known = known | (_SETTLED_KEPT if decision.settled else _MEANS_KEPT)
    return known[decision.record]


def _moving(decision: Decision, holder: Holder) -> str:
    """What is said of a migration that a process works on; empty where it only settles it."""
    if decision.record not in _UNDER_WAY or _MIGRATES not in f" {holder.doing}":
        return ""
    return "it is moving to {peer}" if decision.role is Role.SOURCE else "it arrives from {peer}"


def _moment(nanoseconds: int) -> str:
    """A moment since the epoch, in this host's time; to the second, for people."""
    moment = dt.datetime.fromtimestamp(nanoseconds // 1_000_000_000, dt.UTC)
    return moment.astimezone().isoformat(sep=" ")


def _kept(settings: Settings) -> list[Decision]:
    """What a journal holds; nothing where there is none."""
    path = Path(settings.paths.state, "journal.db")
    if not path.exists():
        return []
    with Journal.open(path, read_only=True) as journal:
        return journal.decisions()


def _proxied_host(decision: Decision) -> str:
    """The hypervisor, elsewhere, or the save that a record is kept for here; empty for none."""
    there = elsewhere(decision.hypervisor)
    kept = there is not None and (decision.role is Role.TARGET or not there.is_host)
    return there.uri if there is not None and kept else ""


def _start(decision: Decision) -> str:
    try:
        return start_command(decision.hypervisor, decision.name)
    except UsageError as error:  # a package is gone
        return error.message


def _remedy(decision: Decision, *, busy: bool) -> str:
    if decision.settled:
        told = f"entourage recover {decision.name}, once {decision.peer_host} can be reached"
        return told if is_untold(decision) else ""
    if busy:
        return "wait: it is being worked on"
    if decision.record is Record.RAN and not decision.peer_is_a_save:
        return f"entourage recover {decision.name}, on {decision.peer_host}"
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
    own, proxies = settings, proxy_settings(settings)
    # A save that is being restored is a source: what it decides settles most of what is here; as
    # what is decided here settles most of what proxy agents keep for targets.
    done = await _recover_in(proxies, name, {Role.SOURCE}, dry_run=dry_run, fenced=False)
    done += await _recover_in(own, name, set(Role), dry_run=dry_run, fenced=target_is_fenced)
    fenced = target_is_fenced  # of a save that another host has made here
    done += await _recover_in(proxies, name, {Role.TARGET}, dry_run=dry_run, fenced=fenced)
    return done if dry_run else await _have_go_on(own, done)


async def _have_go_on(settings: Settings, done: list[Recovered]) -> list[Recovered]:
    """Let guests go on that full storage has stopped, once what was saved of them is removed.

    A save has a record of each of its ends, and each may be settled in a run of its own.
    """
    unsettled = {one.migration for one in done if not one.settled}
    wanted = {one.migration for one in done} - unsettled
    if not wanted:
        return done
    unsettled |= {one.migration for one in _kept(proxy_settings(settings)) if not one.settled}
    told: dict[str, tuple[str, ...]] = {}
    for decision in _kept(settings):
        if decision.role is Role.SOURCE and decision.migration in wanted - unsettled:
            told[decision.migration] = tuple(await have_go_on(settings, decision))
    return [one if not (why := told.pop(one.migration, ())) else _stands(one, why) for one in done]


def _stands(one: Recovered, why: tuple[str, ...]) -> Recovered:
    """What was done about a migration whose guest may stand still: its user has to look at that."""
    return msgspec.structs.replace(one, settled=False, problems=one.problems + why)


async def _recover_in(
    settings: Settings, name: str | None, roles: Container[Role], *, dry_run: bool, fenced: bool
) -> list[Recovered]:
    """Settle what the journal of these settings holds of these roles."""
    path = Path(settings.paths.state, "journal.db")
    if not path.exists():  # noqa: ASYNC240 - this host's own state
        return []
    with Journal.open(path, read_only=dry_run) as journal:
        return await _recover_all(journal, settings, name, roles, dry_run=dry_run, fenced=fenced)


async def _recover_all(
    journal: Journal,
    settings: Settings,
    name: str | None,
    roles: Container[Role],
    *,
    dry_run: bool,
    fenced: bool,
) -> list[Recovered]:
    done: list[Recovered] = []
    silent = set[Way]()  # see ``TargetQuery``
    for decision in journal.decisions():
        if decision.role not in roles or (decision.settled and not is_untold(decision)):
            continue
        ours = not in_directory(decision.hypervisor) or decision.peer_host == socket.gethostname()
        if _proxied_host(decision) and ours and decision.record in {Record.GO, Record.RAN}:
            continue  # the source's own record, on this host, asks it, or tells it
        if name is not None and name not in {decision.name, decision.domain}:
            continue
        if dry_run:
            done.append(_report(journal, decision, (), ()))
            continue
        try:
            done.append(await _settle(journal, settings, decision, silent, fenced=fenced))
        except DomainBusy as busy:
            done.append(_report(journal, decision, (), (str(busy),)))
        except (EntourageError, OSError) as error:
            done.append(_report(journal, decision, (), (plain_words(error),)))
    return done


async def _settle(
    journal: Journal,
    settings: Settings,
    decision: Decision,
    silent: set[Way],
    *,
    fenced: bool,
) -> Recovered:
    if decision.settled:
        problems = await tell(journal, settings, decision, silent)
        return _report(journal, decision, (), problems)
    if decision.role is Role.TARGET:
        failed: list[EntourageError] = []
        async with reattach_target(
            journal,
            settings,
            decision.migration,
            send=lambda _message: None,
            on_failure=failed.append,
        ) as arrival:
            if fenced and decision.peer_host != socket.gethostname():
                await arrival.take(Input.PEER_IS_FENCED)
            if arrival.record is Record.RAN:
                await arrival.take(Input.UNREACHABLE)
            # Of a device; what concerns the domain is among the findings.
            devices = [str(error) for error in failed if error.device]
            left = [*arrival.problems, *arrival.notes, *devices]
            return _report(journal, decision, arrival.findings, left)
    if fenced and decision.peer_is_a_save and not host_of(decision.peer_host):
        raise UsageError(
            f"{decision.peer_host} is a directory, whose record is on this host",
            remedy=f"`entourage recover {decision.name}`, without --target-is-fenced",
        )
    if fenced and decision.record is Record.ARMED:
        declare_fenced(journal, decision)
        decision = journal.decision(decision.migration, Role.SOURCE) or decision
    # One that was declared off may be on again.
    returned = (
        decision.of_source.peer_is_fenced and not fenced and not decision.of_source.peer_was_told
    )
    query = TargetQuery(settings, decision, silent)
    async with reattach_source(journal, settings, decision, send=query.send) as departure:
        if departure.state.in_doubt and fenced:
            await departure.take(Input.PEER_IS_FENCED)
        elif (departure.state.record is not Record.BACK or returned) and (
            await query.ask(departure)
        ):
            note_told(journal, decision.migration)
        return _report(journal, decision, departure.findings, departure.problems)


def findings_told(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Each once; and not that GO stood when it was asked, where more has been heard since."""
    seen = list(dict.fromkeys(findings))
    return tuple(one.value for one in seen if one is not Finding.GO_STANDS or len(seen) == 1)


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
        start=_start(before),
        findings=findings_told(findings),
        problems=tuple(problems),
    )
