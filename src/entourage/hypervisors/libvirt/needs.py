"""What the target must have for a domain's XML, and what to do where it has not: asked at TEST.

libvirt looks for it only when it builds the machine, and says no more than that it is not there.
Whether the domain may name it is another question, and comes before (``hosts/allowed.py``).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree as ET

from entourage.hypervisors.libvirt.connection import Connection, ask, bindings
from entourage.hypervisors.libvirt.domainxml import parse, size_of
from entourage.hypervisors.libvirt.oneway import check_one_way
from entourage.hypervisors.understood import understood
from entourage.steps import Refusal

Need: TypeAlias = tuple[str, str]
"""What is missing, and what to do about it."""

_NO_SECRET = 66
_USAGES: Mapping[str, int] = {"volume": 1, "ceph": 2, "iscsi": 3, "tls": 4, "vtpm": 5}
CHARDEVS = ("serial", "parallel", "console", "channel", "redirdev", "smartcard")
LIBVIRTS_OWN = re.compile(r"(/var/lib/libvirt/qemu|(/var)?/run/libvirt/qemu)/")
"""libvirt makes these directories by itself, for each domain."""
# Files that must be there, by where they are named, and what each is for.
_FILES: Mapping[str, str] = {
    "os/dtb": "a device tree",
    "os/acpi/table": "an ACPI table",
    "sysinfo/entry/@file": "what the guest is told by fw_cfg",
    "devices/*/rom/@file": "a device's ROM",
    "devices/rng/backend[@model='random']": "a source of random numbers",
    "devices/input/source/@evdev": "an input device",
    "devices/input/source/@dev": "an input device",
    "devices/graphics/gl/@rendernode": "a GPU",
    "devices/memory/source/path": "what a memory module is backed by",
}
_HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
_MEMINFO = Path("/proc/meminfo")
_CPUS = Path("/sys/devices/system/cpu/online")
_NODES = Path("/sys/devices/system/node/online")


async def needs(
    connection: Connection, facts: Mapping[str, str], host: str, *, files: bool
) -> list[Refusal]:
    """What a domain needs there and does not have.

    Args:
        connection: To the libvirtd that is to build it.
        facts: What ``LibvirtMachine.facts`` said.
        host: What the target is called.
        files: Whether that libvirtd's host is this one.
    """
    text = facts.get("xml", "")
    if not text:
        return []
    check_one_way(text)
    root = parse(text)

    def look() -> list[Need]:
        found = [*_secrets(root, connection.raw, host, values=files)]
        found += [*_filters(root, connection.raw, host)]
        found += [*_networks(root, connection.raw, host)]
        if files:
            for check in _LOCAL:
                found += [*check(root, host)]
        return list(dict.fromkeys(found))

    with understood("the domain's XML", "see it with `virsh dumpxml`"):
        return [Refusal("domain", host, reason, remedy) for reason, remedy in await ask(look)]


# What libvirt keeps


def _secrets(root: ET.Element, raw: Any, host: str, *, values: bool) -> Iterator[Need]:
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        whose = f"the disk {target.get('dev') if target is not None else ''}"
        for secret in disk.iter("secret"):
            yield from _secret(secret, whose, raw, host, values=values)
    for device in root.iterfind("devices/hostdev"):
        for secret in device.iter("secret"):
            yield from _secret(secret, "a host device", raw, host, values=values)
    for encryption in root.iterfind("devices/tpm/backend/encryption"):
        secret = ET.Element("secret", uuid=encryption.get("secret", ""))
        yield from _secret(secret, "the TPM's state", raw, host, values=values)


def _secret(asked: ET.Element, whose: str, raw: Any, host: str, *, values: bool) -> Iterator[Need]:
    uuid, usage = asked.get("uuid", ""), asked.get("usage", "")
    name = uuid or f"for {asked.get('type', '')} {usage}"
    copy = (
        f"virsh secret-dumpxml {uuid or 'UUID'} here, then on {host}:"
        " virsh secret-define FILE, virsh secret-set-value UUID --file VALUE"
    )
    error = bindings().libvirtError
    try:
        if uuid:
            secret = raw.secretLookupByUUIDString(uuid)
        else:
            kind = asked.get("type", "")
            secret = raw.secretLookupByUsage(_USAGES.get(kind, 0), usage)
    except error:
        yield f"libvirt there has no secret {name}, which {whose} needs", copy
        return
    if not values:
        return
    try:
        secret.value(0)
    except error as failure:  # one that is private is not shown to anybody
        if failure.get_error_code() == _NO_SECRET:
            yield (
                f"the secret {name}, which {whose} needs, has no value there",
                f"on {host}: virsh secret-set-value {uuid or 'UUID'} --file VALUE",
            )


def _filters(root: ET.Element, raw: Any, host: str) -> Iterator[Need]:
    for filterref in root.iterfind("devices/interface/filterref"):
        name = filterref.get("filter", "")
        try:
            raw.nwfilterLookupByName(name)
        except bindings().libvirtError:
            yield (
                f"libvirt there has no network filter {name}",
                f"virsh nwfilter-dumpxml {name} here, then virsh nwfilter-define FILE on {host}",
            )


def _networks(root: ET.Element, raw: Any, host: str) -> Iterator[Need]:
    for listen in root.iterfind("devices/graphics/listen[@type='network']"):
        name = listen.get("network", "")
        try:
            is_up = bool(raw.networkLookupByName(name).isActive())
        except bindings().libvirtError:
            is_up = False
        if not is_up:
            yield (
                f"a display listens on libvirt's network {name}, which is not up there",
                f"virsh net-start {name} on {host}, or define it there first",
            )


# What lies on the host


def _exists(path: str | Path) -> bool:
    """Whether there is something; not where no file can have such a name."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _files(root: ET.Element, host: str) -> Iterator[Need]:
    for where, what in _FILES.items():
        for path in values(root, where):
            if path.startswith("/") and not _exists(path):
                yield f"there is no {path}, {what}", f"copy it to {host}, or make it there"
    nvram = root.find("os/nvram")
    if nvram is not None and (template := nvram.get("template", "")):
        own = (nvram.text or "").strip() or _attribute(nvram, "source", "file")
        if not _exists(template) and not (own and _exists(own)):
            yield (
                f"there is no {template}, from which libvirt makes the NVRAM before it is copied",
                f"install on {host} the firmware's package of the source, or copy it there",
            )


def values(root: ET.Element, where: str) -> Iterator[str]:
    """What stands in an XML at a place, as ``devices/*/rom/@file``; nothing that is empty."""
    path, _, attribute = where.partition("/@")
    for element in root.iterfind(path):
        value = element.get(attribute, "") if attribute else (element.text or "")
        if value.strip():
            yield value.strip()


def _attribute(element: ET.Element, tag: str, name: str) -> str:
    found = element.find(tag)
    return "" if found is None else found.get(name, "")


def _lines(root: ET.Element, host: str) -> Iterator[Need]:
    """Serial lines, channels and the like: directories of what is made, and what must be there."""
    for tag in CHARDEVS:
        for device in root.iterfind(f"devices/{tag}"):
            kind = device.get("type", "")
            for log in device.iterfind("log"):
                yield from _directory(log.get("file", ""), f"the log of a {tag}", host)
            for source in device.iterfind("source"):
                yield from _line(source, kind, f"a {tag}", host)


def _line(source: ET.Element, kind: str, what: str, host: str) -> Iterator[Need]:
    path, mode = source.get("path", ""), source.get("mode", "")
    match kind:
        case "file":
            yield from _directory(path, f"the file of {what}", host)
        case "unix" if mode == "connect":
            if path and not _exists(path):
                yield (
                    f"there is no socket {path}, to which {what} connects",
                    f"start on {host} what listens there",
                )
        case "unix":
            yield from _directory(path, f"the socket of {what}", host)
        case "dev" | "pipe":
            if path and not _exists(path) and not _exists(f"{path}.in"):
                yield f"there is no {path}, {what}", f"make it on {host}"
        case "tcp" | "udp" if mode == "bind":
            port = source.get("service", "")
            yield from _listens(source.get("host", ""), port, what, host, udp=kind == "udp")
        case _:
            pass


def _directory(path: str, what: str, host: str) -> Iterator[Need]:
    if not path.startswith("/") or LIBVIRTS_OWN.match(path):
        return
    directory = Path(path).parent
    if not _exists(directory):
        yield (
            f"there is no directory {directory} for {what}",
            f"mkdir -p {directory} on {host}, with the owner that it has here",
        )


def _displays(root: ET.Element, host: str) -> Iterator[Need]:
    for display in root.iterfind("devices/graphics"):
        kind = (display.get("type") or "display").upper()
        listens = display.findall("listen")
        for listen in listens:
            if path := listen.get("socket", ""):
                yield from _directory(path, f"the socket of {kind}", host)
        addresses = [one.get("address", "") for one in listens if one.get("type") == "address"]
        fixed = display.get("port", "") if display.get("autoport") == "no" else ""
        for address in addresses or [display.get("listen", "")]:
            yield from _listens(address, fixed, kind, host)


def _listens(address: str, port: str, what: str, host: str, *, udp: bool = False) -> Iterator[Need]:
    """Whether it can listen there: tried, and given up again at once."""
    try:
        ip = ipaddress.ip_address(address or "0.0.0.0")  # noqa: S104 - where it says none
    except ValueError:
        return  # a name, which is resolved there
    number = int(port) if port.isdecimal() and int(port) < 1 << 16 else 0
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET  # noqa: PLR2004 - IPv6
    try:
        with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as trial:
            if not udp:  # two that allow it could have one port of UDP
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((str(ip), number))
            if not udp:
                trial.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            yield f"the port {port}, at which {what} listens, is in use there", f"free it on {host}"
        elif error.errno == errno.EADDRNOTAVAIL:
            yield (
                f"{what} listens at {address}, which is no address there",
                f"give {host} that address, or have it listen elsewhere from its next start on",
            )


def _huge_pages(root: ET.Element, host: str) -> Iterator[Need]:
    pages = root.find("memoryBacking/hugepages")
    memory = root.find("memory")
    if pages is None or memory is None:
        return
    sizes = {_page_size(page) for page in pages.iterfind("page")} or {_default_page()}
    # Of a few of the guest's NUMA nodes alone: how much that is, is not looked at.
    some = any(page.get("nodeset") for page in pages.iterfind("page"))
    need = max(sizes) if some else size_of(memory)
    free = 0
    for size in sizes:
        with contextlib.suppress(OSError, ValueError):
            directory = _HUGE_PAGES / f"hugepages-{size >> 10}kB"
            free += int((directory / "free_hugepages").read_text()) * size
    if free < need:
        kinds = ", ".join(f"{size >> 10} KiB" for size in sorted(sizes))
        yield (
            f"not enough huge pages of {kinds}: {need >> 20} MiB needed, {free >> 20} MiB free",
            f"set more aside on {host} (virsh allocpages, or vm.nr_hugepages)",
        )


def _page_size(page: ET.Element) -> int:
    sized = ET.Element("memory", unit=page.get("unit", "KiB"))
    sized.text = page.get("size", "0")
    return size_of(sized)


def _default_page() -> int:
    found = re.search(r"^Hugepagesize:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 2 << 20


def _pinned(root: ET.Element, host: str) -> Iterator[Need]:
    wanted = [*values(root, "vcpu/@cpuset")]
    for tag in ("vcpupin", "emulatorpin", "iothreadpin"):
        wanted += values(root, f"cputune/{tag}/@cpuset")
    cpus = _numbers(_read(_CPUS))
    for text in wanted:
        if cpus and not _numbers(text) & cpus:
            yield (
                f"it is pinned to the CPUs {text}, of which none is there",
                f"pin it here to CPUs that {host} has too (virsh vcpupin, virsh emulatorpin)",
            )
    nodes = _numbers(_read(_NODES))
    for text in (
        *values(root, "numatune/memory/@nodeset"),
        *values(root, "numatune/memnode/@nodeset"),
    ):
        if nodes and _numbers(text) - nodes:
            yield (
                f"its memory is on the NUMA nodes {text}, which are not all there",
                f"virsh numatune it here to nodes that {host} has too",
            )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _numbers(text: str) -> set[int]:
    """``0-3,^2,5`` as libvirt and the kernel write sets of numbers; none where it is none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.removeprefix("^").partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return set()
        one = set(range(int(first), min(int(last or first), int(first) + 4096) + 1))
        found = found - one if part.startswith("^") else found | one
    return found


_LOCAL: tuple[Callable[[ET.Element, str], Iterator[Need]], ...] = (
    *(_files, _lines, _displays, _huge_pages, _pinned),
)
