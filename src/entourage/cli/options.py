"""From what was typed to values; whatever cannot be meant is said by name."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from entourage.devices.base import Options
from entourage.domain import HostPci, HostUsb, whole_bdf
from entourage.errors import UsageError
from entourage.hosts.route import Route
from entourage.hypervisors import registry
from entourage.settings.load import load_settings
from entourage.settings.model import Settings
from entourage.settings.units import parse_duration, parse_rate

_LONGEST: Final = 86400 * 7
_PORT_MAX: Final = 65535
Value = TypeVar("Value")


class Typed(msgspec.Struct, frozen=True, kw_only=True):
    """What ``migrate`` was given that changes the settings, as it was typed; None: not given."""

    max_blackout: str | None = None
    bandwidth: str | None = None
    tls: bool | None = None
    ports: str | None = None
    data_address: str | None = None
    remote_command: str | None = None
    ssh_options: Sequence[str] = ()


def read_settings(config: Path | None, warn: Callable[[str], None]) -> Settings:
    """This host's settings; ``warn`` is told what the user should know of them."""
    return load_settings(config, warn=warn)


def with_typed(settings: Settings, typed: Typed) -> Settings:
    """The settings with what was typed in their place; raises UsageError."""
    migration: dict[str, Any] = {}
    if typed.max_blackout is not None:
        migration["max_blackout"] = duration("--max-blackout", typed.max_blackout)
    if typed.bandwidth is not None:
        migration["bandwidth"] = _parsed("--bandwidth", typed.bandwidth, parse_rate)
    if typed.tls is not None:
        migration["tls"] = typed.tls
    if typed.ports is not None:
        migration["ports"] = _ports(typed.ports)
    if typed.data_address is not None:
        migration["data_address"] = _address(typed.data_address)
    ssh: dict[str, Any] = {}
    if typed.remote_command is not None:
        ssh["remote_command"] = typed.remote_command
    if typed.ssh_options:
        more = [word for option in typed.ssh_options for word in ("-o", option)]
        ssh["options"] = (*settings.ssh.options, *more)
    return msgspec.structs.replace(
        settings,
        migration=msgspec.structs.replace(settings.migration, **migration),
        ssh=msgspec.structs.replace(settings.ssh, **ssh),
    )


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """What ``migrate`` was given about devices, as it was typed."""

    nets: Sequence[str] = ()
    disks: Sequence[str] = ()
    usb: Sequence[str] = ()
    pci: Sequence[str] = ()
    keep_source_disks: bool = False


def device_options(typed: Devices) -> Options:
    """What concerns devices; raises UsageError."""
    disks = _pairs("--disk", typed.disks, "--disk disk0=/srv/x")
    for disk, path in disks.items():
        if not path.startswith("/"):
            raise UsageError(
                f"--disk {disk}={path}: not an absolute path", remedy=f"--disk {disk}=/…/{path}"
            )
    return Options(
        nets=_pairs("--net", typed.nets, "--net br0=br1"),
        disks=disks,
        usb=_host_devices("--usb", typed.usb, _USB),
        pci=_host_devices("--pci", typed.pci, _PCI),
        keep_source_disks=typed.keep_source_disks,
    )


class _Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How one of the host's own devices is named."""

    form: Any
    example: str
    remedy: str
    whole: Callable[[str], str] = str


_USB: Final = _Kind(
    form=HostUsb,
    example="--usb usb0=1050:0407",
    remedy="as `lsusb` has them: vendor and product, 1050:0407, or bus and address, 1.6; or as the"
    " kernel names its port, 1-1.4",
)
_PCI: Final = _Kind(
    form=HostPci,
    example="--pci pci0=0000:41:00.0",
    remedy="as `lspci -D` has it: 0000:41:00.0",
    whole=whole_bdf,
)


def _host_devices(option: str, texts: Sequence[str], kind: _Kind) -> dict[str, str]:
    """By id, or by what it is here: the one that stands for it there."""
    found: dict[str, str] = {}
    for here, there in _pairs(option, texts, kind.example).items():
        try:
            place = kind.whole(msgspec.convert(there.lower(), kind.form))
        except msgspec.ValidationError:
            raise UsageError(
                f"{option} {here}={there}: {there} names no device", remedy=kind.remedy
            ) from None
        if place in found.values():
            raise UsageError(f"{option}: {there} cannot stand for two devices")
        with contextlib.suppress(msgspec.ValidationError):  # then it is an id
            here = kind.whole(msgspec.convert(here.lower(), kind.form))  # noqa: PLW2901 - the same
        if found.setdefault(here, place) != place:
            raise UsageError(f"{option}: {here} is given twice")
    return found


def duration(option: str, text: str) -> float:
    """A time that something may take; raises UsageError."""
    seconds = _parsed(option, text, parse_duration)
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"{option} {text}: must be more than 0 and at most 7 days")
    return seconds


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Where to.

    Attributes:
        route: How it is reached.
        ssh_options: What a URI says about how ssh reaches it.
    """

    route: Route
    ssh_options: Sequence[str] = ()


def destination(text: str) -> Where:
    """A host, or a hypervisor by its URI; raises UsageError."""
    found = registry.destination(text)
    if found is None:
        return Where(route=Route(host=host_name(text)))
    port = () if found.port is None else (f"Port={found.port}",)
    options = (*port, *found.ssh_options)
    if not found.host:
        route = Route(host=text, there=found.there, agentless=text, by_ssh="no")
    elif found.by_ssh:
        route = Route(host=host_name(found.host), there=found.there, agentless=text)
    elif found.is_local:
        route = Route(host=host_name(found.host), there=found.there)
    else:  # TLS reaches it, and perhaps ssh does: nobody is to wait for that, or be asked
        host, options = host_name(found.host), ("BatchMode=yes", "ConnectTimeout=5")
        route = Route(host=host, there=found.there, agentless=text, by_ssh="if-it-answers")
    return Where(route=route, ssh_options=options)


def host_name(text: str) -> str:
    """A host that ssh can be asked for; raises UsageError where it would be something else."""
    if not text or text.startswith("-") or any(c.isspace() or not c.isprintable() for c in text):
        raise UsageError(f"{text!r} is no host name", remedy="a name or address that ssh knows")
    return text


def domain_file(text: str) -> Path | None:
    """The file that is meant, or None where it is a domain's name."""
    return Path(text) if "/" in text or text.endswith(".toml") else None


def _parsed(option: str, text: str, parse: Callable[[str], Value]) -> Value:
    try:
        return parse(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{option}: {error}") from error


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    if match:
        first, last = int(match[1]), int(match[2])
        if 0 < first <= last <= _PORT_MAX:
            return first, last
    raise UsageError(f"--ports {text}: no range of TCP ports", remedy="--ports 49152-49215")


def _address(text: str) -> str:
    """An address, or a name that could be one."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})", text):
            raise UsageError(
                f"--data-address {text}: neither an address nor a host's name"
            ) from None
    return text


def _pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        here, sign, there = text.partition("=")
        if not (here and sign and there):
            raise UsageError(f"{option} {text}: write HERE=THERE", remedy=example)
        if pairs.setdefault(here, there) != there:
            raise UsageError(f"{option}: {here} is given twice")
    return pairs
