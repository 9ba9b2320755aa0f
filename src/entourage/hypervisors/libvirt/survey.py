"""What has begun with a domain, or waits for its next start, before it moves; on its source.

libvirt itself says of a job only that it cannot have the lock, after half a minute. Of what
the definition has and the running domain has not, it says nothing at all.
"""

from __future__ import annotations

import dataclasses
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from entourage.hypervisors.libvirt.connection import ask, bindings
from entourage.hypervisors.libvirt.constants import XML_INACTIVE
from entourage.hypervisors.libvirt.copying import (
    EXPORTS_FROM_THREADS,
    Traits,
    threaded,
    traits_of,
)
from entourage.hypervisors.libvirt.domainxml import Lookups, parse, source_path
from entourage.hypervisors.libvirt.elements import unknown_elements
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.lookups import lookups_of
from entourage.steps import Refusal

# virDomainJobOperation
_JOBS: Mapping[int, str] = {
    2: "its state is being saved", 4: "it is just arriving here", 5: "another migration",
    6: "a snapshot is being made", 7: "a snapshot is being reverted to", 8: "a dump",
    9: "a backup", 10: "a snapshot is being deleted",
}  # fmt: skip
# virDomainBlockJobType
_BLOCK_JOBS: Mapping[int, str] = {
    1: "a block pull", 2: "a block copy", 3: "a block commit", 4: "a block commit", 5: "a backup",
}  # fmt: skip
_BACKUP = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        jobs: What libvirt does with it just now: it can neither move nor be saved.
        snapshots: What libvirt keeps of it here: it cannot move.
        traits: What of each of its disks matters for a copy.
        pending: What waits for its next start, or is not known: it can move, and the user is told.
    """

    jobs: Sequence[Refusal]
    snapshots: Sequence[Refusal]
    pending: Sequence[Refusal]
    traits: Mapping[str, Traits]

    @property
    def begun(self) -> Sequence[Refusal]:
        """All that keeps it from being moved."""
        return [*self.jobs, *self.snapshots]


async def survey(handle: Handle) -> Survey:
    """Look at a running domain; asks only what needs none of libvirt's locks on it."""
    host = socket.gethostname()

    def look() -> Survey:
        raw, domain = handle.raw, handle.domain
        live = parse(raw.XMLDesc(0))
        pending: list[Refusal] = []
        if not handle.transient:
            kept = parse(raw.XMLDesc(XML_INACTIVE))
            lookups = lookups_of(handle.connection)
            pending += pending_changes(live, kept, lookups, host)
        pending += unknown(live, host)
        if handle.connection.raw.getVersion() < EXPORTS_FROM_THREADS:
            pending += _without_threads(live, host)
        known = {device.label for device in domain.devices}
        jobs = [_of_device(each, known) for each in _jobs(raw, live, host)]
        return Survey(jobs, list(_snapshots(raw, host)), pending, traits_of(live))

    return await ask(look)


def _of_device(refusal: Refusal, known: set[str]) -> Refusal:
    """The same, of the domain where its device is none of ours."""
    return refusal if refusal.device in known else dataclasses.replace(refusal, device="domain")


def _jobs(raw: Any, live: ET.Element, host: str) -> Iterator[Refusal]:
    name = live.findtext("name", "")
    error = bindings().libvirtError
    try:
        stats: Mapping[str, int] = raw.jobStats()
    except error:
        stats = {}
    operation = stats.get("operation", 0) if stats.get("type", 0) else 0
    backs_up = operation in _JOBS
    if backs_up:
        said = _JOBS[operation]
        reason = said if said.startswith("its ") or " is " in said else f"{said} is under way"
        yield Refusal("domain", host, reason, f"wait until it is done, or virsh domjobabort {name}")
    for disk in live.iterfind("devices/disk"):
        target = disk.find("target")
        device = target.get("dev", "") if target is not None else ""
        try:
            job: Mapping[str, int] = raw.blockJobInfo(device, 0) or {}
        except error:
            job = {}
        kind = job.get("type", 0)
        if kind not in _BLOCK_JOBS or (kind == _BACKUP and backs_up):
            continue
        end = (
            f"virsh domjobabort {name}"
            if kind == _BACKUP
            else f"virsh blockjob {name} {device} --abort"
        )
        reason = f"{_BLOCK_JOBS[kind]} of {device} is under way"
        yield Refusal(f"block/{device}", host, reason, f"wait until it is done, or {end}")


def _snapshots(raw: Any, host: str) -> Iterator[Refusal]:
    names: list[str] = [snapshot.getName() for snapshot in raw.listAllSnapshots(0)]
    if not names:
        return
    name = raw.name()
    yield Refusal(
        "domain",
        host,
        f"libvirt keeps snapshots of it, and moves none: {', '.join(names)}",
        f"have libvirt forget them, which leaves the images as they are, for each of them:"
        f" virsh snapshot-delete {name} {names[0]} --metadata",
    )


def _without_threads(live: ET.Element, host: str) -> Iterator[Refusal]:
    """What ``unthreaded`` will do, if the target's QEMU is no newer than this one."""
    for name in traits_of(live):
        if list(threaded(live, [name])):
            yield Refusal(
                f"block/{name}",
                host,
                "where it is copied to a QEMU before 8.0, it has no I/O thread there until the next"
                " start: that QEMU would die of it",
                only_warns=True,
            )


def unknown(live: ET.Element, host: str) -> Iterator[Refusal]:
    """What a running domain has that Entourage has never heard of."""
    if names := list(dict.fromkeys(unknown_elements(live))):
        yield Refusal(
            "domain",
            host,
            f"its XML has what Entourage does not know: {', '.join(names)}",
            "libvirt moves it as it is; see that the target has what it names",
            only_warns=True,
        )


def pending_changes(
    live: ET.Element, kept: ET.Element, lookups: Lookups, host: str
) -> Iterator[Refusal]:
    """What a domain's definition has otherwise than what runs: from the next start on.

    Args:
        live: The running domain's XML.
        kept: Its definition's.
        lookups: What both leave to libvirt's other objects.
        host: This host.
    """
    for reason, remedy in _pending(live, kept, lookups):
        yield Refusal("domain", host, reason, remedy, only_warns=True)


def _pending(live: ET.Element, kept: ET.Element, lookups: Lookups) -> Iterator[tuple[str, str]]:
    name = live.findtext("name", "")
    running, wanted = (_disks(root, lookups) for root in (live, kept))
    for device, path in wanted.items():
        if running.get(device) == path or not path:
            continue
        now = f"{running[device] or 'nothing'} there" if device in running else "no such disk"
        yield (
            (
                f"its definition has {path} as {device}, and the running domain has {now}:"
                " that is not copied, and stays so for the next start"
            ),
            (
                "see that it is on the target before that, or attach it to the running domain too,"
                f" or virsh detach-disk {name} {device} --config"
            ),
        )
    running, wanted = _nics(live), _nics(kept)
    for mac, place in wanted.items():
        if running.get(mac) != place:
            now = f"is on {running[mac]} now" if mac in running else "is not in the running domain"
            yield (
                (
                    f"its definition has a NIC {mac} on {place}, which {now}: that stays so for the"
                    " next start"
                ),
                (
                    f"see that the target has {place} before that, or virsh detach-interface"
                    f" {name} … --config"
                ),
            )
    if others := sorted(_others(live, kept)):
        yield (
            (
                f"its definition differs from the running domain in {', '.join(others)}: that stays"
                " so for the next start"
            ),
            f"virsh dumpxml {name} --inactive shows it",
        )


def _disks(root: ET.Element, lookups: Lookups) -> dict[str, str]:
    """Each disk's place, by what the guest sees it as."""
    found: dict[str, str] = {}
    for disk in root.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None:
            remote = source.get("name", "") if source is not None else ""
            found[target.get("dev", "")] = source_path(disk, lookups) or remote
    return found


def _nics(root: ET.Element) -> dict[str, str]:
    """Each NIC's bridge, network or interface, by its MAC."""
    found: dict[str, str] = {}
    for nic in root.iterfind("devices/interface"):
        mac, source = nic.find("mac"), nic.find("source")
        if mac is not None and source is not None:
            places = (source.get(key) for key in ("network", "bridge", "dev"))
            found[mac.get("address", "").lower()] = next(filter(None, places), nic.get("type", ""))
    return found


def _others(live: ET.Element, kept: ET.Element) -> Iterator[str]:
    for path, what in (
        ("memory", "memory"),
        ("vcpu", "vcpus"),
        ("os/kernel", "kernel"),
        ("os/initrd", "initrd"),
        ("os/cmdline", "kernel command line"),
        ("os/loader", "firmware"),
    ):
        wanted, now = ((root.findtext(path) or "").strip() for root in (kept, live))
        chosen = path == "os/loader" and not wanted  # by libvirt, as it started
        if wanted != now and not chosen:
            yield what
    counts = [
        Counter((str(one.tag), one.get("type", ""), one.get("model", "")) for one in devices)
        for devices in (_countable(live), _countable(kept))
    ]
    for more, less in ((1, 0), (0, 1)):
        yield from (f"a {tag}" for tag, _, _ in counts[more] - counts[less])


def _countable(root: ET.Element) -> list[ET.Element]:
    """Devices but those that are told one by one, or that libvirt writes down in its own way."""
    passed = {"disk", "interface", "emulator", "console", "audio", "controller", "memballoon"}
    return [each for each in root.iterfind("devices/*") if each.tag not in passed]
