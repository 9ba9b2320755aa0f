"""What a user writes for Entourage about a libvirt domain: tools, policies, and more devices.

It stands in ``/etc/entourage/domains/NAME.toml``, or in the domain's XML, where it moves along::

    <metadata>
      <entourage:devices xmlns:entourage="urn:entourage:domain">
        [[block]]
        id = "vda"
        copy = "flat"
      </entourage:devices>
    </metadata>

The tables are those of a domain file, without what libvirt knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from entourage.domain import DeviceId, External
from entourage.hypervisors.libvirt.domainxml import NAMESPACE, Side
from entourage.settings.domainfile import FORMS
from entourage.settings.textfile import decode, parse_toml, read_bytes, shown
from entourage.settings.typed import Dialect, build

DIRECTORY = Path("/etc/entourage/domains")


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
    """Policies that libvirt does not know."""

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
        metadata: What its XML holds for us.
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
    written = build(parse_toml(text, path), _Written, Dialect(shown(path), forms=FORMS))
    devices: dict[str, dict[str, Any]] = {}
    for table in ("block", "net", "tpm", "usb", "pci"):
        sections: tuple[_Section, ...] = getattr(written, table)
        for section in sections:
            said: dict[str, Any] = msgspec.to_builtins(section)
            devices[f"{table}/{said.pop('id')}"] = said
    return Side(devices=devices, external=written.external)
