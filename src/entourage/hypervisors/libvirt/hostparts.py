"""Everything of a host that a domain's XML names.

libvirtd runs as root and does what the XML says. So whatever is not known to be harmless is told
of: every value with a slash in it, every element that is not known here, and those values that are
known to stand for something of the host's. Text that means nothing to the host (a title, a serial
number, the kernel's command line) is passed over, and so are libvirt's own sockets and terminals,
which it makes anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from xml.etree import ElementTree as ET

from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.libvirt.devicerules import (
    BACKED,
    CHARDEVS,
    IMAGE_KEYS,
    LOGS,
    RULES,
    At,
    Parts,
    chardev,
    image,
    remote,
)
from entourage.hypervisors.libvirt.domainxml import Lookups

_TOP = frozenset(
    """name uuid genid title description metadata memory currentMemory maxMemory memoryBacking vcpu
    vcpus iothreads iothreadids defaultiothread cputune numatune blkiotune memtune resource sysinfo
    os features cpu clock on_poweroff on_reboot on_crash on_lockfailure pm perf devices seclabel
    keywrap launchSecurity throttlegroups""".split()  # noqa: SIM905 - it would fill a page
)
_DEVICES = frozenset(
    """emulator disk controller filesystem interface smartcard serial parallel console channel input
    tpm graphics sound audio video hostdev redirdev redirfilter hub watchdog memballoon rng panic
    shmem memory iommu vsock lease crypto pstore nvram""".split()  # noqa: SIM905 - same
)
_FREE_TEXT = frozenset({"name", "title", "description", "metadata"})

# Of all others a domain or a device has one: which of several libvirt goes by is not known here.
_SEVERAL_OF_A_DOMAIN = frozenset({"seclabel", "sysinfo"})
_SEVERAL_OF_A_DEVICE = frozenset(
    """certificate channel codec cookie host iothread ip listen parameter portForward property queue
    range route seclabel secret slice tag throttlefilter uid gid usbdev""".split()  # noqa: SIM905 - as above
)

# Values that mean nothing to the host, whatever they are; or that a function below looks at.
_HARMLESS = (
    *("os/cmdline", "os/initarg", "clock/@timezone", "sysinfo/entry/@name", "sysinfo/entry"),
    *("sysinfo/*/entry", "launchSecurity/dhCert", "launchSecurity/session"),
    *("launchSecurity/idBlock", "launchSecurity/idAuth", "launchSecurity/hostData"),
    "blkiotune/device/path",  # its own share of it, in its own cgroup
    *("devices/*/alias/@name", "devices/graphics/@passwd", "devices/filesystem/target/@dir"),
    *("devices/disk/serial", "devices/disk/wwn", "devices/disk/vendor", "devices/disk/product"),
    *("devices/disk/*cookies/cookie", "devices/*/auth/@username", "devices/*/secret/@usage"),
    *("devices/disk/source/@query", "devices/disk/*/source/@query"),
    *("devices/interface/filterref/parameter/@value", "devices/*/source/@channel"),
)
_HARMLESS_VALUES: Mapping[str, str] = {
    "resource/partition": r"/machine(/[\w.-]*[\w-][\w.-]*)*",  # what libvirt gives to its machines
    "devices/*/@tty": r"/dev/pts/\d+",  # libvirt makes a new one
    "devices/rng/backend": r"/dev/u?random",
    "devices/interface/backend/@tap": r"/dev/net/tun",
    "devices/interface/backend/@vhost": r"/dev/vhost-net",
}
_BOOT = (
    *("os/loader", "os/kernel", "os/initrd", "os/dtb", "os/shim", "os/acpi/table"),
    *("os/nvram/@template", "os/varstore/@template", "devices/*/rom/@file"),
)
# All that libvirt has of it, in so far as it is of QEMU's.
_OS = (
    *("@firmware", "type", "type/@arch", "type/@machine", "firmware", "firmware/@type"),
    *("firmware/feature", "firmware/feature/@enabled", "firmware/feature/@name"),
    *("loader", "loader/@readonly", "loader/@secure", "loader/@type", "loader/@format"),
    *("loader/@stateless", "nvram", "nvram/@template", "nvram/@templateFormat", "nvram/@format"),
    *("nvram/@type", "nvram/source", "nvram/source/@file", "nvram/source/@index"),
    *("varstore", "varstore/@path", "varstore/@template", "kernel", "initrd", "cmdline", "dtb"),
    *("shim", "acpi", "acpi/table", "acpi/table/@type", "boot", "boot/@dev", "bootmenu"),
    *("bootmenu/@enable", "bootmenu/@timeout", "bios", "bios/@useserial", "bios/@rebootTimeout"),
    *("smbios", "smbios/@mode"),
)
_OWN_VARIABLES = ("os/nvram", "os/nvram/source/@file", "os/varstore/@path")
_ALWAYS = (  # of the host, also without a slash
    *("devices/*script/@path", "sysinfo/entry/@file", "devices/filesystem/source/@*"),
    *(
        "devices/filesystem/binary/@path",
        "devices/input/source/@dev",
        "devices/input/source/@evdev",
    ),
)
_NVRAM, _VARSTORE = _VARIABLES = (
    "/var/lib/libvirt/qemu/nvram",
    "/var/lib/libvirt/qemu/varstore",
)
# What libvirt calls them by itself. A longer name may be that of another domain's.
_VARIABLES_OF = (f"{_NVRAM}/{{}}_VARS.fd", f"{_NVRAM}/{{}}_VARS.qcow2", f"{_VARSTORE}/{{}}.json")
_SHORT_NAME = 20  # letters of a domain's name that libvirt has in its directories' names

# By which a processor's time is shared; a real-time one leaves nothing to anybody else.
_SHARES = frozenset({"batch", "idle"})
_SCHEDULED = frozenset({"vcpusched", "iothreadsched", "emulatorsched"})

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


def host_parts(root: ET.Element, lookups: Lookups) -> Parts:
    """What a domain names of the host that it is to run on.

    Args:
        root: The domain's element.
        lookups: Of the libvirtd there.

    Raises:
        ValueError: A number in it is none.
    """
    name = root.findtext("name", "")
    if root.tag != "domain":
        yield HostPart(kind=Kind.OTHER, name=f"libvirt:{root.tag}", place=".")
        return
    yield from _walk(At(root, "", "", "domain", name, lookups))


def _walk(at: At) -> Parts:
    yield from _of_element(at)
    if at.path == "os" or at.path.startswith("os/"):
        names = [at.path, *(f"{at.path}/@{key}" for key in at.element.attrib)]
        known = {"os", *(f"os/{name}" for name in _OS)}
        yield from (at.other(f"libvirt:{name}") for name in names if name not in known)
    for key, value in at.element.attrib.items():
        yield from _of_value(at, f"@{key}", value)
    texts = [at.element.text, *(child.tail for child in at.element)]
    yield from _of_value(at, "", "".join(text for text in texts if text))
    counts = Counter(child.tag for child in at.element)
    several = _SEVERAL_OF_A_DEVICE if at.path.startswith("devices/") else _SEVERAL_OF_A_DOMAIN
    if at.path != "devices" and (not at.path or several is _SEVERAL_OF_A_DEVICE):
        for tag in sorted(tag for tag in counts if counts[tag] > 1 and tag not in several):
            if tag != "source" or not _is_both_ways(at):
                yield at.other("libvirt:ambiguous", tag)
    seen: Counter[str] = Counter()
    of_type: Counter[tuple[str, str | None]] = Counter()
    for child in at.element:
        tag = str(child.tag)
        number, alike = seen[tag], of_type[tag, child.get("type")]
        seen[tag] += 1
        of_type[tag, child.get("type")] += 1
        if tag.startswith("{"):
            where = f"libvirt:{tag.removeprefix(_QEMU)}"
            yield at.other(where, tag.rpartition("}")[2])
            continue
        if not at.path and tag in _FREE_TEXT:
            continue
        numbered = counts[tag] > 1 or at.path == "devices"
        place = "/".join(filter(None, (at.place, f"{tag}[{seen[tag]}]" if numbered else tag)))
        path = f"{at.path}/{tag}" if at.path else tag
        label = _label(child, number, alike) if at.path == "devices" else at.label
        yield from _walk(At(child, path, place, label, at.domain, at.lookups))


def _is_both_ways(at: At) -> bool:
    """Whether it is a UDP line, which has a source to send to and one to listen at."""
    modes = sorted(source.get("mode", "") for source in at.sources())
    return at.get("type") == "udp" and modes == ["bind", "connect"]


def _label(device: ET.Element, number: int, alike: int) -> str:
    """As ``domainxml.read_domain`` calls it; whether the domain has it is for others to see.

    Args:
        device: The device.
        number: How many of its tag come before it.
        alike: How many of these are of its type.
    """
    tag, kind = device.tag, device.get("type")
    match tag, kind:
        case "disk", _:
            target = device.find("target")
            return f"block/{target.get('dev', '')}" if target is not None else "domain"
        case "interface", _:
            return f"net/net{number}"
        case "tpm", _:
            return f"tpm/tpm{number}"
        case "redirdev", _:
            return f"usb/redir{number}"
        case "filesystem", _:
            return f"pci/fs{number}"
        case "hostdev", "usb" | "pci":
            return f"{kind}/{kind}{alike}"
        case "hostdev", _:
            return f"pci/hostdev{number}"
        case _:
            return "domain"


def _of_value(at: At, key: str, value: str) -> Parts:
    """One attribute's value, or an element's own text."""
    where = f"{at.path}/{key}" if key else at.path
    if not value.strip() or _any(where, _HARMLESS):
        return
    for pattern, text in _HARMLESS_VALUES.items():
        if fnmatchcase(where, pattern) and re.fullmatch(text, value):
            return
    if _any(where, _BOOT):
        yield at.part(Kind.BOOT, value, key)
    elif where == "devices/emulator":
        yield at.part(Kind.PROGRAM, value)
    elif _any(where, _OWN_VARIABLES):
        own = [form.format(at.domain) for form in _VARIABLES_OF]
        yield at.part(Kind.OTHER, value, key, beneath=_VARIABLES if value in own else ())
    elif fnmatchcase(where, "devices/*/log/@file"):
        yield at.part(Kind.OTHER, value, key, beneath=LOGS)
    elif _any(where, _ALWAYS) or ("/" in value and not _is_judged_by_itself(at, key, value)):
        yield at.other(value, key)


def _any(where: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(where, pattern) for pattern in patterns)


def _is_judged_by_itself(at: At, key: str, value: str) -> bool:
    """Whether it is a value that ``image`` or ``chardev`` tells of, or a display's own socket."""
    words = at.path.split("/")
    if words[0] == "devices" and words[-1] == "source":
        if words[1] == "disk" and key in IMAGE_KEYS:
            return words[-2] in {"disk", *BACKED}
        return words[1:-1] in [[tag] for tag in CHARDEVS] and key == "@path"
    short = re.escape(at.domain[:_SHORT_NAME])
    own = rf"/var/lib/libvirt/qemu/domain-\d+-{short}/(vnc|spice|rdp)\.sock"
    display = words[:2] == ["devices", "graphics"] and key == "@socket"
    return display and re.fullmatch(own, value) is not None


def _of_element(at: At) -> Parts:
    """What an element names by what it is, and not by one value alone."""
    path, tag = at.path, str(at.element.tag)
    parent, _, _ = path.rpartition("/")
    if path and not parent and tag not in _TOP:
        yield at.other(f"libvirt:{tag}")
    if parent == "devices":
        if tag not in _DEVICES:
            yield at.other(f"libvirt:{tag}")
        if tag in CHARDEVS:
            yield from chardev(at)
        if rule := RULES.get(tag):
            yield from rule(at)
    elif path.startswith("devices/disk/") and tag in BACKED:
        yield from image(at)
    elif path == "devices/rng/backend" and at.get("model") == "egd":
        yield from chardev(at)
    elif path == "devices/interface/portForward/range":
        for key in ("start", "end"):
            if at.get(key):
                yield at.part(Kind.PORT, at.get(key), f"@{key}")
    elif path == "resource/partition" and not (at.element.text or "").startswith("/"):
        yield at.other("libvirt:partition")
    elif parent == "cputune" and tag in _SCHEDULED and at.get("scheduler") not in _SHARES:
        yield at.other("libvirt:scheduler", "@scheduler")
    elif parent == "cputune" and tag in {"cachetune", "memorytune"}:
        yield at.other(f"libvirt:{tag}")
    elif path == "os/loader" and at.get("type") == "pflash" and at.get("readonly") != "yes":
        yield at.other((at.element.text or "").strip())  # the guest would write to it
    if tag == "source" and (at.get("protocol") or at.element.find("host") is not None):
        yield at.other(remote(at.element))  # whatever it is for
    if tag == "seclabel" and not _is_confined(at):
        yield at.other("libvirt:seclabel")


def _is_confined(at: At) -> bool:
    """Whether libvirt chooses the label by itself, as it always does.

    A label that is dynamic it ignores for the domain, and takes for a device.
    """
    dynamic = at.element.get("type", "dynamic") == "dynamic" and at.get("relabel") != "no"
    own = "baselabel" if at.path == "seclabel" else "label"
    return dynamic and at.element.find("baselabel") is None and at.element.find(own) is None
