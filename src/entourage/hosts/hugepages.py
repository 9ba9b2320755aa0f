"""Huge pages: how many a host has set aside and left, and how many a process has of them.

They are apart from the memory that a host has left otherwise: the kernel gives them to nobody else
(Linux, ``Documentation/admin-guide/mm/hugetlbpage.rst``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

POOLS: Final = Path("/sys/kernel/mm/hugepages")
PROCESSES: Final = Path("/proc")
_SMALL: Final = 64
"""KiB: no architecture's ordinary page is larger."""
_POOL: Final = re.compile(r"hugepages-(\d+)kB\Z")


def free_pages(pools: Path = POOLS) -> Mapping[int, int]:
    """By their size in KiB, how many are left that are promised to no process."""
    found: dict[int, int] = {}
    for pool in sorted(pools.glob("hugepages-*kB")):
        if match := _POOL.match(pool.name):
            left = _number(pool / "free_hugepages") - _number(pool / "resv_hugepages")
            found[int(match[1])] = max(0, left)
    return found


def pages_of(pid: int, processes: Path = PROCESSES) -> Mapping[int, int]:
    """By their size in KiB, how many a process has mapped, whether it has touched them or not.

    Empty where there is no such process, or where it may not be looked at.
    """
    found: Counter[int] = Counter()
    size = 0
    try:
        # Cheap where there are none, as in most processes: smaps is made by walking all pages.
        status = (processes / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
        if not re.search(r"^HugetlbPages:\s+[1-9]", status, re.MULTILINE):
            return {}
        smaps = (processes / str(pid) / "smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    for line in smaps.splitlines():
        key, _, value = line.partition(":")
        if key == "Size":
            size = int(value.split()[0])
        elif key == "KernelPageSize" and (kib := int(value.split()[0])) > _SMALL:
            found[kib] += size // kib
    return dict(found)


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
