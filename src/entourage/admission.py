"""Admission: may this domain be started, stopped, sent away or received now?"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

from entourage.domain import Domain
from entourage.errors import DomainBusy, UsageError
from entourage.handover.rules import refuses_start
from entourage.handover.values import Record, Role
from entourage.hypervisors.base import Hypervisor
from entourage.hypervisors.registry import elsewhere, find_domain
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock, lock_holder
from entourage.settings.model import Settings
from entourage.steps import Refusal


async def known(
    settings: Settings, name: str, connect: str | None = None
) -> tuple[Hypervisor, Domain]:
    """Find a domain and its hypervisor by name; where there is none, ask the journal where it went.

    Raises:
        UsageError: There is none, and never was.
        DomainBusy: It moved to another host, or a migration of it is not settled.
    """
    try:
        return await find_domain(settings, name, connect)
    except UsageError:
        with manual_access(settings, name, None, "looks for it", starts=True):
            pass
        raise


@contextlib.contextmanager
def manual_access(
    settings: Settings, name: str, uuid: str | None, doing: str, *, starts: bool
) -> Generator[None]:
    """Check that a user may start or stop the domain, and hold its lock meanwhile.

    Args:
        settings: This host's.
        name: The domain's name; a domain file need not give a UUID.
        uuid: Its UUID, where it has one; else its name stands for it.
        doing: What others who want the lock are told.
        starts: Whether it is to be started: then it must not belong to another host.

    Raises:
        DomainBusy: A migration of it is under way or not settled, or it has moved to another host.
        JournalError: The journal cannot be read.
    """
    path = Path(settings.paths.state, "journal.db")
    with contextlib.ExitStack() as stack:
        if uuid is not None:
            stack.enter_context(domain_lock(Path(settings.paths.run), uuid, doing))
        if path.exists():
            with Journal.open(path, read_only=True) as journal:
                decisions = [
                    one
                    for one in journal.decisions()
                    if (one.name == name if uuid is None else one.domain == uuid)
                ]
            decisions.sort(key=lambda one: one.began, reverse=True)
            _check(name, decisions, starts=starts)
        yield


def _check(name: str, decisions: list[Decision], *, starts: bool) -> None:
    """Raise DomainBusy if one of these decisions forbids a start or stop by hand."""
    for one in decisions:
        undecided = one.record in {Record.ARMED, Record.OPEN, Record.GO}
        if undecided or (one.record is Record.BACK and not one.settled):
            raise DomainBusy(
                f"a migration of {name} ({one.peer_host}) is not settled here: {one.record}",
                remedy=f"`entourage recover {name}` first",
            )
        if starts and one.record is Record.RAN and one.peer_is_a_save:
            raise DomainBusy(
                f"{name} was restored from {one.peer_host}, and that is not recorded there yet",
                remedy=f"`entourage recover {name}` first",
            )
        if starts and one.record is Record.RAN:
            raise DomainBusy(
                f"{name} came from {one.peer_host}, which has not confirmed that it let go",
                remedy=f"`entourage recover` on {one.peer_host}; if that host is off for good,"
                f" `entourage recover {name} --target-is-fenced` here",
            )
    tombstone = refuses_start([one.record for one in decisions])
    if starts and tombstone is not None:
        gone = next(one for one in decisions if one.record is tombstone)
        host = gone.peer_host
        if gone.role is Role.SOURCE and gone.peer_is_a_save:
            raise DomainBusy(
                f"{name} is saved in {host}, or was restored from there",
                remedy=f"`entourage restore {host}`; if that is gone for good, its disks start"
                " with another uuid",
            )
        raise DomainBusy(
            f"{name} moved to {host}: it is that host's",
            remedy=f"{_where(gone)}; another of that name needs its own uuid",
        )


def _where(gone: Decision) -> str:
    """How a domain is found on the host that it was given to."""
    if gone.role is not Role.SOURCE or not gone.of_source.offline:
        return f"see `entourage list` on {gone.peer_host}"
    return (
        f"see `entourage list --all` on {gone.peer_host}; where that does not show it shut off,"
        f" {offline_again(gone.name, gone.peer_host)}"
    )


def offline_again(name: str, host: str) -> str:
    """What goes on with an offline move that was cut after its source had let go, typed there."""
    return f"`entourage migrate --offline {name} {host}` again"


def offline_certain(name: str, host: str) -> str:
    """The same where nobody but its user can know that no host has the domain."""
    return (
        "`entourage list --all` on each host that may have it; if none has,"
        f" `entourage migrate --offline --no-host-has-it {name} {host}`"
    )


def unsettled(
    settings: Settings, journal: Journal, domain: Domain, host: str, keeper: str
) -> list[Refusal]:
    """List refusals: earlier migrations of the domain that are not settled, or a lock that is held.

    Args:
        settings: Of who keeps the target's record; so is the journal.
        journal: Where that is kept.
        domain: The domain.
        host: What the target is called.
        keeper: The host that the journal is on.
    """
    uuid = domain.uuid or ""
    found: list[Refusal] = []
    if busy := lock_holder(Path(settings.paths.run), uuid):
        reason = f"process {busy.pid} works on it: {busy.doing}"
        remedy = f"wait until it has finished; `entourage status` on {keeper} shows it"
        found.append(Refusal("domain", host, reason, remedy))
    for standing in journal.decisions(uuid):
        if not standing.settled:
            # Of what was handed over, the host that it came from knows the rest.
            there = standing.record is Record.RAN and not standing.peer_is_a_save
            asks = standing.peer_host if there else keeper
            reason = f"an earlier migration of it is not settled ({standing.record})"
            remedy = f"run `entourage recover {standing.name}` on {asks}"
            found.append(Refusal("domain", host, reason, remedy))
    return found


def arrival_generation(journal: Journal, domain: str, said: int, *, unseen: bool = False) -> int:
    """The generation that an arrival gets in this host's journal.

    It is what the source says, but for two cases, in which the domain is not older than what stands
    here, whatever its generation says. A domain whose migrations are somebody else's may have come
    to the source unattended, which has counted fewer of them then. And a host without Entourage has
    never heard of the migration that took the domain there, from which it comes back now, with an
    Entourage that was installed since.

    Args:
        journal: This host's.
        domain: The domain's UUID.
        said: The source's own.
        unseen: Whether it may have come and gone without a record.
    """
    came = [one for one in journal.decisions(domain) if not one.never_came]
    newer = [one for one in came if one.generation >= said]
    there = [elsewhere(one.of_source.hypervisor_there) for one in newer]
    return journal.next_generation(domain) if newer and (unseen or all(there)) else said
