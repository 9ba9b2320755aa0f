"""What was kept of a libvirt domain that is restored, with the places in it that it has here."""

from __future__ import annotations

import os

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.base import Plan
from entourage.hypervisors.libvirt import handed
from entourage.hypervisors.libvirt.another import made_for, renamed
from entourage.hypervisors.libvirt.connection import Connection, ask
from entourage.hypervisors.libvirt.constants import Parameter
from entourage.hypervisors.libvirt.domainxml import read_domain
from entourage.hypervisors.libvirt.lookups import lookups_of
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.retarget import flat, retarget
from entourage.hypervisors.values import RestorePlan


def read_plan(plan: Plan) -> RestorePlan:
    """What the save has said; raises HypervisorError where that is none."""
    try:
        return msgspec.msgpack.decode(plan, type=RestorePlan)
    except (msgspec.DecodeError, RecursionError) as error:
        raise HypervisorError(f"the save's plan cannot be read: {error}") from error


async def adapted(plan: Plan, domain: Domain, connection: Connection) -> LibvirtPlan:
    """What libvirt is to restore.

    Args:
        plan: What the save has said.
        domain: The domain as it is to be here; another one than was saved, where the plan says so.
        connection: To this host's libvirtd.

    Raises:
        HypervisorError: It cannot be read, or is not that domain's.
    """
    said = read_plan(plan)
    try:
        kept = msgspec.msgpack.decode(said.kept, type=LibvirtPlan)
    except (msgspec.DecodeError, RecursionError) as error:
        raise HypervisorError(f"what is kept in the save cannot be read: {error}") from error
    handed.check_plan(kept, said.first or domain)

    def adapt() -> dict[str, str | int | list[str]]:
        lookups = lookups_of(connection)
        was = read_domain(str(kept.parameters[Parameter.DEST_XML]), lookups)
        found: dict[str, str | int | list[str]] = {
            name: flat(retarget(str(text), was, domain, lookups), said.copied)
            for name, text in kept.parameters.items()
            if name in {Parameter.DEST_XML, Parameter.PERSIST_XML}
        }
        if said.first is None:
            return found
        # Its definition is what runs: that of the first one may name more that is that one's.
        return dict.fromkeys(found, renamed(str(found[Parameter.DEST_XML]), domain))

    autostart = kept.autostart and said.first is None
    return msgspec.structs.replace(
        kept, xml="", flags=0, autostart=autostart, parameters=await ask(adapt)
    )


def missing(plan: LibvirtPlan) -> tuple[str, ...]:
    """Which of the files that are made for another machine are not there. Blocks."""
    made = made_for(str(plan.parameters[Parameter.DEST_XML]))
    return tuple(path for path in made if path and not os.path.lexists(path))
