"""What a guest writes to its disks after a checkpoint: QEMU's records of it (dirty bitmaps).

A record bears its checkpoint's mark. It is begun as the checkpoint begins to copy the disk, so that
it shows what was written since the checkpoint's moment, and a little more. A later save that has
only the changes since then copies what it shows, while its guest stands still: by QEMU's backup
job, beside which a guest that runs would be told that its own write has failed where the save's
storage fails (``BackupCommon`` in QEMU's ``qapi/block-core.json``).

QEMU keeps records in memory: they end with it, and do not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from entourage.hypervisors.qemu.qmp import Monitor
from entourage.hypervisors.understood import understood

PREFIX: Final = "entourage-"
"""Every mark begins so; then the time, so that the order of names is that of checkpoints."""
_KEPT: Final = 8
"""Records of a disk that are kept: each costs memory, and a little time of every write."""
_GRANULARITY: Final = 1 << 16
"""Bytes that one bit of a record stands for."""


def changed(inserted: Mapping[str, Any], mark: str) -> int | None:
    """Bytes that were written since a checkpoint, at most.

    Args:
        inserted: What ``query-block`` says of the disk's medium.
        mark: The checkpoint's.

    Returns:
        None where QEMU has no record of that.

    Raises:
        HypervisorError: QEMU says what is not understood.
    """
    with understood("QEMU's answer to query-block"):
        for record in _records(inserted):
            if record["name"] == mark and record["recording"] and not record.get("inconsistent"):
                return int(record["count"])
    return None


async def begin(monitor: Monitor, node: str, mark: str, device: str) -> None:
    """Begin a record: not later than the moment of its checkpoint.

    Args:
        monitor: The machine's.
        node: What the guest writes to.
        mark: The checkpoint's.
        device: The disk's label.

    Raises:
        HypervisorError: QEMU does not begin one.
    """
    await monitor.execute(
        "block-dirty-bitmap-add",
        {"node": node, "name": mark, "granularity": _GRANULARITY},
        device=device,
    )


async def drop_oldest(
    monitor: Monitor, inserted: Mapping[str, Any], device: str, *, but: str
) -> None:
    """Make room for another record: of the oldest checkpoints none is kept.

    Args:
        monitor: The machine's.
        inserted: What ``query-block`` says of the disk's medium.
        device: The disk's label.
        but: The mark of one that is needed, if any.
    """
    names = sorted(str(record["name"]) for record in _records(inserted) if record["name"] != but)
    for name in names[: max(0, len(names) + 1 + bool(but) - _KEPT)]:
        await drop(monitor, str(inserted["node-name"]), name, device)


async def drop(monitor: Monitor, node: str, mark: str, device: str) -> None:
    """End a record; its arguments are those of ``begin``.

    Raises:
        HypervisorError: QEMU does not, or has none.
    """
    arguments = {"node": node, "name": mark}
    await monitor.execute("block-dirty-bitmap-remove", arguments, device=device)


def copy(node: str, target: str, mark: str) -> dict[str, Any]:
    """The arguments of the ``blockdev-backup`` that copies what has changed; the record stays.

    Args:
        node: What the guest writes to.
        target: The node of where it is copied to, and the job's name.
        mark: The record's.
    """
    return {
        "job-id": target,
        "device": node,
        "target": target,
        "sync": "bitmap",
        "bitmap": mark,
        "bitmap-mode": "never",
    }


def _records(inserted: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Ours, of those that QEMU has of a disk."""
    with understood("QEMU's answer to query-block"):
        found: list[Mapping[str, Any]] = inserted.get("dirty-bitmaps", [])
        return [one for one in found if str(one.get("name", "")).startswith(PREFIX)]
