"""What a source hands to this host's libvirtd: is it what Entourage sends, and what does it name?

The source is not believed. Prepare is given only parameters and flags that are known here, and XML
of the very domain that was opened. What that names is told of (``hostparts.py``), also of the
definition that comes in the cookie for Finish, which libvirtd writes down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from xml.etree import ElementTree as ET

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.libvirt.connection import Connection, ask
from entourage.hypervisors.libvirt.constants import FROM_SOURCE, Flag, Parameter
from entourage.hypervisors.libvirt.domainxml import Lookups, parse
from entourage.hypervisors.libvirt.hostparts import host_parts
from entourage.hypervisors.libvirt.lookups import lookups_of
from entourage.hypervisors.libvirt.oneway import check_one_way
from entourage.hypervisors.libvirt.plan import LibvirtPlan

_TYPES: Mapping[str, type] = {
    Parameter.DEST_XML: str,
    Parameter.PERSIST_XML: str,
    Parameter.BANDWIDTH: int,
    Parameter.DISKS: list,
    Parameter.TLS_DESTINATION: str,
    Parameter.CONVERGE_INITIAL: int,
    Parameter.CONVERGE_INCREMENT: int,
}
"""What comes from Entourage on the source."""
_COPYING = Flag.NON_SHARED_DISK | Flag.NON_SHARED_INC
_OF_CONTROLLERS = frozenset({Kind.IMAGE, Kind.NETWORK, Kind.TAP})
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_WITH_SCOPE = re.compile(r"[A-Za-z0-9_.:%-]+")
_PACKAGED = re.compile(r"/usr/(?:s?bin|libexec|lib/qemu)/(?:kvm|qemu-kvm|qemu-system-[a-z0-9_]+)")


def check_plan(plan: LibvirtPlan, domain: Domain) -> None:
    """See that a plan is one that Entourage makes, and about this domain.

    Raises:
        HypervisorError: It is not.
    """
    for name, value in plan.parameters.items():
        if not isinstance(value, _TYPES.get(name, ())):
            raise HypervisorError(f"the source's plan has a parameter that is not known: {name}")
    if unknown := plan.flags & ~FROM_SOURCE:
        raise HypervisorError(f"the source's plan has flags that are not known: {unknown:#x}")
    if plan.flags & _COPYING and not _copied(plan):
        raise HypervisorError("the source's plan copies disks, and does not say which")
    if Parameter.DEST_XML not in plan.parameters:
        raise HypervisorError("the source's plan has no XML")
    for root in _roots(plan):
        check_identity(root, domain)


def check_cookie(cookie: bytes, domain: Domain) -> None:
    """See that a definition in one of libvirt's cookies is this domain's.

    Raises:
        HypervisorError: It is not, or the cookie is none.
    """
    for root in _definitions(cookie):
        check_identity(root, domain)


def listening_at(address: str) -> str:
    """The URI that has libvirt take memory at an address of this host's, at a port it chooses.

    Raises:
        HypervisorError: It is neither an address nor a name.
    """
    if _HOST_NAME.fullmatch(address):
        return f"tcp://{address}"
    with contextlib.suppress(ValueError):
        if _WITH_SCOPE.fullmatch(address):
            return f"tcp://[{ipaddress.IPv6Address(address)}]"
    raise HypervisorError(f"{address!r} is no address of this host's")


def check_address(address: str) -> None:
    """See that libvirt can be told to take memory at an address.

    Raises:
        HypervisorError: It cannot.
    """
    if "%" in address:
        raise HypervisorError(
            f"libvirt takes no memory by {address}, which is good on one link only",
            remedy="--data-address with another address of the target",
        )


async def told(connection: Connection, facts: Mapping[str, str]) -> Sequence[HostPart]:
    """What the domain names, by what the source says of it before anything is made."""

    def look() -> list[HostPart]:
        lookups = lookups_of(connection)
        running = list(_of_emulator(facts.get("emulator", "")))
        if text := facts.get("xml"):
            running += named(read(text), lookups)
        if text := facts.get("definition"):
            return running + _pending(running, _kept(named(read(text), lookups)))
        return running

    return _without(await ask(look), await emulators(connection))


async def planned(
    connection: Connection, plan: LibvirtPlan, offered: frozenset[str]
) -> Sequence[HostPart]:
    """What the XML names that Prepare is to be given, but for these emulators."""

    def look() -> list[HostPart]:
        lookups = lookups_of(connection)
        destination, *definitions = [*_roots(plan), *_definitions(plan.cookie)]
        found = named(destination, lookups)
        found += _copied_to(plan, found)
        for root in definitions:
            found += _kept(named(root, lookups))
        return found

    return _without(await ask(look), offered)


async def defined(
    connection: Connection, cookie: bytes, offered: frozenset[str]
) -> Sequence[HostPart]:
    """What the definition names that Finish is to write down, but for these emulators."""

    def look() -> list[HostPart]:
        lookups = lookups_of(connection)
        return [part for root in _definitions(cookie) for part in _kept(named(root, lookups))]

    return _without(await ask(look), offered)


async def emulators(connection: Connection) -> frozenset[str]:
    """Those that this libvirtd offers by itself, by its own paths. May take it some time."""

    def look() -> frozenset[str]:
        found = parse(connection.raw.getCapabilities()).iterfind("guest//emulator")
        return frozenset(emulator.text or "/" for emulator in found)

    return await ask(look)


def read(text: str) -> ET.Element:
    """The root of an XML text that every parser reads in the same way; see ``oneway.py``.

    Raises:
        HypervisorError: It is none, or could be read otherwise.
    """
    check_one_way(text)
    return parse(text)


def _roots(plan: LibvirtPlan) -> Iterator[ET.Element]:
    """The domain as it is to run, and as it is to be kept, where that is said.

    ``plan.xml`` reaches nobody here: Prepare is given ``Parameter.DEST_XML``.
    """
    yield read(str(plan.parameters.get(Parameter.DEST_XML, "")))
    if text := plan.parameters.get(Parameter.PERSIST_XML):
        yield read(str(text))


def _definitions(cookie: bytes) -> list[ET.Element]:
    if not cookie:
        return []
    try:
        text = cookie.decode()
    except UnicodeDecodeError as error:
        raise HypervisorError("the source's cookie is none of libvirt's") from error
    return read(text.removesuffix("\0")).findall("domain")


def named(root: ET.Element, lookups: Lookups) -> list[HostPart]:
    """What a domain's XML names of the host.

    Raises:
        HypervisorError: It has a number that is none, or no end of elements in elements.
    """
    try:
        return list(host_parts(root, lookups))
    except (ValueError, RecursionError) as error:
        raise HypervisorError(f"the source's XML cannot be read: {error}") from error


def _kept(parts: Iterable[HostPart]) -> Iterator[HostPart]:
    """The same of a definition, which may name what the running domain does not."""
    for part in parts:
        yield dataclasses.replace(part, place=f"{part.place} of its definition")


def _pending(running: Sequence[HostPart], kept: Iterable[HostPart]) -> list[HostPart]:
    """The same, as the domain's own where the running device of that name has another in its place.

    A device's controller asks only of what runs.
    """
    has = {(part.device, part.name) for part in running}
    return [
        dataclasses.replace(part, device="domain")
        if part.kind in _OF_CONTROLLERS and (part.device, part.name) not in has
        else part
        for part in kept
    ]


def check_identity(root: ET.Element, domain: Domain) -> None:
    """See that an XML is of this domain, by its name and UUID; raises HypervisorError."""
    for tag in ("name", "uuid"):
        if [len(found) for found in root.iterfind(tag)] != [0]:  # one, and nothing in it
            raise HypervisorError(f"the source's XML is not that of {domain.name}")
    try:
        same = uuid.UUID(root.findtext("uuid", "")) == uuid.UUID(str(domain.uuid))
    except ValueError:
        same = False
    if not same or root.findtext("name") != domain.name or root.tag != "domain":
        raise HypervisorError(f"the source's XML is not that of {domain.name}")


def _copied(plan: LibvirtPlan) -> list[str]:
    names = plan.parameters.get(Parameter.DISKS)
    return names if isinstance(names, list) else []


def _copied_to(plan: LibvirtPlan, parts: Sequence[HostPart]) -> Iterator[HostPart]:
    """The images that libvirt exports for writing; named in ``Parameter.DISKS``."""
    for name in _copied(plan):
        label = f"block/{name}"
        images = [part for part in parts if part.device == label and part.kind is Kind.IMAGE]
        # The first is the disk's own; the guest writes to no other.
        path = images[0].name if images else name
        yield HostPart(kind=Kind.COPIED, name=path, place=Parameter.DISKS.value, device=label)


def _of_emulator(path: str) -> Iterator[HostPart]:
    if path:
        yield HostPart(kind=Kind.PROGRAM, name=path, place="devices/emulator")


def _without(parts: Iterable[HostPart], offered: frozenset[str]) -> list[HostPart]:
    """Without the emulators that are here anyway.

    By the very paths that libvirt has for them, or under a usual name in the system's own
    directories, as the ``kvm`` of older domains: a link elsewhere could be another when it is run.
    """

    def is_here(part: HostPart) -> bool:
        return part.name in offered or bool(_PACKAGED.fullmatch(part.name))

    return [part for part in parts if part.kind is not Kind.PROGRAM or not is_here(part)]
