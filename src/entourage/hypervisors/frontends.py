"""Which of QEMU's block devices is which of a domain's disks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def frontends(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What ``query-block`` says of each disk, by its id; QEMU may name a part of the device."""
    return {
        str(one.get("qdev", ""))
        .removeprefix("/machine/")
        .removeprefix("peripheral/")
        .split("/")[0]: one
        for one in blocks
    }
