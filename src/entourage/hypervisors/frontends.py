"""Which of QEMU's block devices is which of a domain's disks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entourage.hypervisors.understood import understood


def wants_room(blocks: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether QEMU has stopped the guest as a disk's storage was full; not for any other error.

    Args:
        blocks: What it has answered to ``query-block``; None where it has refused.

    Raises:
        HypervisorError: It is not understood.
    """
    with understood("QEMU's answer to query-block"):
        return any(one.get("io-status") == "nospace" for one in blocks or ())


def frontends(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What ``query-block`` says of each disk, by its id; QEMU may name a part of the device."""
    return {
        str(one.get("qdev", ""))
        .removeprefix("/machine/")
        .removeprefix("peripheral/")
        .split("/")[0]: one
        for one in blocks
    }
