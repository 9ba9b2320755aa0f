"""Which hypervisors there are: what their backends say of themselves, and those of this host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

from entourage.domain import Domain
from entourage.errors import (
    CannotExpress,
    ConfigError,
    DomainBusy,
    EntourageError,
    HypervisorError,
    HypervisorOff,
    UsageError,
    plain_words,
)
from entourage.hypervisors.attended.descriptor import BACKEND as ATTENDED
from entourage.hypervisors.backend import Backend, Destination, Elsewhere, Saves
from entourage.hypervisors.base import DomainState, Hypervisor
from entourage.hypervisors.libvirt.descriptor import BACKEND as LIBVIRT
from entourage.hypervisors.libvirt.descriptor import SESSION
from entourage.hypervisors.plugins import plug_ins
from entourage.hypervisors.qemu.descriptor import BACKEND as QEMU
from entourage.hypervisors.saved.descriptor import BACKEND as SAVED
from entourage.hypervisors.xen.descriptor import BACKEND as XEN
from entourage.settings.model import Settings
from entourage.steps import Refusal

BUILT_IN = (QEMU, XEN, SAVED, ATTENDED, SESSION, LIBVIRT)
_PATIENCE = 5.0
"""Seconds for a hypervisor that nobody has named to say what domains it has."""


def backend_of(name: str) -> Backend:
    """The backend that answers to a hypervisor's name.

    Raises:
        UsageError: There is none.
    """
    for backend in BUILT_IN:
        if backend.answers_to(name):
            return backend
    known = (*BUILT_IN, *plug_ins())
    for backend in known:
        if backend.answers_to(name):
            return backend
    raise UsageError(
        f"no hypervisor is called {name!r}",
        remedy=f"there are: {', '.join(backend.names for backend in known)}",
    )


def open_hypervisor(settings: Settings, name: str) -> Hypervisor:
    """The hypervisor of that name; raises UsageError where there is none."""
    return backend_of(name).open(settings, name)


def starter_of_files() -> str:
    """The name of this host's hypervisor that starts a domain from a domain file."""
    return next(backend.usual for backend in BUILT_IN if backend.starts_files)


def saves_by(name: str) -> str:
    """What a user types to save a domain of a hypervisor, in the place of us; empty where we do."""
    return backend_of(name).saves_by


def saves_of(name: str, *, passed_on: bool = False) -> Saves:
    """What a save of a domain of a hypervisor can be.

    Args:
        name: The hypervisor's.
        passed_on: Whether it is compressed, encrypted or on another host.
    """
    backend = backend_of(name)
    return backend.sends or backend.saves if passed_on else backend.saves


def is_here(name: str) -> bool:
    """Whether this host has a hypervisor of the kind of the one of that name."""
    return backend_of(name).is_here()


def usual(name: str) -> str:
    """The name of this host's usual hypervisor of the same kind as the one of this name."""
    return backend_of(name).usual


def counterpart(name: str, wanted: str | None = None) -> str:
    """The hypervisor on the target that takes a domain of this one here.

    Args:
        name: This host's.
        wanted: The one there that was asked for.
    """
    return backend_of(name).counterpart(name, wanted)


def start_command(hypervisor: str, domain: str) -> str:
    """What a user types on a hypervisor's host to start a domain there."""
    return backend_of(hypervisor).start_command(hypervisor, domain)


def console_command(hypervisor: str, domain: str) -> str:
    """What a user types on a hypervisor's host to have a guest's console; empty for none."""
    return backend_of(hypervisor).console_command(hypervisor, domain)


def elsewhere(name: str) -> Elsewhere | None:
    """The hypervisor of that name on a host without Entourage; None for one on its own host.

    Also where no backend answers to the name: a package may be gone that journals still name.
    """
    try:
        return backend_of(name).elsewhere(name)
    except UsageError:
        return None


def unseen(name: str) -> bool:
    """Whether the domains of the hypervisor of that name may come and go without a record."""
    return backend_of(name).unseen


def ours_alone(name: str) -> bool:
    """Whether nobody but Entourage has domains of the hypervisor of that name come and go."""
    return backend_of(name).ours_alone


def in_directory(name: str) -> str:
    """The directory of a save, of the hypervisor that it is called; empty for any other."""
    there = elsewhere(name)
    return there.uri if there is not None and not there.is_host else ""


def same_as(name: str) -> str:
    """The usual name of a hypervisor of this host, of another name for that one.

    Empty where it is none, or reaches beyond this host. What a caller may ask for goes by it.
    """
    try:
        return backend_of(name).same_as(name)
    except UsageError:
        return ""


def name_elsewhere(uri: str) -> str:
    """The name of the hypervisor behind a URI, on a host without Entourage.

    Raises:
        UsageError: No backend can ask it over the network.
    """
    if name := backend_of(uri).name_elsewhere(uri):
        return name
    raise UsageError(f"{uri} cannot be asked over the network", remedy="install Entourage there")


def destination(text: str) -> Destination | None:
    """Where to, of what a user has written; None where that is a host's name.

    Raises:
        UsageError: It is a URI that cannot be meant.
    """
    if "://" not in text:
        return None
    found = (backend.destination(text) for backend in (*plug_ins(), *BUILT_IN))
    return next((one for one in found if one is not None), None)


def _opened(settings: Settings, connect: str | None) -> list[tuple[Backend, Hypervisor]]:
    """Those of this host; with ``connect``, only the one of that name."""
    if connect:
        backend = backend_of(connect)
        return [(backend, backend.open(settings, connect))]
    here = [backend for backend in (*BUILT_IN, *plug_ins()) if backend.is_here()]
    return [(backend, backend.open(settings, backend.usual)) for backend in here]


def read_ahead(settings: Settings) -> None:
    """Import what the hypervisors of this host are asked with, before one of them is named."""
    for backend in BUILT_IN:
        # One that is half installed, say: it is told of where that hypervisor is asked for.
        with contextlib.suppress(Exception):
            if backend.is_here():
                backend.open(settings, backend.usual)


async def all_domains(settings: Settings, connect: str | None = None) -> list[DomainState]:
    """The domains of all of them; one that cannot be asked has none, unless it is named."""
    found: list[DomainState] = []
    for backend, hypervisor in _opened(settings, connect):
        named = connect is not None or backend.must_answer
        try:
            async with asyncio.timeout(None if named else _PATIENCE):
                found += await hypervisor.domains()
        except (EntourageError, TimeoutError):
            if named:
                raise
    return found


async def known_to_others(
    settings: Settings, domain: Domain, name: str, host: str
) -> list[Refusal]:
    """Why a domain may not come here: another hypervisor of this host has one of its name or UUID.

    One that does not answer may have: a libvirtd that hangs leaves its machines running. Only where
    nothing listens is there none.

    Args:
        settings: This host's.
        domain: The domain.
        name: The hypervisor that is to take it, which knows its own.
        host: What this host is called in refusals.
    """
    own = {name, same_as(name)}
    others = [each for each in _opened(settings, None) if each[1].name not in own]
    ours = str(domain.uuid or "-").lower()

    async def ask(backend: Backend, other: Hypervisor) -> list[Refusal]:
        try:
            async with asyncio.timeout(_PATIENCE):
                known = await other.domains()
        except HypervisorOff:
            return []
        except Exception as error:  # noqa: BLE001 - also a plug-in's: its domains are not known
            return [_not_known(other.name, host, error)]
        return [
            Refusal(
                "domain",
                host,
                f"there is a domain {one.name} here already, of {other.name}",
                "give one another name and UUID; or be rid of that one, if it is of no use any"
                f" more: {backend.delete_hint(other.name, one.name)}",
            )
            for one in known
            if one.name == domain.name or one.uuid.lower() == ours
        ]

    answers = await asyncio.gather(*(ask(*each) for each in others))
    return [refusal for found in answers for refusal in found]


def _not_known(name: str, host: str, error: Exception) -> Refusal:
    """A hypervisor whose domains nobody tells: they may run, and have this one's name or UUID."""
    silent = _silence(name, error)
    return Refusal(
        "domain",
        host,
        f"whether {name} here has a domain of that name or UUID is not known: {silent.message}",
        silent.remedy or _ask_it(name),
    )


def _silence(name: str, error: Exception) -> EntourageError:
    """Why a hypervisor does not say what it has."""
    if isinstance(error, EntourageError):
        return error
    said = plain_words(error)
    if isinstance(error, TimeoutError):
        said = f"{name} does not answer within {_PATIENCE:g} s"
    return HypervisorError(said, remedy=_ask_it(name))


def _ask_it(name: str) -> str:
    return f"see on that host why `entourage list --connect {name}` fails"


async def check_lacks(
    settings: Settings, uuid: str, *, name: str = "", must_say: Collection[str] = (), but: str = ""
) -> None:
    """See that no hypervisor of this host has a domain, running or off.

    Args:
        settings: This host's.
        uuid: The domain's.
        name: A name that none of its domains may have either; empty: any may.
        must_say: Hypervisors that have to answer, also where nothing listens at their sockets: what
            they keep on their disks comes back with them.
        but: One that is not asked.

    Raises:
        DomainBusy: One has it.
        HypervisorError: One does not answer, and may have it.
        UsageError: There is no such hypervisor.
    """
    ours = uuid.lower()
    required = {*must_say, *map(same_as, must_say)} - {""}
    here = _opened(settings, None)
    present = {hypervisor.name for _, hypervisor in here}
    for wanted in dict.fromkeys(must_say):
        if present.isdisjoint({wanted, same_as(wanted)}):
            here += _opened(settings, wanted)

    async def ask(hypervisor: Hypervisor) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                known = await hypervisor.domains()
        except Exception as error:  # also a plug-in's: its domains are not known
            if isinstance(error, HypervisorOff) and hypervisor.name not in required:
                return
            silent = _silence(hypervisor.name, error)
            raise HypervisorError(
                f"whether {hypervisor.name} has {name or uuid} is not known: {silent.message}",
                remedy=silent.remedy or _ask_it(hypervisor.name),
            ) from error
        for one in known:
            if one.uuid.lower() == ours or (name and one.name == name):
                raise DomainBusy(
                    f"{hypervisor.name} has {one.name} ({one.uuid}) on this host",
                    remedy=f"name it as `entourage list --all --connect {hypervisor.name}` does",
                )

    own = {but, same_as(but)} if but else set[str]()
    await asyncio.gather(*(ask(each) for _, each in here if each.name not in own))


async def find_domain(
    settings: Settings, name: str, connect: str | None = None
) -> tuple[Hypervisor, Domain]:
    """A domain of this host, and whose it is.

    Raises:
        UsageError: There is none of that name, or two hypervisors have one.
        EntourageError: One that must answer does not.
    """
    asked = _opened(settings, connect)
    found: list[tuple[Hypervisor, Domain]] = []
    problem: EntourageError | None = None
    unasked = ""
    for backend, hypervisor in asked:
        try:
            async with asyncio.timeout(None if len(asked) == 1 else _PATIENCE):
                found.append((hypervisor, await hypervisor.find(name)))
        except (ConfigError, CannotExpress):  # it is there, and cannot be taken as it is
            raise
        except UsageError as error:
            problem = problem or error
        except (EntourageError, TimeoutError) as error:
            silent = _silence(hypervisor.name, error)
            if len(asked) == 1 or backend.must_answer:
                raise silent from None
            unasked += f"; {hypervisor.name} may have it, and fails: {silent.message}"
    if len(found) > 1:
        owners = " and ".join(f"one of {hypervisor.name}" for hypervisor, _ in found)
        raise UsageError(
            f"there are two domains {name!r} on this host: {owners}",
            remedy="--connect with one of these names says which is meant",
        )
    if not found:
        problem = problem or UsageError(f"there is no domain {name!r} on this host")
        problem.message += unasked
        raise problem
    return found[0]
