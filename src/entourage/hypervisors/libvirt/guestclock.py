"""The clock of a guest that is restored, moved on by its guest agent where there is one.

It stood still while the guest was saved. libvirt does not know of that: ``virsh restore`` leaves
the clock as it was.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt.connection import RefusedError, ask, call
from entourage.hypervisors.libvirt.domainxml import parse

_AGENT = "org.qemu.guest_agent.0"
_LISTENS_WITHIN = 2.0  # seconds; a channel may be there and no agent in the guest
_LOOK_EVERY = 0.05  # seconds, outside the blackout
_ANSWERS_WITHIN = 10.0  # seconds; libvirt gives its own questions to an agent five


async def listens(raw: Any, within: float = 0.0) -> bool:
    """Whether the guest's agent does, as libvirt has heard of it.

    Of a guest that has just begun to run here QEMU tells a moment later that its port is open.

    Args:
        raw: ``virDomain``, which runs.
        within: Seconds to wait for that, where the domain has a channel for an agent.
    """
    deadline = time.monotonic() + within
    while True:
        targets = parse(await ask(raw.XMLDesc, 0)).iterfind("devices/channel/target")
        states = [one.get("state") for one in targets if one.get("name") == _AGENT]
        if "connected" in states:
            return True
        if not states or time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_LOOK_EVERY)


async def move_on(raw: Any, name: str) -> None:
    """Have the guest's agent set its clock by this host's; without an agent nothing is done.

    Args:
        raw: ``virDomain``, which runs.
        name: Its name.

    Raises:
        HypervisorError: The agent does not do so, or does not answer.
    """
    if not await listens(raw, _LISTENS_WITHIN):
        return
    now = time.time_ns()
    moment = {"seconds": now // 10**9, "nseconds": now % 10**9}
    remedy = f"virsh domtime {name} --now"
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN):
            await asyncio.shield(call(raw.setTime, moment, 0))
    except RefusedError as error:
        raise HypervisorError(
            f"the guest's clock is behind, and was not moved on: {error.message}", remedy=remedy
        ) from error
    except TimeoutError as error:
        raise HypervisorError(
            "the guest's clock is behind, and was not moved on: its agent has not answered within"
            f" {_ANSWERS_WITHIN:g} s",
            remedy=remedy,
        ) from error
