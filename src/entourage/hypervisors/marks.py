"""What a guest writes to its disks after a checkpoint: QEMU's records of it (dirty bitmaps).

A record is begun as a checkpoint begins to copy the disk, so that it shows what was written since
the checkpoint's moment, and a little more. It gets the checkpoint's mark as its name once that is
kept. A later save that has only the changes since then copies what it shows, while its guest stands
still: by QEMU's backup job, beside which a guest that runs would be told that its own write has
failed where the save's storage fails (``BackupCommon`` in QEMU's ``qapi/block-core.json``).

QEMU keeps records in memory: they end with it, and do not move. Whoever speaks with QEMU has them
kept: Entourage's own machines by their monitor, libvirt's domains past libvirt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from entourage.domain import Block
from entourage.errors import HypervisorError
from entourage.hypervisors.seams import Changed
from entourage.hypervisors.understood import understood

PREFIX: Final = "entourage-"
"""Every mark begins so; then the time, so that the order of names is that of checkpoints."""
_NEW: Final = "new-of-entourage"
"""The name of a record whose checkpoint is not kept yet."""
_KEPT: Final = 8
"""Records of a disk that are kept: each costs memory, and a little time of every write."""
_GRANULARITY: Final = 1 << 16
"""Bytes that one bit of a record stands for."""
_QUERY: Final = "QEMU's answer to query-block"


class Executes(Protocol):
    """Has a machine's QEMU do something."""

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, device: str = ""
    ) -> Any:
        """Run a command of QMP's, and return what it returns.

        Args:
            command: Its name.
            arguments: Its arguments.
            device: The label of the device that an error is about.

        Raises:
            HypervisorError: QEMU refuses it, or cannot be told.
        """
        ...


def changed(inserted: Mapping[str, Any], mark: str) -> Changed | None:
    """How much was written since a checkpoint, at most.

    Args:
        inserted: What ``query-block`` says of the disk's medium.
        mark: The checkpoint's.

    Returns:
        None where QEMU has no record of that. One that is kept in the image is none of ours: it
        would outlive this QEMU, and what others do to the disk then.

    Raises:
        HypervisorError: QEMU says what is not understood.
    """
    with understood(_QUERY):
        for record in _records(inserted):
            sound = record["recording"] and not record.get("inconsistent")
            if record["name"] == mark and sound and not record.get("persistent"):
                return Changed(int(record["count"]), int(inserted["image"]["virtual-size"]))
    return None


async def begin(qemu: Executes, inserted: Mapping[str, Any], device: str) -> None:
    """Begin a record: not later than the moment of its checkpoint.

    Args:
        qemu: The machine's.
        inserted: What ``query-block`` says of the disk's medium.
        device: The disk's label.

    Raises:
        HypervisorError: QEMU does not begin one.
    """
    node = str(inserted["node-name"])
    if any(record["name"] == _NEW for record in _records(inserted)):  # of one that was not kept
        await _remove(qemu, node, _NEW, device)
    await _add(qemu, node, _NEW, device)


async def keep(qemu: Executes, inserted: Mapping[str, Any], mark: str, device: str) -> None:
    """Its checkpoint is kept: the record is called by its mark; of the oldest none is kept.

    Args:
        qemu: The machine's.
        inserted: What ``query-block`` says of the disk's medium.
        mark: The checkpoint's.
        device: The disk's label.

    Raises:
        HypervisorError: It cannot be; then nobody can save what was written since.
    """
    node = str(inserted["node-name"])
    # All of it or nothing: a record with that name that was not filled would hide what was written.
    actions = [
        _action("add", node=node, name=mark, granularity=_GRANULARITY),
        _action("merge", node=node, target=mark, bitmaps=[_NEW]),
        _action("remove", node=node, name=_NEW),
    ]
    await qemu.execute("transaction", {"actions": actions}, device=device)
    names = sorted(str(one["name"]) for one in _records(inserted) if one["name"] != _NEW)
    for name in names[: max(0, len(names) + 1 - _KEPT)]:
        await _remove(qemu, node, name, device)


def check_recorded(inserted: Mapping[str, Any], root: str, mark: str, device: str) -> None:
    """See that a disk's record can still be gone by, once its guest stands still.

    As long as no job is there, anybody may put another image on top of it.

    Args:
        inserted: What ``query-block`` says of the disk's medium now.
        root: Its node when the copy of what has changed was prepared.
        mark: The record's.
        device: The disk's label.

    Raises:
        HypervisorError: Another image is there, or the record is gone.
    """
    if inserted["node-name"] != root or changed(inserted, mark) is None:
        raise HypervisorError(
            "another image was put in its place, or on top of it, while it was saved",
            device=device,
            remedy="save it without --since",
        )


async def keep_each(
    qemu: Executes,
    begun: Iterable[tuple[Block, str]],
    inserted: Callable[[Block], Awaitable[Mapping[str, Any]]],
    mark: str,
) -> None:
    """The same, of each disk that a record was begun of, unless it has another image by now.

    Args:
        qemu: The machine's.
        begun: The disks, and the node that each one's guest wrote to then.
        inserted: Says what ``query-block`` says of a disk's medium.
        mark: The checkpoint's.

    Raises:
        HypervisorError: That of one disk could not be kept; those of others were.
    """
    failed: HypervisorError | None = None
    for disk, root in begun:
        try:
            now = await inserted(disk)
            if now["node-name"] == root:  # else another image is there, or on top of it
                await keep(qemu, now, mark, disk.label)
        except HypervisorError as error:  # of each disk for itself
            failed = failed or error
    if failed is not None:
        raise failed


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


def _action(what: str, **data: Any) -> dict[str, Any]:
    return {"type": f"block-dirty-bitmap-{what}", "data": data}


async def _add(qemu: Executes, node: str, name: str, device: str) -> None:
    arguments = {"node": node, "name": name, "granularity": _GRANULARITY}
    await qemu.execute("block-dirty-bitmap-add", arguments, device=device)


async def _remove(qemu: Executes, node: str, name: str, device: str) -> None:
    arguments = {"node": node, "name": name}
    await qemu.execute("block-dirty-bitmap-remove", arguments, device=device)


def _records(inserted: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Ours, of those that QEMU has of a disk."""
    with understood(_QUERY):
        found: list[Mapping[str, Any]] = inserted.get("dirty-bitmaps", [])
        return [
            one
            for one in found
            if (name := str(one.get("name", ""))) == _NEW or name.startswith(PREFIX)
        ]
