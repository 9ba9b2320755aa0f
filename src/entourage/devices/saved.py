"""The target's halves of devices where the target is a save: nothing of the host is used by it."""

from __future__ import annotations

from typing import Any

import msgspec

from entourage.devices.base import AnyController, There
from entourage.devices.net import Bridge, NetController
from entourage.domain import Net

_ANY_MTU = 65535


def saved_class(kind: type[AnyController]) -> type[AnyController]:
    """The class whose target half does what a save needs of it."""
    return SavedNet if kind is NetController else kind


class SavedNet(NetController):
    """A NIC that goes nowhere: its bridge is looked for when it is restored."""

    async def test_there(self, there: There, request: Any) -> Any:  # noqa: ARG002 - see base
        """Everything will do."""
        return Bridge(mtu=_ANY_MTU, bridges=[], port="", tap_taken=False, announces=True)

    async def prepare_there(self, there: There, request: Any) -> Any:
        """Keep it as it is."""
        nic = msgspec.convert(request, Net)
        there.domain = there.domain.with_device(nic)
        return nic
