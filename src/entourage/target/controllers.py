"""A controller for each device of a domain that is to arrive here."""

from __future__ import annotations

from entourage.devices.base import Controller
from entourage.devices.registry import controller_class
from entourage.devices.remote import afar_class
from entourage.domain import Domain
from entourage.hypervisors.afar import Afar
from entourage.hypervisors.base import Incoming


def target_controllers(domain: Domain, incoming: Incoming) -> list[Controller]:
    """A controller for each device of a domain that is to arrive here; tools run on the source.

    Args:
        domain: As it is to be here.
        incoming: Its machine: where that is built elsewhere, other halves are needed.
    """
    afar = isinstance(incoming, Afar)
    controllers: list[Controller] = []
    for device in domain.devices:
        kind = controller_class(device) or Controller
        controllers.append((afar_class(kind) if afar else kind)(device))
    return controllers
