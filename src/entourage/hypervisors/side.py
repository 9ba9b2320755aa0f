"""What a user writes for Entourage about another's domain: tools, policies, and more devices.

It stands in ``/etc/entourage/domains/NAME.toml``, or in a libvirt domain's XML, where it moves
along::

    <metadata>
      <entourage:devices xmlns:entourage="urn:entourage:domain">
        [[block]]
        id = "vda"
        copy = "flat"
      </entourage:devices>
    </metadata>

The tables are those of a domain file, without what the hypervisor knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from entourage.domain import DEVICE_CLASSES, Device, DeviceId, Domain, External
from entourage.errors import ConfigError
from entourage.settings.domainfile import FORMS, part_added
from entourage.settings.textfile import decode, parse_toml, read_bytes, shown
from entourage.settings.typed import Dialect, build

DIRECTORY = Path("/etc/entourage/domains")
NAMESPACE = "urn:entourage:domain"
"""Of what a user writes into a libvirt domain's ``<metadata>``."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What a user adds to what is known: tools and policies by device, and more devices."""

    devices: Mapping[str, Mapping[str, Any]] = {}
    external: Sequence[External] = ()
    added: dict[str, tuple[dict[str, Any], ...]] | UnsetType = UNSET


def with_side(domain: Domain, side: Side) -> Domain:
    """The domain with what a user has added.

    Raises:
        ConfigError: It names a device that the domain does not have.
    """
    for label, changes in side.devices.items():
        try:
            device: Device = domain.device(label)
        except KeyError:
            has = ", ".join(each.label for each in domain.devices) or "none"
            raise ConfigError(
                f"names {label}, which {domain.name} does not have",
                path=f"what was written for {domain.name}",
                remedy=f"it has: {has}",
            ) from None
        domain = domain.with_device(msgspec.structs.replace(device, **changes))
    return msgspec.structs.replace(domain, external=tuple(side.external), added=side.added)


class _Section(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename="kebab",
    kw_only=True,
    omit_defaults=True,
):
    """One device, by the id that ``entourage show`` has for it."""

    id: DeviceId
    tool: Annotated[str, Meta(min_length=1)] | None = None


class _Disk(_Section, frozen=True):
    """Policies that the hypervisor does not know."""

    shared: Literal["auto", "yes", "no"] | None = None
    copy: Literal["auto", "flat", "keep-chain"] | None = None


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of it."""

    block: tuple[_Disk, ...] = ()
    net: tuple[_Section, ...] = ()
    tpm: tuple[_Section, ...] = ()
    usb: tuple[_Section, ...] = ()
    pci: tuple[_Section, ...] = ()
    external: tuple[External, ...] = ()


def read_side(name: str, metadata: str, directory: Path = DIRECTORY) -> Side:
    """What was written about a domain; the file wins over the metadata.

    Args:
        name: The domain's.
        metadata: What its XML holds for us; empty where it has no XML.
        directory: Where files are.

    Raises:
        ConfigError: It cannot be read or understood.
    """
    path = directory / f"{name}.toml"
    if path.is_file():
        return _parse(decode(read_bytes(path), path), path)
    if metadata.strip():
        return _parse(metadata, Path(f"{name}'s XML metadata ({NAMESPACE})"))
    return Side()


def _parse(text: str, path: Path) -> Side:
    dialect = Dialect(shown(path), forms=FORMS)
    raw, added = part_added(parse_toml(text, path), dialect)
    written = build(raw, _Written, dialect)
    devices: dict[str, dict[str, Any]] = {}
    for table in DEVICE_CLASSES[:-1]:  # external ones are whole
        sections: tuple[_Section, ...] = getattr(written, table)
        for section in sections:
            said: dict[str, Any] = msgspec.to_builtins(section)
            devices[f"{table}/{said.pop('id')}"] = said
    return Side(devices=devices, external=written.external, added=added)
