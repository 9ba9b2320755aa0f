"""What must be so on this host before a Xen domain can be built on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from entourage.domain import Domain
from entourage.hosts import local
from entourage.hypervisors.files import boot_problems
from entourage.hypervisors.xen.constants import AWAY, INCOMING, STREAMS, arrives_in
from entourage.hypervisors.xen.xenstore import XenStore
from entourage.hypervisors.xen.xl import info
from entourage.steps import Refusal

_MIB = 1 << 20
_HVM = frozenset({"pvh", "hvm"})


async def test_incoming(
    domain: Domain, host: str, facts: Mapping[str, str], run: str
) -> Sequence[Refusal]:
    """What speaks against building this domain here.

    Args:
        domain: The running configuration.
        host: What this host is called in refusals.
        facts: What ``XenMachine.facts`` said.
        run: The settings' directory for sockets.
    """
    here = await info("xen_version", "virt_caps", "free_memory", "xen_commandline")
    found = [*await _taken(domain), *versions(facts, here), *too_full(domain.memory, here)]
    found += too_long(run, str(domain.uuid))
    found += await boot_problems(domain, host, facts)
    return [Refusal("domain", host, reason, remedy) for reason, remedy in found]


def too_long(run: str, uuid: str) -> list[tuple[str, str]]:
    """Whether the socket for the streams would have a longer path than a socket may."""
    if not local.too_long(str(arrives_in(run, uuid) / STREAMS)):
        return []
    return [(f"{run} is too long a path for sockets to be in", "set paths.run to a shorter one")]


def too_full(needed: int, here: Mapping[str, str]) -> list[tuple[str, str]]:
    """Whether there is room for that many bytes.

    Where dom0's memory is not fixed, xl takes from it what is needed, and says itself how much.
    """
    free = int(here.get("free_memory", "0") or 0) * _MIB
    if "dom0_mem=" not in here.get("xen_commandline", "") or free >= needed:
        return []
    reason = f"not enough memory: {needed // _MIB} MiB needed, {free // _MIB} MiB free"
    return [(reason, "free some (`xl mem-set 0 …`), or shut another domain down")]


def versions(facts: Mapping[str, str], here: Mapping[str, str]) -> list[tuple[str, str]]:
    """What speaks against this pair of hypervisors: what is wrong, and what to do about it."""
    found: list[tuple[str, str]] = []
    ours, theirs = here.get("xen_version", ""), facts.get("xen_version", "")
    if _numbers(ours) < _numbers(theirs):
        reason = f"Xen {ours} is older than the {theirs} that the domain runs on"
        found.append((reason, f"boot Xen {theirs} there"))
    if facts.get("type") in _HVM and "hvm" not in here.get("virt_caps", ""):
        reason = "its processor, or firmware, does no hardware virtualization"
        found.append((reason, "switch it on in the firmware"))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """``(4, 17)`` of ``4.17.4-pre``: a patch level changes nothing that moves."""
    parts = version.split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


async def _taken(domain: Domain) -> list[tuple[str, str]]:
    """A domain of that name or UUID that is here already."""
    store = await XenStore.open()
    try:
        names = {await store.name(int(domid)) for domid in await store.directory("/local/domain")}
        same = await store.domain_ids(str(domain.uuid))
        called = {await store.name(domid) for domid in same}
    finally:
        await store.close()
    ours = {domain.name, domain.name + AWAY, domain.name + INCOMING}
    return [
        (f"there is a domain {name} here already", "see `xl list` there")
        for name in sorted((names & ours) | called)
    ]
