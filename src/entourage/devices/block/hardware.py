"""Which piece of hardware a block device is, so that two hosts can tell whether it is the same one.

Names as ``/dev/sdb`` say nothing about that, and neither do the UUIDs inside: a cloned disk has
them too. What counts is what the hardware says of itself (WWN, EUI, NVMe's identifiers), and for
what is built on top of it (partitions, LVM, dm-crypt) the place on hardware that is the same.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SYS = Path("/sys")
# Serial numbers that people choose or that emulators invent: only evidence, never proof.
WEAK = "weak:"
_INVENTED = ("QEMU HARDDISK", "QEMU DVD-ROM", "VBOX HARDDISK")


def boot_id() -> str:
    """Which running kernel this is; two "hosts" that share it are namespaces of one machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def identities(device: int, sys: Path = SYS) -> frozenset[str]:
    """All that a device is known by; two hosts have the same one where these sets meet.

    Args:
        device: The device's number (``st_rdev``).
        sys: Where sysfs is mounted.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    node = sys / "dev/block" / number
    found = {f"kernel:{boot_id()}:{number}"}
    with contextlib.suppress(OSError):
        found |= _hardware(node.resolve(strict=True))
    return frozenset(found)


def _hardware(node: Path) -> set[str]:
    """The identities of the device whose directory in sysfs is ``node``; none where unknown."""
    if part := _read(node / "partition"):
        place = f"part{part}@{_read(node / 'start')}+{_read(node / 'size')}"
        return {_prefixed(parent, place) for parent in _hardware(node.parent)}
    if uuid := _read(node / "dm/uuid"):
        slaves = [_hardware(slave.resolve()) for slave in (node / "slaves").iterdir()]
        together = {identity for slave in slaves for identity in slave}
        if uuid.startswith("mpath-"):
            # Several paths to one device: each says the same, and a host with one path says it too.
            return together
        if not slaves or not all(slaves):
            return set()  # something below is nameless, so the whole is
        return {_prefixed(",".join(sorted(together)), f"dm:{uuid}")}
    found: set[str] = set()
    if wwid := _read(node / "device/wwid") or _read(node / "wwid"):
        invented = any(name in wwid for name in _INVENTED)
        found.add(f"{WEAK if invented else ''}wwid:{wwid}")
    if serial := _read(node / "serial"):
        found.add(f"{WEAK}serial:{serial}")
    return found


def _prefixed(below: str, what: str) -> str:
    """``what`` on top of ``below``; as weak as its weakest part."""
    weak = WEAK if WEAK in below else ""
    return f"{weak}{what} on {below.replace(WEAK, '')}"


def _read(path: Path) -> str:
    """A file of sysfs as text; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""
