"""``entourage cordon``, ``uncordon``, ``room``: whether this host takes domains, and how many."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from entourage import cordon
from entourage.cli.output import columns, put, put_json
from entourage.cli.tell import say
from entourage.domain import Domain
from entourage.errors import EntourageError, UsageError, plain_words, what_to_do
from entourage.handover.values import Role
from entourage.hosts import hugepages, owndevices, pci
from entourage.hypervisors.registry import all_domains, find_domain, unseen
from entourage.hypervisors.values import DomainState
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import interrupt_holder
from entourage.offline.claims import Claims, key
from entourage.settings.model import Settings
from entourage.settings.units import format_size
from entourage.target import room as limits

_OFF: Final = frozenset({"shut off", "crashed"})
_MEMINFO: Final = Path("/proc/meminfo")


class DomainHere(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that runs on this host.

    Attributes:
        memory: Bytes, those in huge pages among them.
        devices: The host's own devices that it has, as ``usb:1050:0407`` and ``pci:8086:1572``,
            and how many of each; and its huge pages, as ``hugepages:2048kB``.
        bridges: Those that its NICs are on.
    """

    name: str
    uuid: str
    state: str
    memory: int
    vcpus: int
    devices: Mapping[str, int] = {}
    bridges: Sequence[str] = ()


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What this host has, and what of it is left.

    Attributes:
        host: What it calls itself.
        memory: Bytes that its domains may have in sum.
        free: Bytes of them that are left.
        devices: Its own devices that no domain here has, as ``usb:1050:0407`` and
            ``pci:8086:1572``, and how many; and the huge pages that are left, as
            ``hugepages:2048kB``.
        held: Of devices that are here, but of which none is free, why.
        arrivals: How many domains may arrive at once; None: as many as come.
        cordons: While there is one, it takes no domains.
        arriving: Names of domains that are on their way here.
        domains: What runs here.
        off: Names of the domains that are known here and do not run.
        off_domains: The same domains, with what they would take.
        claimed: UUIDs of domains that offline moves were about to give this host.
        limited: Whether the settings limit what domains have in sum, huge pages among it.
    """

    host: str
    memory: int
    free: int
    devices: Mapping[str, int]
    held: Mapping[str, owndevices.Held] = {}
    arrivals: int | None
    cordons: Sequence[cordon.Cordon]
    arriving: Sequence[str]
    domains: Sequence[DomainHere]
    off: Sequence[str] = ()
    off_domains: Sequence[DomainHere] = ()
    claimed: Sequence[str] = ()
    limited: bool = False


def put_up(settings: Settings, name: str, reason: str) -> None:
    """Have this host take no domains, and say so."""
    try:
        cordon.put_up(settings, name, reason)
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    put(f"{socket.gethostname()} takes no domains (cordon {name})")


def lift(settings: Settings, name: str | None) -> None:
    """Lift a cordon, or all of them (None), and say what is left."""
    names = [one.name for one in cordon.cordons(settings)] if name is None else [name]
    try:
        for each in names:
            if not cordon.lift(settings, each) and name is not None:
                say(f"entourage: note: there was no cordon {name}")
    except OSError as error:
        raise UsageError(plain_words(error), remedy=what_to_do(error)) from error
    left = [one.name for one in cordon.cordons(settings)]
    host = socket.gethostname()
    still = f"still takes no domains (cordon {', '.join(left)})" if left else "takes domains"
    put(f"{host} {still}")


def room(settings: Settings, *, as_json: bool) -> None:
    """Print what this host has, and what of it is left."""
    found = asyncio.run(_room(settings))
    if as_json:
        put_json(found)
        return
    put(
        f"{found.host}: {format_size(found.free)} of {format_size(found.memory)} are left for"
        " domains",
        *(f"takes no domains: cordon {one}" for one in found.cordons),
        *(f"{name} is on its way here" for name in found.arriving),
        *(f"{name}: {count} free" for name, count in sorted(found.devices.items())),
    )
    rows = [(one.name, one.state, format_size(one.memory)) for one in found.domains]
    put(*columns(("Name", "State", "Memory"), rows, right=(2,)))


async def _room(settings: Settings) -> Room:
    # Before: what is defined meanwhile is in one of the two, or in both.
    claimed = [key(one.offer.definition.domain.uuid) for one in Claims(settings.paths.state)]
    known = await all_domains(settings)
    running = sorted((one for one in known if one.state not in _OFF), key=lambda one: one.name)
    off = sorted((one for one in known if one.state in _OFF), key=lambda one: one.name)
    arriving = _arriving(settings)
    units = pci.units()
    domains = [(one, await _domain(settings, one)) for one in running]
    here = [_here(state, domain, units) for state, domain in domains]
    used = sum(one.memory for one in here)
    total, available = meminfo()
    memory = settings.agent.domains_memory or total
    free = min(memory - used, available)
    there = {domain.uuid: domain for _, domain in domains if domain is not None}
    promised = {one.uuid: one for one in limits.coming(arriving)}
    own = owndevices.look({**there, **promised}.values(), units)
    return Room(
        host=socket.gethostname(),
        memory=memory,
        free=max(0, free),
        devices={**own.free, **_as_devices(hugepages.free_pages())},
        held=own.held,
        arrivals=settings.agent.arrivals,
        cordons=cordon.cordons(settings),
        arriving=[one.name for one in arriving],
        domains=here,
        off=[one.name for one in off],
        off_domains=[_here(one, None, ()) for one in off],
        claimed=claimed,
        limited=settings.agent.domains_memory is not None,
    )


def _as_devices(pages: Mapping[int, int]) -> dict[str, int]:
    return {f"hugepages:{kib}kB": count for kib, count in pages.items() if count}


def _arriving(settings: Settings) -> list[Decision]:
    path = Path(settings.paths.state, "journal.db")
    if not path.exists():
        return []
    with Journal.open(path, read_only=True) as journal:
        return limits.arriving(settings, journal)


async def _domain(settings: Settings, state: DomainState) -> Domain | None:
    """With its devices, where its hypervisor says which they are; TEST says the rest."""
    with contextlib.suppress(EntourageError):
        _, domain = await find_domain(settings, state.name)
        return domain
    return None


def _here(state: DomainState, domain: Domain | None, units: Sequence[pci.Unit]) -> DomainHere:
    own = Counter[str]() if domain is None else owndevices.names_of(domain, units)
    return DomainHere(
        name=state.name,
        uuid=state.uuid,
        state=state.state,
        memory=state.memory,
        vcpus=state.vcpus,
        devices={**own, **_as_devices(hugepages.pages_of(state.pid or 0))},
        bridges=sorted({nic.bridge for nic in domain.net}) if domain else (),
    )


def meminfo(path: Path = _MEMINFO) -> tuple[int, int]:
    """Bytes of memory that there are, and that are available; what the kernel does not say is 0."""
    found: dict[str, int] = {}
    for line in path.read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        with contextlib.suppress(ValueError, IndexError):
            found[key] = int(value.split()[0]) << 10
    return found.get("MemTotal", 0), found.get("MemAvailable", 0)


def abort(settings: Settings, name: str) -> None:
    """Have the process that moves a domain from this host give it up, as Ctrl-C would.

    Raises:
        UsageError: Nothing moves it.
    """
    path = Path(settings.paths.state, "journal.db")
    found: list[Decision] = []
    if path.exists():
        with Journal.open(path, read_only=True) as journal:
            found = [
                one
                for one in journal.decisions()
                if one.name == name and one.role is Role.SOURCE and not one.settled
            ]
    for one in found:
        if unseen(one.hypervisor):
            raise UsageError(
                f"another tool moves {name}", remedy=f"abort it there: virsh domjobabort {name}"
            )
        if interrupt_holder(Path(settings.paths.run), one.domain):
            put(f"{name}: asked to go back, if it still can")
            return
    raise UsageError(
        f"no migration of {name} from here is under way", remedy="`entourage status` shows what is"
    )
