"""What Xen's half on the target must know of the source's: on the link, in MessagePack."""

from __future__ import annotations

import msgspec


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """See ``XenPlan``.

    Attributes:
        disks: The ids of those that are copied.
    """

    disks: list[str] = []


class XenPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Which disks will come; what else is otherwise there is changed in xl's stream."""

    parameters: Parameters = Parameters()
