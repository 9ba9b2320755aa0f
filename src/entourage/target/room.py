"""Whether this host takes one more domain now: its cordons, and the limits of its settings."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path

from entourage.cordon import cordons
from entourage.domain import Domain
from entourage.errors import Refused, UsageError, plain_words, what_to_do
from entourage.handover.values import Record, Role
from entourage.hosts.owndevices import promised_twice
from entourage.hosts.slots import slot
from entourage.hosts.threads import in_thread
from entourage.hypervisors.registry import all_domains
from entourage.hypervisors.values import DomainState
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import lock_holder
from entourage.settings.model import Settings
from entourage.settings.units import format_size
from entourage.steps import Refusal

_OFF = frozenset({"shut off", "crashed"})
_LOCKED_WITHIN = 10.0  # seconds
_LOOK_AGAIN = 0.02  # seconds
_UNDER_WAY = frozenset({Record.OPEN, Record.GO})


async def no_room(settings: Settings, journal: Journal, domain: Domain, host: str) -> list[Refusal]:
    """What speaks against one more domain on this host, whatever domain that is.

    Args:
        settings: This host's.
        journal: This host's.
        domain: The domain that is to arrive.
        host: What this host is called in refusals.
    """
    found = [_refused(host, cordon) for cordon in await in_thread(_cordoned, settings)]
    most = settings.agent.domains_memory
    if _is_given_devices(domain):
        coming = [one for one in _coming(settings, journal) if one.uuid != domain.uuid]
        twice = await in_thread(lambda: list(promised_twice(domain, coming)))
        found += [Refusal(label, host, why.reason, why.remedy) for label, why in twice]
    if most is not None:
        states = await all_domains(settings)
        used = _used(states, _coming(settings, journal), domain)
        if used + domain.memory > most:
            free = max(0, most - used)
            found.append(
                Refusal(
                    "domain",
                    host,
                    f"not enough memory for domains: {format_size(domain.memory)} needed,"
                    f" {format_size(free)} of {format_size(most)} left",
                    "move another domain away first, or raise agent.domains-memory there",
                )
            )
    return found


def _cordoned(settings: Settings) -> list[str]:
    return [f"it takes no domains (cordon {cordon})" for cordon in cordons(settings)]


def _refused(host: str, reason: str) -> Refusal:
    return Refusal("domain", host, reason, "another host, or `entourage uncordon` there")


def arriving(settings: Settings, journal: Journal) -> list[Decision]:
    """The migrations to this host that a process works on now."""
    run = Path(settings.paths.run)
    return [
        one
        for one in journal.decisions()
        if one.role is Role.TARGET
        and one.record in _UNDER_WAY
        and lock_holder(run, one.domain) is not None
    ]


def coming(decisions: Sequence[Decision]) -> list[Domain]:
    """What the domains of those migrations are to be here, as far as that is known yet."""
    return [
        one.details.domain
        for one in decisions
        if isinstance(one.details, TargetDetails) and one.details.domain is not None
    ]


def _coming(settings: Settings, journal: Journal) -> list[Domain]:
    return coming(arriving(settings, journal))


def _is_given_devices(domain: Domain) -> bool:
    """Whether it is to have devices of this host."""
    return any(one.plug is not None for one in (*domain.usb, *domain.pci))


def _used(states: Sequence[DomainState], coming: Sequence[Domain], domain: Domain) -> int:
    """Bytes that domains have, or will have once they have arrived; not counting this one."""
    has = {state.uuid: state.memory for state in states if state.state not in _OFF}
    for one in coming:
        has.setdefault(str(one.uuid), one.memory)
    return sum(size for uuid, size in has.items() if uuid != domain.uuid)


@contextlib.contextmanager
def arrivals_slot(settings: Settings, host: str) -> Generator[None]:
    """Hold one of those that this host has for domains that arrive, whoever sends them.

    Raises:
        UsageError: None is free, or they cannot be made.
    """
    most = settings.agent.arrivals
    with contextlib.ExitStack() as held:
        if most is not None:
            try:
                slots = slot(Path(settings.paths.run, "arrivals"), "any", most)
                has_one = held.enter_context(slots)
            except OSError as error:
                raise UsageError(plain_words(error), host=host, remedy=what_to_do(error)) from error
            if not has_one:
                raise UsageError(
                    f"{most} domains arrive there already, which is as many as may at once",
                    host=host,
                    remedy="wait for one to have arrived, or raise agent.arrivals there",
                )
        yield


@contextlib.asynccontextmanager
async def admitted(
    settings: Settings, journal: Journal, domain: Domain, host: str
) -> AsyncGenerator[None]:
    """Look again whether there is room, and keep others from looking until OPEN is written.

    TEST is some time ago, and a stranger leaves it out.

    Raises:
        Refused: There is no room.
        UsageError: The lock cannot be had.
    """
    with contextlib.ExitStack() as held:
        if settings.agent.domains_memory is not None or _is_given_devices(domain):
            held.enter_context(await _looking_alone(settings, host))
        if found := await no_room(settings, journal, domain, host):
            raise Refused(found)
        yield


async def _looking_alone(settings: Settings, host: str) -> contextlib.ExitStack:
    """Hold the lock of whoever looks; it is free within milliseconds, and closed by the stack."""
    try:
        held = _lock_file(Path(settings.paths.run))
    except OSError as error:
        raise UsageError(plain_words(error), host=host, remedy=what_to_do(error)) from error
    stack, until = contextlib.ExitStack(), time.monotonic() + _LOCKED_WITHIN
    stack.callback(os.close, held)
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                stack.close()
                raise UsageError(
                    "other domains that arrive are still being looked at",
                    host=host,
                    remedy="try again",
                ) from None
            await asyncio.sleep(_LOOK_AGAIN)
        else:
            return stack


def _lock_file(directory: Path) -> int:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(directory / "room.lock", flags, 0o600)
