"""What must be so on this host before a libvirt domain can be built on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.another import only_one_can_have
from entourage.hypervisors.libvirt.bootfiles import boot_refusals
from entourage.hypervisors.libvirt.capi import OLDEST
from entourage.hypervisors.libvirt.connection import Connection, RefusedError, ask
from entourage.hypervisors.libvirt.constants import OFF, STATE_NAMES, State
from entourage.hypervisors.libvirt.errors import plain
from entourage.hypervisors.libvirt.looks import version_in
from entourage.hypervisors.libvirt.needs import needs
from entourage.hypervisors.libvirt.tpm import state_of
from entourage.hypervisors.values import ANOTHER, GOES_BACK, RESTORES
from entourage.steps import Refusal

Reason: TypeAlias = tuple[str, str]
"""What is wrong, and what to do about it."""

_FITS = frozenset({1, 2})
"""``VIR_CPU_COMPARE_IDENTICAL`` and ``…_SUPERSET``."""


async def test_incoming(
    connection: Connection,
    domain: Domain,
    host: str,
    facts: Mapping[str, str],
    *,
    files: bool,
) -> Sequence[Refusal]:
    """What speaks against building this domain here.

    Args:
        connection: To the libvirtd that is to build it.
        domain: The running configuration.
        host: What this host is called in refusals.
        facts: What ``LibvirtMachine.facts`` said.
        files: Whether that libvirtd's host is this one, so that its files can be looked at.
    """
    raw = connection.raw
    reasons = versions(facts, await ask(raw.getLibVersion), await ask(raw.getVersion), host)
    found = await taken(connection, domain, host, restores=RESTORES in facts)
    if files:
        found += await boot_refusals(domain, host, facts)
        if facts.get(RESTORES) == GOES_BACK:
            found += await in_thread(lambda: [*_later_tpms(domain, host)])
        if facts.get(RESTORES) == ANOTHER:
            xml = facts.get("xml", "")
            reasons += await in_thread(lambda: [*only_one_can_have(xml, domain)])
    found += await needs(connection, facts, host, files=files)
    reasons += await _machine(raw, domain, facts, host)
    free = await ask(raw.getFreeMemory)
    available = await _available(raw, free)
    if available and available < domain.memory:
        reasons.append(
            (
                f"not enough memory: {domain.memory >> 20} MiB needed, {available >> 20} MiB free",
                "free some, or shut another domain down",
            )
        )
    return [*(Refusal("domain", host, reason, remedy) for reason, remedy in reasons), *found]


def _later_tpms(domain: Domain, host: str) -> Iterator[Refusal]:
    """States of TPMs of a machine that goes back, which libvirt would write over. Blocks."""
    for tpm in domain.tpm:
        if tpm.type == "emulator" and (state := state_of(domain, tpm)).exists():
            yield Refusal(
                tpm.label,
                host,
                "there is a state of this TPM on this host already, of later",
                f"if its domain is off, and what it did since is to be given up: mv {state.parent}"
                f" /root/{domain.name}.before.tpm",
            )


def versions(facts: Mapping[str, str], libvirt: int, qemu: int, host: str) -> list[Reason]:
    """What speaks against this pair of versions."""
    reasons: list[Reason] = []
    if _parts(libvirt) < OLDEST:
        remedy = f"install libvirt 6.0.0 or newer on {host}"
        reasons.append((f"libvirtd {dotted(libvirt)} is too old to be driven", remedy))
    theirs = version_in(facts.get("qemu", ""))
    if theirs and qemu < theirs:
        reasons.append(
            (
                f"QEMU {dotted(qemu)} is older than the {dotted(theirs)} that the domain runs in",
                f"install QEMU {dotted(theirs)} on {host}",
            )
        )
    return reasons


def dotted(version: int) -> str:
    """``9.0.0`` for 9000000."""
    return ".".join(map(str, _parts(version)))


def _parts(version: int) -> tuple[int, int, int]:
    return version // 1_000_000, version // 1000 % 1000, version % 1000


async def taken(
    connection: Connection, domain: Domain, host: str, *, restores: bool = False
) -> list[Refusal]:
    """A domain of that name or UUID that is here already.

    Args:
        connection: To the libvirtd that is to build it.
        domain: The domain.
        host: What this host is called in refusals.
        restores: Whether it is restored, by libvirt's own restore: then its own definition stays;
            else it is replaced.
    """
    mine = await connection.domain(str(domain.uuid))
    found = mine or await connection.named(domain.name)
    if found is None:
        return []

    def look() -> tuple[str, int, bool]:
        if restores and mine is not None:
            return found.name(), found.state(0)[0], bool(found.hasManagedSaveImage(0))
        keeps = found.hasManagedSaveImage(0) or found.snapshotNum(0) or found.listAllCheckpoints(0)
        return found.name(), found.state(0)[0], bool(keeps)

    name, state, keeps = await ask(look)
    reason = f"there is a domain {name} here already, {STATE_NAMES.get(State(state), 'unknown')}"
    if state not in OFF:
        return [Refusal("domain", host, reason, f"see `virsh list` on {host}")]
    if restores and mine is not None and name == domain.name:
        if not keeps:
            return []
        reason = f"libvirt keeps a saved state of {name} here, which `virsh start` would go on from"
        remedy = f"if that is older: virsh managedsave-remove {name}"
        return [Refusal("domain", host, reason, remedy)]
    if mine is not None and name == domain.name and not keeps:
        reason = f"the definition of {name} that is here, {STATE_NAMES[State(state)]}, is replaced"
        return [Refusal("domain", host, reason, only_warns=True)]
    if keeps:
        reason += ", and libvirt keeps a saved state, snapshots or checkpoints of it"
    remedy = f"if it is of no use any more, `virsh undefine {name}` on {host}"
    return [Refusal("domain", host, reason, remedy)]


async def _machine(raw: Any, domain: Domain, facts: Mapping[str, str], host: str) -> list[Reason]:
    """Whether this host's QEMU has the machine type, and its CPU what the guest uses."""
    emulator, arch, virt = facts.get("emulator"), facts.get("arch"), facts.get("virt")
    try:
        await ask(raw.getDomainCapabilities, emulator, arch, domain.machine, virt, 0)
    except RefusedError as error:
        return [(f"libvirt: {plain(error.message)}", f"install on {host} the QEMU of the source")]
    cpu = facts.get("cpu", "")
    if virt != "kvm" or "<model" not in cpu:
        return []
    try:
        fits = await ask(raw.compareHypervisorCPU, emulator, arch, domain.machine, virt, cpu, 0)
    except HypervisorError as error:
        return [(f"its CPU cannot be compared: {plain(error.message)}", "see the domain's <cpu>")]
    if fits in _FITS:
        return []
    remedy = "use a CPU model that both hosts have (virsh hypervisor-cpu-baseline)"
    return [("the CPU here lacks what the guest's has", remedy)]


async def _available(raw: Any, free: int) -> int:
    """Bytes that can be had: what libvirt calls free is without the page cache."""
    try:
        stats: Mapping[str, int] = await ask(raw.getMemoryStats, -1, 0)
    except RefusedError:
        return free
    return sum(_kib(stats, ("free", "cached", "buffers")))


def _kib(stats: Mapping[str, int], keys: Sequence[str]) -> Iterator[int]:
    for key in keys:
        yield stats.get(key, 0) << 10
