"""The lab's Xen guest: what ``xl create`` reads, and what it says on its console."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lab.xen.hosts import XenHost

ADDRESS = "10.78.0.100"
MAC = "00:16:3e:00:00:01"
_TICK = re.compile(r"boot (\w+) tick (\d+) disk (\S+)")


@dataclass(frozen=True)
class Tick:
    """What the guest said last on its console."""

    boot: str
    number: int
    disk: str


def config(name: str, disks: Sequence[str], *, bridge: str = "xenbr0") -> str:
    """An xl configuration.

    Args:
        name: Of the domain.
        disks: As xl has them, the first one is what it writes its ticks to.
        bridge: What its network card is on.
    """
    listed = ", ".join(f'"{disk}"' for disk in disks)
    return f"""\
name = "{name}"
type = "pvh"
memory = 160
vcpus = 1
kernel = "/srv/guest/vmlinuz"
ramdisk = "/srv/guest/initrd"
cmdline = "console=hvc0 quiet lab.address={ADDRESS}"
tsc_mode = "native"
disk = [ {listed} ]
vif = [ "mac={MAC},bridge={bridge}" ]
"""


def tick(host: XenHost) -> Tick:
    """What the guest said last on a host's console; tick 0 where it has said nothing."""
    logs = "ls -t /var/log/xen/console/guest-*.log | head -n1 | xargs tail -n3"
    found = _TICK.findall(host.run(["sh", "-c", logs], check=False).stdout)
    boot, number, disk = found[-1] if found else ("", 0, "")
    return Tick(boot, int(number), disk)
