"""What must be so on this host before a machine can be started or built on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from entourage.domain import Block, Domain, Net, Tpm
from entourage.errors import EntourageError, HypervisorError, UsageError
from entourage.hosts.account import Account
from entourage.hosts.allowed import images_of
from entourage.hosts.beneath import Beneath
from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import boot_problems
from entourage.hypervisors.qemu import access, binary, nvram
from entourage.hypervisors.qemu.cmdline import is_readonly
from entourage.hypervisors.qemu.looks import cpu_flags
from entourage.hypervisors.qemu.paths import Places, places
from entourage.hypervisors.qemu.record import entries
from entourage.hypervisors.qemu.resolve import begins_like_qcow2
from entourage.settings.model import Settings
from entourage.steps import Refusal

# What QEMU itself takes beside the guest's memory: translation buffers, devices, page tables.
_OVERHEAD = 64 << 20
_QUEUES_ARE_CHECKED = (11, 1, 0)  # seen in 11.1.3, and not in 10.0.13; see ``virtio``
_MEMINFO = Path("/proc/meminfo")

Reason: TypeAlias = tuple[str, str]
"""What is wrong, and what to do about it."""


# Far more than a machine's sockets, keys, records and log take in each of them.
_ROOM = 4 << 20
IN_THE_CLEAR = (
    "memory and disks are not taken unencrypted here",
    "leave out --no-tls, or set agent.allow-unencrypted there",
)
"""What is wrong, and what to do."""


def check_start(domain: Domain) -> None:
    """See that everything a domain names is here.

    Raises:
        UsageError: Something is not; all that is missing is named.
    """
    problems: list[UsageError] = [
        UsageError(f"there is no {path} that can be read", remedy="check boot in the domain's file")
        for path in domain.boot.files
        if not os.access(path, os.R_OK)
    ]
    problems += nvram.firmware_problems(domain)
    for disk in domain.block:
        if disk is not domain.variables or Path(disk.path).exists():  # else it is made
            problems += _disk_problems(disk)
    for net in domain.net:
        problems += _net_problems(net)
    for tpm in domain.tpm:
        problems += _tpm_problems(tpm)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UsageError("; ".join(map(str, problems)))


async def check_access(domain: Domain, where: Places, account: Account | None) -> None:
    """See that the user that QEMU runs as gets at what the domain names.

    Args:
        domain: Resolved.
        where: Its places.
        account: The user; None: as Entourage.

    Raises:
        UsageError: There is something that it does not get at, and cannot be given.
    """
    for problem in await access.problems(domain, where, account):
        raise UsageError(problem.reason, device=problem.device, remedy=problem.remedy)


def _disk_problems(disk: Block) -> Iterator[UsageError]:
    path = Path(disk.path)
    wanted = os.R_OK if is_readonly(disk) else os.R_OK | os.W_OK
    if not path.exists():
        yield UsageError(f"there is no {path}", device=disk.label, remedy="check its path")
    elif not (path.is_file() or path.is_block_device()):
        yield UsageError(f"{path} is neither a file nor a block device", device=disk.label)
    elif not os.access(path, wanted):
        yield UsageError(f"{path} cannot be read and written", device=disk.label)
    else:
        really = begins_like_qcow2(path)
        # As raw, a guest could write a header that makes QEMU open any file of the host next time.
        if really and disk.format == "raw":
            yield UsageError(
                f"{path} is to be raw, and begins like a qcow2 image",
                device=disk.label,
                # Never: open it as what it claims to be. A guest could have written that.
                remedy="see how it was made; a guest that had it as a raw disk can have written "
                "that, and QEMU would open the files of this host that it names",
            )
        elif not really and disk.format == "qcow2":
            remedy = 'set format = "raw", if that is what it was made as'
            yield UsageError(f"{path} is no qcow2 image", device=disk.label, remedy=remedy)


def _net_problems(net: Net) -> Iterator[UsageError]:
    if net.bridge not in (name for _, name in socket.if_nameindex()):
        yield UsageError(
            f"there is no bridge {net.bridge}",
            device=net.label,
            remedy=f"make it (ip link add {net.bridge} type bridge), or name another",
        )


def _tpm_problems(tpm: Tpm) -> Iterator[UsageError]:
    if tpm.type == "emulator" and shutil.which("swtpm") is None:
        yield UsageError("swtpm is not installed", device=tpm.label, remedy="install swtpm")
    if tpm.type == "external" and not (tpm.socket and Path(tpm.socket).is_socket()):
        yield UsageError(
            f"there is no socket {tpm.socket or '(none is named)'}",
            device=tpm.label,
            remedy="start the emulator first",
        )
    if tpm.type == "passthrough" and not os.access(tpm.path or "/dev/tpm0", os.R_OK | os.W_OK):
        yield UsageError(f"there is no {tpm.path or '/dev/tpm0'}", device=tpm.label)


async def test_incoming(
    domain: Domain, host: str, facts: Mapping[str, str], settings: Settings
) -> Sequence[Refusal]:
    """What speaks against building this domain here."""
    reasons = [*_taken(domain, host, settings), *_unusable(domain, settings), *_memory(domain)]
    if facts.get("encrypted") == "no" and not settings.agent.allow_unencrypted:
        reasons.append(IN_THE_CLEAR)
    reasons += await boot_problems(domain, host, facts)
    if binary.find_qemu() is None:
        reasons.append(("QEMU is not installed", f"install qemu-system-x86_64 on {host}"))
    else:
        try:
            reasons += await _qemu(domain, facts, host)
            if domain.accel == "kvm":
                reasons += await _kvm(facts, settings)
        except HypervisorError as error:
            reasons.append((error.message, error.remedy))
    return [
        *(Refusal("domain", host, reason, remedy) for reason, remedy in reasons),
        *_states_of_tpms(domain, host, settings),
        *await _access(domain, host, settings),
    ]


def _states_of_tpms(domain: Domain, host: str, settings: Settings) -> Iterator[Refusal]:
    """TPMs that have a state here already, which nobody writes over."""
    with contextlib.suppress(UsageError):  # told already
        where = places(settings, str(domain.uuid), domain.name)
        for tpm in domain.tpm:
            state = where.tpm_state(tpm.id)
            if tpm.type == "emulator" and state.is_dir():
                reason = "there is a state of this TPM on this host already"
                yield Refusal(tpm.label, host, reason, f"move {state} away")


async def _access(domain: Domain, host: str, settings: Settings) -> list[Refusal]:
    """What the user that QEMU runs as does not get at.

    Of disks, only those are looked at that may be opened here: a stranger may have named them.
    """
    allowed = images_of(settings.agent)
    disks = await in_thread(lambda: [d for d in domain.block if _is_beneath(allowed, d)])
    domain = msgspec.structs.replace(domain, block=tuple(disks))
    try:
        where = places(settings, str(domain.uuid), domain.name)
    except UsageError:  # told already
        return []
    try:
        found = await access.problems(domain, where, access.account_of(settings.qemu))
    except EntourageError as error:
        return [Refusal("domain", host, error.message, error.remedy)]
    return [Refusal(problem.device, host, problem.reason, problem.remedy) for problem in found]


def _is_beneath(allowed: Beneath, disk: Block) -> bool:
    try:
        allowed.real(disk.path)
    except (OSError, EntourageError):
        return False
    return True


def _taken(domain: Domain, host: str, settings: Settings) -> Iterator[Reason]:
    for entry in entries(settings):
        if entry.domain.uuid != domain.uuid and entry.domain.name != domain.name:
            continue
        if not entry.alive:
            stop = f"`entourage stop {entry.domain.name}`"  # which gives its files back
            away = f"move {entry.places.state}, its record and its TPM's state, away"
            yield (
                f"there is a domain {entry.domain.name} here already, shut off",
                f"if it is of no use any more: {stop} on {host}, then {away}",
            )
        elif entry.running is not None and entry.running.incoming:
            yield (
                f"there is a domain {entry.domain.name} here already, on its way in",
                f"run `entourage recover` on {host}",
            )
        else:
            yield (
                f"there is a domain {entry.domain.name} here already, and it runs",
                "migrate to another host than the one it runs on, or give one another name",
            )


def _unusable(domain: Domain, settings: Settings) -> Iterator[Reason]:
    """Directories that cannot be written to, or whose paths are of no use."""
    try:
        places(settings, str(domain.uuid), domain.name)
    except UsageError as error:
        yield error.message, error.remedy
    for path in (settings.paths.run, settings.paths.state, settings.paths.log):
        there = Path(path)
        while not there.exists():
            there = there.parent
        if not os.access(there, os.W_OK | os.X_OK):
            yield f"{path} cannot be written to", "run Entourage there as root (remote-command)"
        elif (free := _free(there)) < _ROOM:
            yield (
                f"no room in {path}: {free >> 10} KiB free",
                f"free at least {_ROOM >> 20} MiB there",
            )


def _free(directory: Path) -> int:
    """Bytes free for everyone on the filesystem of a directory; none where no file can be made."""
    space = os.statvfs(directory)
    inodes = space.f_favail > 0 or space.f_files == 0  # some filesystems do not count them
    return space.f_bavail * space.f_frsize if inodes else 0


def _memory(domain: Domain) -> Iterator[Reason]:
    for line in _MEMINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            free = int(value.split()[0]) << 10
            need = domain.memory + _OVERHEAD
            if free < need:
                yield (
                    f"not enough memory: {need >> 20} MiB needed, {free >> 20} MiB free",
                    "free some, or shut another domain down",
                )


async def _qemu(domain: Domain, facts: Mapping[str, str], host: str) -> list[Reason]:
    reasons: list[Reason] = []
    ours = await binary.version()
    theirs = tuple(int(part) for part in facts.get("qemu", "").split(".") if part.isdigit())
    if ours < theirs:  # a newer one takes a machine of any older one's, by its versioned type
        dotted = ".".join(map(str, ours))
        reason = f"QEMU {dotted} is older than the {facts['qemu']} that the domain runs in"
        reasons.append((reason, f"install QEMU {facts['qemu']} or newer on {host}"))
    if (entries := facts.get("virtio-queues")) and ours >= _QUEUES_ARE_CHECKED:
        reason = f"QEMU here takes no virtio queues of {entries} entries, as the domain has them"
        remedy = f"shut it down and start it on {host}, or move it to a host with the same QEMU"
        reasons.append((f"{reason} from QEMU {facts.get('qemu')}", remedy))
    if domain.machine not in await binary.machine_types():
        reason = f"QEMU here has no machine type {domain.machine}"
        reasons.append((reason, f"install on {host} the QEMU of the source"))
    return reasons


async def _kvm(facts: Mapping[str, str], settings: Settings) -> list[Reason]:
    if not await binary.kvm_works(settings):
        remedy = 'enable KVM, or start the domain with accel = "tcg"'
        return [("the domain runs in KVM, which runs no guest here", remedy)]
    lacking = sorted(set(facts.get("cpu-flags", "").split()) - cpu_flags())
    if lacking:
        remedy = "start the domain with a CPU model that both hosts have (cpu)"
        return [(f"the CPU here lacks {', '.join(lacking)}", remedy)]
    return []
