"""What values and devices of xl's configuration name of the host; see ``hostparts``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from entourage.errors import HypervisorError
from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.xen.header import BRIDGE

Config: TypeAlias = Mapping[str, Any]
Parts: TypeAlias = Iterator[HostPart]

_SCRIPTS = "/etc/xen/scripts"
_VNC, _LAST_VNC = 5900, 5999
_SHOWN = 100
# Parts of longer words: of QEMU's options, of what scripts read in xenstore.
_PATH = r"[\w./:+@=%~-]*"
_INTERFACE = r"[\w.:@-]*"
_HOST = r"[0-9.]*|\[[0-9A-Fa-f:.]+\]|localhost"
_ADDRESS = rf"{_HOST}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*"
_NAME = r"[\w.:+@-]*"
WORD = r"[\w.:+!|-]*"
"""Text that is none of the following."""
# What QEMU's `-serial` takes, without options that open another file (logfile=).
_SERIAL = (
    rf"pty|null|none|vc|stdio|/dev/{_PATH}|(file|pipe):{_PATH}"
    rf"|(unix:{_PATH}|(tcp|telnet|udp):[\w.:@\[\]-]*)"
    r"(,(server|nowait|wait|nodelay|delay)(=on|=off)?)*"
)

_FORMATS = frozenset({"raw", "qcow2"})
_NIC_MODELS = frozenset(
    {"netfront", "rtl8139", "e1000", "e1000e", "ne2k_pci", "pcnet", "i82551", "i82557b"}
    | {"i82559er", "virtio", "virtio-net", "virtio-net-pci", "vmxnet3"}
)
_SCHEDULERS = frozenset({"unknown", "credit", "credit2", "null"})
_DOM0 = frozenset({"", "0", "Domain-0"})


@dataclasses.dataclass(frozen=True, slots=True)
class At:
    """A value of a configuration, and where it is.

    Attributes:
        value: As JSON has it.
        path: The keys down to it: ``disks/script``.
        place: The same with numbers, for people.
        label: Of the device that it is part of.
    """

    value: Any
    path: str
    place: str
    label: str

    def part(self, kind: Kind, name: object, key: str = "", **more: Any) -> HostPart:
        """One that is named here, or at a key of it."""
        place = "/".join(filter(None, (self.place, key)))
        return HostPart(kind=kind, name=str(name), place=place, device=self.label, **more)

    def other(self, name: object, key: str = "") -> HostPart:
        """One that the settings must name."""
        return self.part(Kind.OTHER, name, key)

    def get(self, key: str) -> str:
        """The text at a key of an object; empty where there is none."""
        value = self.value.get(key)
        return "" if value is None or isinstance(value, dict | list) else str(value)

    def number(self, key: str) -> int:
        """The number at a key of an object; 0 where there is none.

        Raises:
            HypervisorError: It is none.
        """
        value = self.value.get(key, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise HypervisorError(f"{self.place}/{key} in xl's configuration is no number")
        return int(value)

    def is_on(self, key: str, *, default: bool = False) -> bool:
        """A switch of libxl's (``libxl_defbool``); what is not understood counts as on."""
        said = self.value.get(key)
        return default if said in (None, "", "<default>") else said not in ("False", False)


def shaped(at: At, shape: str, key: str = "") -> str:
    """The text here, or at a key, which xl may make part of a longer word.

    Every rule asks for it, also where the settings must name the text: a pattern there is not
    meant to allow a second word.

    Raises:
        HypervisorError: It could be more than one word there.
    """
    text = at.get(key) if key else str(at.value)
    if re.fullmatch(shape, text) is None:
        place = "/".join(filter(None, (at.place, key)))
        raise HypervisorError(
            f"{place} in xl's configuration has characters that are not taken there:"
            f" {text[:_SHOWN]!r}"
        )
    return text


# Single values


def _named(kind: str, shape: str = _PATH) -> Callable[[At], Parts]:
    """What is no device, or has no path: `/dev/*` in the settings is not meant to allow it."""

    def rule(at: At) -> Parts:
        yield at.other(f"{kind}:{shaped(at, shape)}")

    return rule


def _key(at: At) -> Parts:
    """Known, and not harmless; what it is would say nothing to whoever reads the settings."""
    shaped(at, WORD)
    yield at.other(f"xen:{at.path}")


def _switch(at: At) -> Parts:
    """One that is not harmless while it is on."""
    if at.value not in {"False", False}:
        yield at.other(f"xen:{at.path}")


def _label(at: At) -> Parts:
    """Of Xen's security module (XSM): one that is not a guest's own could be dom0's."""
    if shaped(at, WORD) != "0":
        yield at.other("xen:seclabel")


def _boot(at: At) -> Parts:
    path = shaped(at, _PATH)
    yield at.part(Kind.BOOT, path) if path.startswith("/") else at.other(f"boot:{path}")


def _firmware(at: At) -> Parts:
    if at.value != "hvmloader":  # its own, which xl finds by this name
        yield from _boot(at)


def _among(*harmless: str) -> Callable[[At], Parts]:
    def rule(at: At) -> Parts:
        if shaped(at, WORD) not in harmless:
            yield at.other(f"xen:{at.path}={at.value}")

    return rule


def _word(shape: str) -> Callable[[At], Parts]:
    def rule(at: At) -> Parts:
        shaped(at, shape)
        yield from ()

    return rule


def _serial(at: At) -> Parts:
    if shaped(at, _SERIAL) not in {"pty", "null", "none"}:
        yield at.other(f"serial:{at.value}")


def _usb_device(at: At) -> Parts:
    kind, _, which = shaped(at, _PATH).partition(":")
    if kind == "host":
        yield at.other(f"usb:{which}")
    elif at.value not in {"tablet", "mouse", "keyboard"}:
        yield at.other(f"usb:{at.value}")


def _scheduler(at: At) -> Parts:
    if at.value not in _SCHEDULERS:
        yield at.other("xen:scheduler")


def _backend(at: At) -> Parts:
    if shaped(at, _NAME) not in _DOM0:
        yield at.other(f"backend:{at.value}")


def _bridge(at: At) -> Parts:
    yield at.part(Kind.NETWORK, shaped(at, _INTERFACE))


def _tap(at: At) -> Parts:
    yield at.part(Kind.TAP, shaped(at, _INTERFACE))


def _script_of(name: str) -> Callable[[At], Parts]:
    def rule(at: At) -> Parts:
        if at.value not in {name, f"{_SCRIPTS}/{name}"}:
            yield from _named("script")(at)

    return rule


def _model(at: At) -> Parts:
    if shaped(at, r"[\w-]*") not in _NIC_MODELS:
        yield at.other(f"nic:{at.value}")


VALUES: Mapping[str, Callable[[At], Parts]] = {
    "c_info/name": _word(_NAME),  # of QEMU's -name, and of the names of its logs
    "c_info/ssidref": _label,
    "c_info/ssid_label": _label,
    "c_info/driver_domain": _switch,
    "b_info/exec_ssidref": _label,
    "b_info/exec_ssid_label": _label,
    "b_info/device_model_ssidref": _label,
    "b_info/device_model_ssid_label": _label,
    "b_info/device_model_user": _key,
    "b_info/device_model_version": _among("qemu_xen", "unknown"),
    "b_info/device_model": _named("program"),
    "b_info/bootloader": _named("program"),
    "b_info/bootloader_user": _key,
    "b_info/type.pv/bootloader": _named("program"),
    "b_info/irqs": _named("irq", WORD),
    "b_info/tee": _among("none"),
    "b_info/arch_arm/arm_sci/type": _among("none"),
    "b_info/arch_x86/msr_relaxed": _switch,
    "b_info/sched_params/sched": _scheduler,
    "b_info/type.hvm/firmware": _firmware,
    "b_info/type.hvm/serial": _serial,
    "b_info/type.hvm/serial_list": _serial,
    "b_info/type.hvm/usbdevice": _usb_device,
    "b_info/type.hvm/usbdevice_list": _usb_device,
    "b_info/type.hvm/soundhw": _named("audio", WORD),
    "b_info/type.hvm/gfx_passthru": _switch,
    "b_info/type.hvm/boot": _word(r"[a-z]*"),
    **dict.fromkeys(
        (
            *("b_info/kernel", "b_info/ramdisk", "b_info/device_tree", "b_info/type.pv/kernel"),
            *("b_info/type.pv/ramdisk", "b_info/stubdomain_kernel", "b_info/stubdomain_ramdisk"),
            *("b_info/type.hvm/system_firmware", "b_info/type.hvm/smbios_firmware"),
            *("b_info/type.hvm/acpi_firmware", "b_info/type.pvh/pvshim_path"),
        ),
        _boot,
    ),
    **dict.fromkeys(("b_info/type.hvm/keymap", "vfbs/keymap"), _word(r"[\w-]*")),
    **dict.fromkeys(
        [
            f"{section}/{key}"
            for section in ("disks", "nics", "vfbs", "vkbs", "p9s", "channels", "usbctrls")
            for key in ("backend_domid", "backend_domname")
        ],
        _backend,
    ),
    "disks/pdev_path": _word(_PATH),
    "disks/backend": _among("unknown", "phy", "qdisk"),
    "disks/specification": _among("unknown", "xen"),
    "disks/script": _script_of("block"),
    "disks/colo_enable": _switch,
    "disks/colo_restore_enable": _switch,
    "nics/bridge": _bridge,
    "nics/gatewaydev": _bridge,
    "nics/ifname": _tap,
    "nics/script": _script_of("vif-bridge"),
    "nics/model": _model,
    "nics/ip": _word(r"[0-9A-Fa-f.:/ ]*"),
    "nics/vlan": _word(r"[0-9pu/-]*"),
    "vkbs/backend_type": _among("unknown", "qemu"),
    "dtdevs/path": _named("dtdev"),
    "p9s/path": _named("p9"),
    "channels/connection.socket/path": _named("channel"),
}
"""By its path, what a value names that says more than nothing."""


# Devices, and what else is more than one value


def _disk(at: At) -> Parts:
    path, script = shaped(at, _PATH, "pdev_path"), shaped(at, _PATH, "script")
    image_format = shaped(at, WORD, "format") or "unknown"
    if not path:
        return
    if script and script not in {"block", f"{_SCRIPTS}/block"}:
        yield at.other(f"{script.rpartition('/')[2]}:{path}", "pdev_path")
        return
    if image_format not in _FORMATS:  # what is in it could name any other file
        yield at.other(f"format:{image_format}", "format")
    if path.startswith("/"):
        written = at.get("readwrite") not in {"", "0", "False"}
        yield at.part(Kind.IMAGE, path, "pdev_path", format=image_format, written=written)
    else:  # a URL of QEMU's, or below a directory that only xl knows
        yield at.other(path, "pdev_path")


def _nic(at: At) -> Parts:
    if not at.get("bridge"):
        yield at.part(Kind.NETWORK, BRIDGE)


def _pci(at: At) -> Parts:
    if name := shaped(at, _NAME, "name"):
        yield at.other(f"pci:{name}", "name")
    place = [at.number(key) for key in ("domain", "bus", "dev", "func")]
    if any(place) or not name:
        yield at.other("pci:{:04x}:{:02x}:{:02x}.{:x}".format(*place))


def _usb(at: At) -> Parts:
    yield at.other(f"usb:{at.number('hostbus')}.{at.number('hostaddr')}")


def _range(kind: str, first: str) -> Callable[[At], Parts]:
    def rule(at: At) -> Parts:
        yield at.other(f"{kind}:{at.number(first):x}+{at.number('number'):x}")

    return rule


def _vtpm(at: At) -> Parts:
    name = shaped(at, _NAME, "backend_domname")
    yield at.other(f"vtpm:{name or at.number('backend_domid')}")


def _build(at: At) -> Parts:
    """A boot loader reads the guest's disk: by libxl's default as root, and as one that may."""
    loaders = [each.get("bootloader") for each in (at.value, *_objects(at, "type.pv"))]
    if any(loaders) and at.value.get("bootloader_restrict") != "True":
        yield at.other("xen:b_info/bootloader_restrict", "bootloader_restrict")


def _vnc(at: At) -> Parts:
    """Ports are listened at: 5900 and the display's number, and those above if that is taken."""
    _, _, listen = shaped(at, rf"({_HOST})(:[0-9]{{1,5}})?", "listen").rpartition("]")
    _, named, display = listen.partition(":")
    if not at.is_on("enable", default=True):
        return
    first = _VNC + (int(display) if named else at.number("display"))
    if at.is_on("findunused", default=True) and first < _LAST_VNC:
        yield at.part(Kind.PORT, f"{first}-{_LAST_VNC}", "display")
    else:
        yield at.part(Kind.PORT, first, "display")


def _has_vnc(at: At) -> Parts:
    """One that says nothing of VNC has it as libxl does it by default."""
    if not isinstance(at.value.get("vnc"), dict):
        yield from _vnc(dataclasses.replace(at, value={}, place=f"{at.place}/vnc"))


def _domain(at: At) -> Parts:
    """An HVM domain has a display also where nothing is said of its devices."""
    sections = _objects(at, "c_info", "b_info")
    is_hvm = any(each.get("type") == "hvm" or "type.hvm" in each for each in sections)
    if is_hvm and not any(isinstance(each.get("type.hvm"), dict) for each in sections):
        yield from _has_vnc(At({}, "b_info/type.hvm", "b_info/type.hvm", at.label))


def _objects(at: At, *keys: str) -> list[dict[str, Any]]:
    return [at.value[key] for key in keys if isinstance(at.value.get(key), dict)]


def _spice(at: At) -> Parts:
    shaped(at, _ADDRESS, "host")
    for key in ("passwd", "image_compression", "streaming_video"):
        shaped(at, r"[\w.:+-]*", key)
    if at.is_on("enable"):
        for key in ("port", "tls_port"):
            if at.number(key):
                yield at.part(Kind.PORT, at.number(key), key)


def _sdl(at: At) -> Parts:
    if at.is_on("enable") or at.get("display") or at.get("xauthority"):
        yield at.other("graphics:sdl")


RULES: Mapping[str, Callable[[At], Parts]] = {
    "": _domain,
    "b_info": _build,
    "b_info/type.hvm": _has_vnc,
    "vfbs": _has_vnc,
    "disks": _disk,
    "nics": _nic,
    "pcidevs": _pci,
    "usbdevs/type.hostdev": _usb,
    "b_info/ioports": _range("ioport", "first"),
    "b_info/iomem": _range("iomem", "start"),
    "vtpms": _vtpm,
    "b_info/type.hvm/vnc": _vnc,
    "vfbs/vnc": _vnc,
    "b_info/type.hvm/spice": _spice,
    "b_info/type.hvm/sdl": _sdl,
    "vfbs/sdl": _sdl,
}
"""By its path, what an object names that is more than one of its values."""
