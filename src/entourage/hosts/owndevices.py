"""The USB and PCI devices of this host: who has them, which are free, why others are not.

Equal ones have one name: ``usb:1050:0407``, ``pci:8086:1572``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from entourage.domain import Domain, whole_bdf
from entourage.hosts import pci, usb


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Why one of them is not free.

    Attributes:
        reason: In a sentence.
        remedy: What would free it.
    """

    reason: str
    remedy: str


@dataclass(slots=True)
class OwnDevices:
    """They.

    Attributes:
        free: By name, how many nobody has.
        held: By name, of what there is but none is free: why.
    """

    free: Counter[str] = field(default_factory=Counter[str])
    held: dict[str, Held] = field(default_factory=dict[str, Held])


def names_of(domain: Domain, units: Sequence[pci.Unit]) -> Counter[str]:
    """What of this host's a domain that runs here has, or will have once it has arrived."""
    found: Counter[str] = Counter()
    for one in domain.usb:
        if one.plug is not None:
            found.update(f"usb:{each.names[-1]}" for each in usb.called(one.plug)[:1])
        elif one.host_names:
            found[f"usb:{one.host_names[-1]}"] += 1
    places = _places(domain)
    found.update(one.key for one in units if any(each.place in places for each in one.devices))
    return found


def look(domains: Iterable[Domain], units: Sequence[pci.Unit]) -> OwnDevices:
    """What is here.

    Args:
        domains: Those that run here, or are on their way here.
        units: PCI's.
    """
    known = OwnDevices()
    plugged = Counter(f"usb:{one.names[-1]}" for one in usb.devices() if not one.is_hub)
    owners: dict[str, str] = {}
    by_place: dict[str, str] = {}
    for domain in domains:
        for key, count in names_of(domain, ()).items():
            plugged[key] -= count
            owners[key] = domain.name
        by_place |= dict.fromkeys(_places(domain), domain.name)
    known.free.update(+plugged)
    for key, owner in owners.items():
        if plugged[key] == 0:
            known.held[key] = _anothers(f"the USB device {key.removeprefix('usb:')} there", owner)
    for unit in units:
        if not unit.can_be_given:
            continue
        why = _held(unit, by_place)
        if why is None:
            known.free[unit.key] += 1
        else:
            known.held.setdefault(unit.key, why)
    for key in known.free:
        known.held.pop(key, None)
    return known


def promised_twice(domain: Domain, others: Iterable[Domain]) -> Iterator[tuple[str, Held]]:
    """Which devices of this host a domain is to be given that another one on its way here is.

    Args:
        domain: The one that is to arrive.
        others: Those that are on their way here.

    Yields:
        The device's label in the domain, and why not.
    """
    taken: dict[str, str] = {}
    for other in others:
        for _, places in _plugs(other):
            taken |= dict.fromkeys(places, other.name)
    for label, places in _plugs(domain):
        for place in places:
            if place in taken:
                yield (
                    label,
                    Held(
                        reason=f"{place} is promised to {taken[place]}, which is on its way there",
                        remedy="name another one, or try again once that has arrived",
                    ),
                )


def _plugs(domain: Domain) -> Iterator[tuple[str, set[str]]]:
    """What stands here for a domain's devices, by their labels: each by the place where it is."""
    for usb_device in domain.usb:
        if usb_device.plug is not None:
            yield usb_device.label, {one.place for one in usb.called(usb_device.plug)}
    for pci_device in domain.pci:
        if pci_device.plug is not None:
            yield pci_device.label, {whole_bdf(pci_device.plug)}


def _held(unit: pci.Unit, owners: Mapping[str, str]) -> Held | None:
    for one in unit.devices:
        if one.place in owners:
            return _anothers(f"PCI device {one.place} there", owners[one.place])
    for one in unit.devices:
        if one.is_the_hosts:
            return Held(
                reason=f"PCI device {one.place} there has the host's driver {one.driver}",
                remedy=f"bind it to vfio-pci there (`driverctl set-override {one.place} vfio-pci`),"
                " if the host can do without it",
            )
    return None


def _anothers(what: str, owner: str) -> Held:
    return Held(
        reason=f"{what} is {owner}'s", remedy=f"move {owner} away first, or plug another in"
    )


def _places(domain: Domain) -> set[str]:
    """The PCI devices of this host that a domain has, or will have."""
    return {
        whole_bdf(one.plug or str(one.host))
        for one in domain.pci
        if one.plug is not None or one.host is not None
    }
