"""What a libvirt domain boots from, on its target: the same, or another build that will do.

The guest runs on with what is in its memory. Firmware in a flash chip must be as large as it was;
what else differs, the guest meets at its next boot.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from entourage.domain import Domain
from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import boot_problem, digest
from entourage.steps import Refusal


async def boot_refusals(domain: Domain, host: str, facts: Mapping[str, str]) -> list[Refusal]:
    """What speaks against the files that a domain boots from, on its target; or only differs.

    Args:
        domain: The domain.
        host: What the target is called.
        facts: What ``about`` said of each on the source.
    """
    found: list[Refusal] = []
    for path in domain.boot.files:
        problem = await boot_problem(path, host, facts)
        if problem is None:
            continue
        reason, remedy = problem
        other = bool(facts.get(f"sha256:{path}")) and await in_thread(_is_public, path)
        if other and path != domain.boot.firmware:
            told = f"{reason}: the next boot differs"
            found.append(Refusal("domain", host, told, only_warns=True))
        elif other and facts.get(f"size:{path}") == await in_thread(size, path):
            told = f"{reason}, but another build of the same size: its next start differs"
            found.append(Refusal("domain", host, told, only_warns=True))
        elif other and facts.get(f"size:{path}"):
            told = f"{path} is not as large as the source's: its firmware cannot be taken over"
            remedy = f"install on {host} the firmware's package in the version of the source"
            found.append(Refusal("domain", host, told, remedy))
        else:
            found.append(Refusal("domain", host, reason, remedy))
    return found


async def about(domain: Domain) -> dict[str, str]:
    """What the target is told of the files that it boots from: digest and size of each."""
    found: dict[str, str] = {}
    for path in domain.boot.files:
        found[f"sha256:{path}"] = await in_thread(digest, path)
        found[f"size:{path}"] = await in_thread(size, path)
    return found


def size(path: str) -> str:
    """A file's, in bytes; empty where there is none."""
    try:
        return str(Path(path).stat().st_size)
    except OSError:
        return ""


def _is_public(path: str) -> bool:
    """Whether everybody on this host may read it: then a guest may, without having shown it."""
    try:
        status = Path(path).stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IROTH)
