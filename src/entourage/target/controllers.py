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
        incoming: Its machine: where that is built elsewhere, other halves are needed.
    """
    agentless = incoming.agentless is not None
    controllers: list[AnyController] = []
    for device in domain.devices:
        kind: type[AnyController] = controller_class(device) or Controller
        controllers.append((agentless_class(kind) if agentless else kind)(device))
    return controllers
