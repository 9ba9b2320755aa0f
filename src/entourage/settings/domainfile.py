"""Domain files: the TOML that describes a domain, read with good errors and written again.

The keys are the fields of ``entourage.domain.Domain``; docs/domain-file.md explains them.
"""

from __future__ import annotations

import difflib
import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from entourage.domain import ADDED, Block, Device, Domain, Net, Pci, Tpm, Usb, added_controller
from entourage.errors import ConfigError
from entourage.settings.command import split_command
from entourage.settings.textfile import decode, parse_toml, printable, read_bytes, shown
from entourage.settings.typed import SIZE, Dialect, build

MIB = 1 << 20
MACHINES = ("q35", "pc", "microvm", "virt", "pseries", "xenfv", "xenpv", "pvh", "none")

# What a text that has a pattern must look like, by its key.
FORMS: Mapping[str, str] = {
    "name": "1 to 63 characters without / and control characters, not beginning with . or -",
    "id": 'a letter, then up to 30 letters, digits, ".", "_" or "-", as "disk0"',
    "uuid": 'a UUID, as "2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11"',
    "machine": 'a machine type, as "q35" or "pc-q35-7.2"',
    "cpu": 'a CPU model with its flags, as "EPYC-v4" or "host,-svm"',
    "path": 'an absolute path, as "/srv/web1.qcow2"',
    "socket": 'an absolute path, as "/run/swtpm/web1.sock"',
    "firmware": 'an absolute path, as "/usr/share/OVMF/OVMF_CODE_4M.fd"',
    "nvram": 'an absolute path, as "/srv/web1-vars.fd"',
    "nvram-template": 'an absolute path, as "/usr/share/OVMF/OVMF_VARS_4M.fd"',
    "kernel": 'an absolute path, as "/boot/vmlinuz"',
    "initrd": 'an absolute path, as "/boot/initrd.img"',
    "bridge": 'the name of a network interface, up to 15 characters, as "br0"',
    "tap": 'the name of a network interface, up to 15 characters, as "tap0"',
    "mac": 'a unicast MAC address, as "52:54:00:12:34:56"',
    "address": 'a place on the PCI root bus, as "03.0"',
    "host": 'a PCI address in small letters, as "0000:3b:00.0"',
    "place": 'one of the host\'s USB devices, as "1-1.4"',
    "port": 'a controller and a port, as "0:1"',
    "options": 'what xl is told of a PCI device, as "permissive=1"',
    "plug": "one of another host's devices",
    "type": 'letters, digits, ".", "_" or "-", up to 31, as "fpga"',
}


def load_domain(path: Path) -> Domain:
    """Read a domain file.

    Raises:
        ConfigError: It cannot be read, is no TOML, or describes no domain; the message names the
            file, the key and what is allowed.
    """
    return domain_from_toml(decode(read_bytes(path), path), path)


def domain_from_toml(text: str, path: Path) -> Domain:
    """The domain in a TOML text; ``path`` is for messages.

    Raises:
        ConfigError: It describes no domain.
    """
    where = shown(path)
    dialect = Dialect(where, units={"memory": SIZE}, forms=FORMS, directory=shown(path.parent))
    raw, added = part_added(parse_toml(text, path), dialect)
    domain = msgspec.structs.replace(build(raw, Domain, dialect), added=added)
    # What boot.nvram has become; nothing but a pflash disk comes after the file's own disks.
    nvram = f"block[{len(raw.get('block', ()))}]."
    for fault in _faults(domain):
        key = "boot.nvram" if fault.key.startswith(nvram) else fault.key
        raise ConfigError(
            printable(fault.message), path=where, key=key, remedy=printable(fault.remedy)
        )
    return domain


def part_added(
    raw: Mapping[str, Any], dialect: Dialect
) -> tuple[dict[str, Any], dict[str, tuple[dict[str, Any], ...]] | UnsetType]:
    """Part the tables of the device classes in ``ADDED`` from all others.

    Args:
        raw: As tomllib returns it.
        dialect: What is particular to this kind of file.

    Returns:
        The others, and what a domain has as ``added``.

    Raises:
        ConfigError: A key, a type or a value of theirs is wrong.
    """
    rest = dict(raw)
    theirs = {name: rest.pop(name) for name in ADDED if name in rest}
    if not theirs:
        return rest, UNSET
    classes = [(name, tuple[added_controller(name).spec, ...]) for name in theirs]
    built = build(theirs, msgspec.defstruct("Added", classes), dialect)
    return rest, {
        name: tuple(msgspec.to_builtins(device) for device in getattr(built, name))
        for name in theirs
    }


class _Fault(msgspec.Struct, frozen=True):
    """Something that no single key shows."""

    key: str
    message: str
    remedy: str = ""


def _faults(domain: Domain) -> Iterator[_Fault]:
    """What is wrong between keys, in the order of the file's format."""
    if domain.memory % MIB:
        below = max(domain.memory // MIB, 1)
        remedy = f'write "{below}M" or "{below + 1}M"'
        yield _Fault("memory", f"{domain.memory} bytes are no whole number of MiB", remedy)
    yield from _machine_faults(domain.machine)
    boot = domain.boot
    for key in ("initrd", "cmdline"):
        if getattr(boot, key) is not None and boot.kernel is None:
            yield _Fault(f"boot.{key}", "is only for a kernel, and none is given", "add kernel = …")
    yield from _flash_faults(domain)
    for key, device in _keyed(domain):
        if device.tool is not None:
            yield from _tool_faults(f"{key}.tool", device.tool)
        yield from _device_faults(key, device)
    yield from _twice(domain)


def _machine_faults(machine: str) -> Iterator[_Fault]:
    # Which types there are is the hypervisor's to say, and TEST asks it; a slip is shown here.
    if machine in MACHINES or "-" in machine:
        return
    close = difflib.get_close_matches(machine.lower(), MACHINES, n=1, cutoff=0.6)
    if close:
        yield _Fault("machine", f"no machine type {machine!r}; did you mean {close[0]!r}")


def _tool_faults(key: str, command: str) -> Iterator[_Fault]:
    try:
        split_command(command)
    except ValueError as error:
        yield _Fault(key, str(error))


def _device_faults(key: str, device: Device) -> Iterator[_Fault]:
    """What one device may not have together."""
    if getattr(device, "model", None) == "other":
        yield _Fault(f"{key}.model", "'other' is what other hypervisors have, and cannot be made")
    for name in ("place", "port", "options", "plug"):
        if getattr(device, name, None) is not None:
            yield _Fault(f"{key}.{name}", "is what other hypervisors say, and cannot be asked for")
    match device:
        case Net() if device.attach != "bridge" or device.network is not None:
            name = "network" if device.network is not None else "attach"
            yield _Fault(f"{key}.{name}", "is what other hypervisors have; a NIC here has a bridge")
        case Block(model="pflash"):
            yield from _pflash_faults(key, device)
        case Block():
            if device.copy == "keep-chain" and device.format != "qcow2":
                yield _Fault(f"{key}.copy", "only a qcow2 has a chain", 'write format = "qcow2"')
        case Tpm():
            yield from _needs(key, device.type, "external", "socket", device.socket)
            yield from _needs(key, device.type, "passthrough", "path", device.path)
        case Usb():
            own = (device.vendor, device.product)
            if (device.model is None) == (own == (None, None)):
                yield _Fault(key, "needs either model, or vendor and product")
            elif device.model is None and None in own:
                missing = "vendor" if device.vendor is None else "product"
                yield _Fault(f"{key}.{missing}", "must be given", "vendor and product go together")
        case Pci():
            if (device.model is None) == (device.host is None):
                yield _Fault(key, "needs either model or host")
        case _:
            pass


def _flash_faults(domain: Domain) -> Iterator[_Fault]:
    """What is wrong between a UEFI firmware and the file of its variables."""
    flashes = [f"block[{at}].model" for at, one in enumerate(domain.block) if one.model == "pflash"]
    if flashes and domain.boot.firmware is None:
        yield _Fault("boot.firmware", "must be given with nvram", "name the firmware's code")
    if flashes[1:]:
        first = flashes[0].removesuffix(".model")
        yield _Fault(
            flashes[1], f"a domain has one pflash disk at most, and {first} is one", "leave one out"
        )
    if not flashes and domain.boot.nvram_template is not None:
        yield _Fault("boot.nvram-template", "is only for nvram, and none is given")


def _pflash_faults(key: str, disk: Block) -> Iterator[_Fault]:
    """What the file of a firmware's variables may not have."""
    plain = Block(id=disk.id, path=disk.path)
    for name in ("format", "readonly", "copy", "size", "serial", "address"):
        if getattr(disk, name) != getattr(plain, name):
            yield _Fault(f"{key}.{name}", "is not for a firmware's variables", "leave it out")


def _needs(key: str, type_: str, wanted: str, name: str, given: str | None) -> Iterator[_Fault]:
    """Of one type a key must be given, and of no other."""
    if type_ == wanted and given is None:
        yield _Fault(f"{key}.{name}", f"must be given with type = {wanted!r}")
    elif type_ != wanted and given is not None:
        yield _Fault(f"{key}.{name}", f"is only for type = {wanted!r}, and it is {type_!r}")


def _twice(domain: Domain) -> Iterator[_Fault]:
    """What must differ between devices, and does not."""
    keyed = list(_keyed(domain))
    disks = [(key, disk) for key, disk in keyed if isinstance(disk, Block)]
    nets = [(key, net) for key, net in keyed if isinstance(net, Net)]
    pcis = [(key, pci) for key, pci in keyed if isinstance(pci, Pci)]
    same: Sequence[tuple[str, Callable[[str], str], Sequence[tuple[str, str | None]]]] = (
        ("id", str, [(key, device.id) for key, device in keyed]),
        ("path", _real, [(key, disk.path) for key, disk in disks]),
        ("serial", str, [(key, disk.serial) for key, disk in disks]),
        ("mac", str.lower, [(key, net.mac) for key, net in nets]),
        ("tap", str, [(key, net.tap) for key, net in nets]),
        ("address", str, [(key, getattr(device, "address", None)) for key, device in keyed]),
        ("host", lambda host: host.removeprefix("0000:"), [(key, pci.host) for key, pci in pcis]),
    )
    read_only = {key for key, disk in disks if disk.readonly}
    for name, norm, values in same:
        seen: dict[str, str] = {}
        for key, value in values:
            if value is None:
                continue
            other = seen.setdefault(norm(value), key)
            if other != key and not (name == "path" and {other, key} <= read_only):
                yield _Fault(f"{key}.{name}", f"{value!r} is {other}'s already")


def _real(path: str) -> str:
    """A path without what makes no difference in it; links are the hypervisor's host's to know."""
    return os.path.normpath("/" + path.lstrip("/"))


def _keyed(domain: Domain) -> Iterator[tuple[str, Device]]:
    """Every device with its key in a file, ``block[0]``."""
    for name, devices in groupby(domain.devices, lambda device: device.device_class):
        for index, device in enumerate(devices):
            yield f"{name}[{index}]", device


def dump_domain(domain: Domain) -> str:
    """The domain as TOML that ``load_domain`` reads to the same value.

    What is None or empty is left out; what has its default is written, so that a running domain
    is shown whole.
    """
    plain = cast("dict[str, Any]", msgspec.to_builtins(domain))
    plain |= plain.pop("added", {})
    if domain.memory % MIB == 0:
        plain["memory"] = f"{domain.memory // MIB}M"
    lines = _pairs(plain)
    for name, value in plain.items():
        if isinstance(value, dict):
            pairs = _pairs(cast("dict[str, Any]", value))
            lines += ["", f"[{name}]", *pairs] if pairs else []
        elif isinstance(value, list | tuple):
            for item in cast("Sequence[dict[str, Any]]", value):
                lines += ["", f"[[{name}]]", *_pairs(item)]
    return "\n".join(lines) + "\n"


def _pairs(table: Mapping[str, Any]) -> list[str]:
    """``key = value`` for what is no table and not None; a device's id first."""
    return [
        f"{key} = {_literal(value, base=16 if key in {'vendor', 'product'} else 10)}"
        for key, value in sorted(table.items(), key=lambda item: item[0] != "id")
        if isinstance(value, str | int | float)
    ]


def _literal(value: float | str, *, base: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON text is a TOML basic string, but for DEL.
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    return f"{value:#06x}" if base == 16 else repr(value)  # noqa: PLR2004
