"""``entourage start``, ``list``, ``show`` and ``stop``: this host's domains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Final

import msgspec

from entourage.admission import known, manual_access
from entourage.attend.shown import read_all
from entourage.cli.output import columns, put, put_json, put_toml
from entourage.cli.tell import say
from entourage.domain import Domain
from entourage.errors import JournalError, UsageError
from entourage.handover.values import Record, Role
from entourage.hypervisors.base import DomainState, HasNotes
from entourage.hypervisors.registry import (
    all_domains,
    find_domain,
    open_hypervisor,
    starter_of_files,
)
from entourage.journal.journal import Journal
from entourage.offline.claims import Claims, key
from entourage.report.text import clean
from entourage.settings.domainfile import dump_domain, load_domain
from entourage.settings.model import Settings
from entourage.settings.units import format_size

NOT_THERE: Final = frozenset({"shut off", "crashed"})


class Departed(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that left this host.

    Attributes:
        host: Where to; of one that is saved the directory.
        is_saved: Whether it is.
    """

    name: str
    uuid: str
    host: str
    is_saved: bool = False


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that another host was about to give this one, off.

    Attributes:
        source: That host.
    """

    name: str
    uuid: str
    source: str

    def as_state(self) -> DomainState:
        """The same, as others are listed."""
        return DomainState(name=self.name, uuid=self.uuid, state="claimed")


def start(settings: Settings, file: Path | None, name: str, connect: str | None = None) -> None:
    """Start a domain from its file, or one that this host knows by its name."""

    async def run() -> str:
        if file is not None:
            hypervisor = open_hypervisor(settings, starter_of_files())
            domain = load_domain(file)
        else:
            hypervisor, domain = await known(settings, name, connect)
        with manual_access(settings, domain.name, domain.uuid, "starts it", starts=True):
            await hypervisor.start(domain)
        if isinstance(hypervisor, HasNotes):
            say(*(clean(f"entourage: note: {note}") for note in hypervisor.notes(domain)))
        return domain.name

    try:
        started = asyncio.run(run())
    except UsageError as error:
        if file is None and not error.remedy and Path(name).is_file():
            error.remedy = f"for the file of that name, type ./{name}"
        raise
    put(f"{started} runs")


def stop(
    settings: Settings, name: str, *, force: bool, patience: float, connect: str | None = None
) -> None:
    """Shut a domain down, or end it at once, and say so."""
    asyncio.run(switch_off(settings, name, force=force, patience=patience, connect=connect))
    put(f"{name} is shut off")


async def switch_off(
    settings: Settings, name: str, *, force: bool, patience: float, connect: str | None = None
) -> None:
    """Shut a domain down within ``patience`` seconds, or end it at once."""
    hypervisor, domain = await known(settings, name, connect)
    with manual_access(settings, domain.name, domain.uuid, "stops it", starts=False):
        await hypervisor.stop(name, force=force, patience=patience)


def show(settings: Settings, name: str, *, as_json: bool, connect: str | None = None) -> None:
    """Print a domain as it runs, in the words of a domain file."""

    async def run() -> tuple[Domain, Sequence[DomainState]]:
        hypervisor, domain = await find_domain(settings, name, connect)
        return domain, await hypervisor.domains()

    domain, states = asyncio.run(run())
    if as_json:
        put_json(domain)
        return
    state = next((state for state in states if state.name == name), None)
    if state is not None:
        pid = f", process {state.pid}" if state.pid else ""
        put(f"# {state.name} is {state.state}{pid}")
        if state.console:
            put(f"# console: entourage console {state.name}, or {state.console}")
    put_toml(dump_domain(domain))


def list_domains(
    settings: Settings, *, everything: bool, as_json: bool, connect: str | None = None
) -> None:
    """Print this host's domains; with ``everything`` also those that are off, or left."""
    states = asyncio.run(all_domains(settings, connect))
    here = {state.uuid for state in states}
    shown = [state for state in states if everything or state.state not in NOT_THERE]
    gone = [one for one in departed(settings) if one.uuid not in here] if everything else []
    claimed = [one for one in claims(settings) if one.uuid not in here] if everything else []
    attended = {one.uuid for one in read_all(settings) if not (one.off or one.problem)}
    if as_json:
        rows = [
            msgspec.to_builtins(state) | {"host": "", "attended": state.uuid in attended}
            for state in shown
        ]
        rows += [
            msgspec.to_builtins(_as_state(one)) | {"host": one.host, "attended": False}
            for one in gone
        ]
        rows += [
            msgspec.to_builtins(one.as_state()) | {"host": one.source, "attended": False}
            for one in claimed
        ]
        put_json(rows)
        return
    put(*listing(shown, gone, attended, claimed))


def listing(
    states: Sequence[DomainState],
    gone: Sequence[Departed],
    attended: Container[str] = (),
    claimed: Sequence[Claimed] = (),
) -> list[str]:
    """The lines of the list.

    Args:
        states: The domains that are here.
        gone: Those that left.
        attended: The UUIDs of those whose migrations are attended.
        claimed: Those of offline moves that have not ended.
    """
    rows = [
        (one.name, one.uuid, _state(one, attended), _memory(one.memory), str(one.vcpus or "-"))
        for one in sorted(states, key=lambda one: one.name)
    ]
    rows += [
        (one.name, one.uuid, f"{'saved in' if one.is_saved else 'moved to'} {one.host}", "-", "-")
        for one in sorted(gone, key=lambda one: one.name)
    ]
    rows += [(one.name, one.uuid, f"claimed from {one.source}", "-", "-") for one in claimed]
    return columns(("Name", "UUID", "State", "Memory", "vCPUs"), rows, right=(3, 4))


def _state(one: DomainState, attended: Container[str]) -> str:
    return f"{one.state}, attended" if one.uuid in attended else one.state


def departed(settings: Settings) -> list[Departed]:
    """The domains whose last migration took them away from here, as the journal knows."""
    path = Path(settings.paths.state, "journal.db")
    if not path.exists():
        return []
    newest: dict[str, Departed | None] = {}
    # A list of what runs here is worth having even where the journal cannot be read.
    with contextlib.suppress(JournalError), Journal.open(path, read_only=True) as journal:
        for one in journal.decisions():  # the newest generation of each domain comes first
            if one.never_came:
                continue
            left = one.role is Role.SOURCE and one.record is Record.GONE
            gone = Departed(
                name=one.name, uuid=one.domain, host=one.peer_host, is_saved=one.peer_is_a_save
            )
            newest.setdefault(one.domain, gone if left else None)
    return [one for one in newest.values() if one is not None]


def claims(settings: Settings) -> list[Claimed]:
    """What this host keeps of offline moves that were not carried on to their ends."""
    return [
        Claimed(
            name=one.offer.definition.domain.name,
            uuid=key(one.offer.definition.domain.uuid),
            source=one.offer.source,
        )
        for one in Claims(settings.paths.state)
    ]


def names(settings: Settings) -> list[str]:
    """The names of this host's domains."""
    return [state.name for state in asyncio.run(all_domains(settings))]


def _as_state(one: Departed) -> DomainState:
    return DomainState(name=one.name, uuid=one.uuid, state="moved")


def _memory(size: int) -> str:
    return format_size(size) if size else "-"
