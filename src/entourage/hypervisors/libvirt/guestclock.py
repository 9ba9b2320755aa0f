"""The clock of a guest that is restored, moved on by its guest agent where there is one.

It stood still while the guest was saved. libvirt does not know of that: ``virsh restore`` leaves
the clock as it was.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any
from xml.etree import ElementTree as ET

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt.connection import RefusedError, ask, call
from entourage.hypervisors.libvirt.domainxml import parse

_AGENT = "org.qemu.guest_agent.0"
_ANSWERS_WITHIN = 10.0  # seconds; libvirt gives its own questions to an agent five


def has_agent(live: ET.Element) -> bool:
    """Whether the guest has a guest agent that listens, by the running domain's XML."""
    targets = live.iterfind("devices/channel/target")
    return any(one.get("name") == _AGENT and one.get("state") == "connected" for one in targets)


async def move_on(raw: Any, name: str) -> None:
    """Have the guest's agent set its clock by this host's; without an agent nothing is done.

    Args:
        raw: ``virDomain``, which runs.
        name: Its name.

    Raises:
        HypervisorError: The agent does not do so, or does not answer.
    """
    if not has_agent(parse(await ask(raw.XMLDesc, 0))):
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
