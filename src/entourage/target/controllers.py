"""A controller for each device of a domain that is to arrive here."""

from __future__ import annotations

from entourage.devices.base import AnyController, Controller
from entourage.devices.registry import controller_class
from entourage.devices.remote import agentless_class
from entourage.domain import Domain
from entourage.hypervisors.base import Incoming


def target_controllers(domain: Domain, incoming: Incoming) -> list[AnyController]:
    """A controller for each device of a domain that is to arrive here; tools run on the source.

    Args:
        domain: As it is to be here.
        incoming: Its machine: where that is built elsewhere, or saved, other halves are needed.
    """
    controllers: list[AnyController] = []
    for device in domain.devices:
        found = controller_class(device, saved=incoming.is_save)
        kind: type[AnyController] = found or Controller
        if incoming.agentless is not None:
            kind = agentless_class(kind)
        controllers.append(kind(device))
    return controllers
