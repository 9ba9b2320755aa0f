"""Lab guests: their domain files and disks, requests to them, and what their disks tell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import network
from lab.guest_image import guest_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lab.host import Host
    from lab.hosts import Lab

REQUEST_PORT = 7701
RECORD = 4096
RING = 16384
"""A guest writes records of `RECORD` bytes, `RING` of them or as many as fit, round and round."""

_RECORD = re.compile(rb"entourage-lab (\S+) (\d+) (\S+) *\n")
_KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off cryptomgr.notests"


class GuestError(RuntimeError):
    """A guest answered a request with an error, or not at all."""


@dataclass(frozen=True)
class Disk:
    """A disk of a domain file; the image lies on the host."""

    path: str
    format: str = "raw"

    def create(self, host: Host, size: str = "64M") -> None:
        """Make the image on the host, sparse."""
        host.run(["qemu-img", "create", "-q", "-f", self.format, self.path, size])


def cmdline(address: str = network.guest_address(), dirty: int = 0) -> str:
    """The kernel command line of a guest; it dirties that many MiB of its memory a second."""
    observer = network.CLIENT_ADDRESS
    return (
        f"{_KERNEL_OPTIONS} lab.ip={address} lab.observer={observer}"
        f" lab.observer_mac={network.mac_of(observer)} lab.dirty={dirty}"
    )


def _string(text: str) -> str:
    """A TOML string: JSON's are, but for characters beyond the first plane."""
    return json.dumps(text, ensure_ascii=False)


def domain_toml(
    name: str,
    *,
    disks: Sequence[Disk | str] = (),
    tpm: bool = True,
    net: bool = True,
    memory: str = "256M",
    vcpus: int = 1,
    accel: str = "auto",
    machine: str = "",
    uuid: str = "",
    address: str = network.guest_address(),
    bridge: str = network.HOST_BRIDGE,
    dirty: int = 0,
    extra: str = "",
) -> str:
    """Write a domain file for a lab guest; `extra` is TOML to append, more devices say."""
    image = guest_image()
    lines = [f"name = {_string(name)}", f"memory = {_string(memory)}", f"vcpus = {vcpus}"]
    lines.append(f"accel = {_string(accel)}")
    lines += [f"machine = {_string(machine)}"] * bool(machine)
    lines += [f"uuid = {_string(uuid)}"] * bool(uuid)
    lines += [
        "[boot]",
        f"kernel = {_string(str(image.kernel))}",
        f"initrd = {_string(str(image.initrd))}",
        f"cmdline = {_string(cmdline(address, dirty))}",
    ]
    for index, disk in enumerate(disks):
        known = Disk(disk) if isinstance(disk, str) else disk
        lines += [
            "[[block]]",
            f'id = "disk{index}"',
            f"path = {_string(known.path)}",
            f"format = {_string(known.format)}",
        ]
    if net:
        lines += ["[[net]]", 'id = "net0"', f"bridge = {_string(bridge)}"]
        lines += [f"mac = {_string(network.mac_of(address))}"]
    if tpm:
        lines += ["[[tpm]]", 'id = "tpm0"', 'version = "2.0"']
    return "\n".join(lines) + f"\n{extra}"


@dataclass(frozen=True)
class Status:
    """A guest's answer to `status`."""

    boot: str
    uptime: float
    ticks: int
    disks: dict[str, int]
    paused: bool


@dataclass(frozen=True)
class Tpm:
    """A guest's answer to `tpm`: two PCRs and the counter in the TPM's own memory."""

    pcr16: str
    pcr23: str
    nv: int


class Guest:
    """A running guest, spoken to from the client host over its network."""

    def __init__(self, lab: Lab, address: str = network.guest_address()) -> None:
        self._lab = lab
        self.address = address

    def request(self, what: str, timeout: float = 10.0) -> dict[str, str]:
        """Send one request; return the lines of the answer."""
        with self._lab.client.socket() as connection:
            connection.settimeout(timeout)
            connection.connect((self.address, REQUEST_PORT))
            connection.sendall(f"{what}\n".encode())
            answer = b""
            while data := connection.recv(4096):
                answer += data
        lines = answer.decode().splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        if not values or "error" in values:
            raise GuestError(f"{what}: {values.get('error', 'no answer')}")
        return values

    def status(self, timeout: float = 10.0) -> Status:
        """Ask how the guest is."""
        return _status(self.request("status", timeout))

    def pause_writes(self, timeout: float = 10.0) -> Status:
        """Stop the disk writers; a write that has begun may still be reported."""
        return _status(self.request("pause-writes", timeout))

    def resume_writes(self, timeout: float = 10.0) -> Status:
        """Let the disk writers go on."""
        return _status(self.request("resume-writes", timeout))

    def tpm(self, timeout: float = 10.0) -> Tpm:
        """Ask for the TPM's registers and counter."""
        return _tpm(self.request("tpm", timeout))

    def nv_increment(self, timeout: float = 10.0) -> Tpm:
        """Count the TPM's counter up by one."""
        return _tpm(self.request("nv-inc", timeout))

    def notices(self) -> list[str]:
        """How `/bin/notice` was called, by the guest's agent, since the guest was booted."""
        return self.request("notices")["notices"].split(",")[:-1]

    def refuse(self, *, refuses: bool = True) -> None:
        """Have that program say no to whatever is about to become of the guest, or yes again."""
        self.request("refuse" if refuses else "agree")

    def clock(self) -> int:
        """Ask for the guest's time, in seconds since 1970."""
        return int(self.request("clock")["clock"])

    def poweroff(self) -> None:
        """Have the guest switch itself off."""
        self.request("poweroff")

    def reboot(self) -> None:
        """Have the guest reboot itself."""
        self.request("reboot")


def _status(values: dict[str, str]) -> Status:
    return Status(
        boot=values["boot"],
        uptime=float(values["uptime"]),
        ticks=int(values["ticks"]),
        disks={key[5:]: int(value) for key, value in values.items() if key.startswith("disk.")},
        paused="paused" in values,
    )


def _tpm(values: dict[str, str]) -> Tpm:
    if "nv" not in values:
        raise GuestError("the guest has no TPM")
    if not values["nv"]:
        raise GuestError("the guest's TPM does not answer")
    return Tpm(values["pcr16"].lower(), values["pcr23"].lower(), int(values["nv"]))


@dataclass(frozen=True)
class DiskRecords:
    """What a guest has written to one disk since its last boot, as an outside reader finds it."""

    disk: str
    boot: str
    last: int  # -1: nothing
    missing: tuple[int, ...]  # numbers up to the last that should be there and are not


def disk_sequences(path: Path | str, disk_format: str = "raw") -> DiskRecords:
    """Read an image file. Of a running guest's, it is a moment's view."""
    if disk_format == "raw":
        return _examine(Path(path))
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        subprocess.run(
            ["qemu-img", "convert", "-U", "-f", disk_format, "-O", "raw", str(path), str(raw)],
            check=True,
        )
        return _examine(raw)


def _records(path: Path) -> Iterator[tuple[int, str, int, str]]:
    """Read (position, disk, number, boot) of each whole record, from what is allocated."""
    with path.open("rb") as image:
        size = min(os.fstat(image.fileno()).st_size, RING * RECORD)
        position = 0
        while position < size:
            try:
                position = os.lseek(image.fileno(), position, os.SEEK_DATA) // RECORD * RECORD
            except OSError:  # nothing but a hole up to the end
                return
            end = min(os.lseek(image.fileno(), position, os.SEEK_HOLE), size)
            while position < end:
                if match := _RECORD.fullmatch(os.pread(image.fileno(), RECORD, position)):
                    disk, number, boot = (word.decode() for word in match.groups())
                    yield position // RECORD, disk, int(number), boot
                position += RECORD


def _examine(path: Path) -> DiskRecords:
    slots = min(path.stat().st_size // RECORD, RING)
    found = {position: (number, disk, boot) for position, disk, number, boot in _records(path)}
    if 0 not in found:
        return DiskRecords("", "", -1, ())
    _, disk, boot = found[0]  # each boot begins there
    numbers = {number for number, _, of in found.values() if of == boot}
    last = max(numbers)
    missing = (
        number
        for number in range(max(0, last - slots + 1), last + 1)
        if found.get(number % slots) != (number, disk, boot)
    )
    return DiskRecords(disk, boot, last, tuple(missing))
