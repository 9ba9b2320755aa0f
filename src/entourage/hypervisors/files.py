"""Files that a machine is built from or writes: compared between hosts, and put on the disk."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from entourage.domain import Domain
from entourage.hosts.threads import in_thread

# All others are taken for storage that another host may see: NFS, CephFS, FUSE, GFS2 and the like.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})
_LARGEST = 2 << 30


def digest(path: str) -> str:
    """SHA-256 of a file that a machine boots from. Blocks, never for a FIFO or a device.

    Returns:
        Empty where it is no plain file, cannot be read, or is larger than 2 GiB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - what hashlib takes
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
                return ""
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # ValueError: a path that holds a NUL
        return ""


async def boot_problems(
    domain: Domain, host: str, facts: Mapping[str, str]
) -> list[tuple[str, str]]:
    """What speaks against the files that a domain boots from on its target: reason and remedy.

    A file whose content the source has not told of is not used: it could be anybody's.

    Args:
        domain: The domain.
        host: What the target is called.
        facts: What the source says; the digest of each as ``sha256:PATH``.
    """
    problems = [await boot_problem(path, host, facts) for path in domain.boot.files]
    return [problem for problem in problems if problem]


async def boot_problem(path: str, host: str, facts: Mapping[str, str]) -> tuple[str, str] | None:
    """The same of one file; None where it is the source's."""
    here, there = await in_thread(digest, path), facts.get(f"sha256:{path}", "")
    if not here:
        return f"there is no {path}, which it boots from", f"copy it to {host}"
    if not there:
        reason = f"the source has no {path} any more, which it boots from, or cannot read it"
        return reason, f"put it back there, the same as on {host}"
    if here != there:
        return f"{path} is not the file of that name that the source has", f"copy it to {host}"
    return None


def is_on_local_storage(path: Path) -> bool:
    """Whether only this host can see what is at a path, as far as its filesystem's kind tells."""
    real = Path(os.path.realpath(path))
    kind, longest = "", -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): … mount point (the fifth), options, optional fields, "-", the filesystem's kind
        before, _, after = line.partition(" - ")
        mounted = Path(before.split()[4].encode().decode("unicode_escape"))
        if real.is_relative_to(mounted) and len(mounted.parts) >= longest:
            kind, longest = after.split()[0], len(mounted.parts)
    return kind in _LOCAL
