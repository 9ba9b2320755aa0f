"""What this host's libvirt is told of QEMU, in its qemu.conf."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

CONF = Path("/etc/libvirt/qemu.conf")
_OF_SESSION = ".config/libvirt/qemu.conf"
_SETTING = re.compile(r'^[ \t]*(\w+)[ \t]*=[ \t]*(?:"([^"\n]*)"|(\d+))', re.MULTILINE)
_USUAL_PORTS = (49152, 49215)
_HIGHEST_PORT = 65535


def read(conf: Path = CONF) -> Mapping[str, str]:
    """The settings that are strings or numbers; none where the file cannot be read."""
    try:
        text = conf.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return {key: words or number for key, words, number in _SETTING.findall(text)}


def conf_of(uri: str) -> Path:
    """The file of the libvirtd behind a URI of this host: the system's, or this user's own."""
    return Path.home() / _OF_SESSION if uri.endswith("/session") else CONF


def migration_ports(conf: Path = CONF) -> tuple[int, int]:
    """The first and last TCP port at which libvirt takes memory and disks."""
    said = read(conf)
    first = int(said.get("migration_port_min", _USUAL_PORTS[0]))
    last = int(said.get("migration_port_max", _USUAL_PORTS[1]))
    return (first, last) if 0 < first <= last <= _HIGHEST_PORT else _USUAL_PORTS
