"""How long a machine's virtio queues are: QEMU 10.0.13 does not go by what it was asked for."""

from __future__ import annotations

import asyncio
import contextlib

from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.qmp_error import CommandError

ORDINARY_QUEUE = 256
"""Entries at most of a queue of the devices that are looked at, which are made without a size."""
_LOOKED_AT = frozenset({"virtio-blk", "virtio-net", "virtio-rng"})


async def largest_queue(monitor: Monitor) -> int:
    """How many entries the longest first queue of the machine's virtio devices has.

    In QEMU 10.0.13 (Debian 13) each queue has 1024, also one that is to have 256 or 8. The guest
    uses them so, until it is started again by another version; QEMU 11.1.3 does not take them
    ("vring.num 1024 exceeds allocated max 256").

    Returns:
        0 where QEMU cannot tell.
    """

    async def of(path: str) -> int:
        queue = {"path": path, "queue": 0}
        return int((await monitor.execute("x-query-virtio-queue-status", queue))["vring-num"])

    with contextlib.suppress(CommandError):  # it is no part of QMP that is promised
        devices = await monitor.execute("x-query-virtio")
        paths = [device["path"] for device in devices if device["name"] in _LOOKED_AT]
        return max(await asyncio.gather(*map(of, paths)), default=0)
    return 0
