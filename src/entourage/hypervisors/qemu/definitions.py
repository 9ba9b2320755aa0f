"""Own machines that are off: as another host can have them, taken there, forgotten here."""

from __future__ import annotations

import msgspec

from entourage.errors import DomainBusy, HypervisorError, UsageError, plain_words
from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import digest
from entourage.hypervisors.leaving import images, objections
from entourage.hypervisors.qemu.access import take_back
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.record import (
    Entry,
    disown,
    entry_of,
    forget_ended,
    write_owned,
)
from entourage.hypervisors.values import Definition
from entourage.settings.model import Settings


async def definition(entry: Entry) -> Definition:
    """A machine that is off.

    Raises:
        UsageError: It runs.
        HypervisorError: An image of it cannot be read.
    """
    if entry.alive:
        raise _runs(entry.domain.name)
    domain = msgspec.structs.replace(
        entry.domain, net=tuple(msgspec.structs.replace(one, tap=None) for one in entry.domain.net)
    )
    return Definition(
        domain=domain,
        images=tuple(await images(domain)),
        facts={f"sha256:{path}": await in_thread(digest, path) for path in domain.boot.files},
        objections=tuple(objections(domain, tpm_is_alone=True)),
    )


async def define(settings: Settings, definition: Definition) -> None:
    """Own a machine; on the disk when this returns."""
    domain = definition.domain
    where = places(settings, str(domain.uuid), domain.name)
    try:
        await in_thread(forget_ended, where)
        await in_thread(write_owned, where, domain)
    except OSError as error:
        raise HypervisorError(
            f"{domain.name} cannot be written down: {plain_words(error)}",
            remedy="check paths.state, and run as root",
        ) from error


async def undefine(settings: Settings, definition: Definition) -> None:
    """Own it no more; on the disk when this returns.

    Raises:
        DomainBusy: It runs.
        HypervisorError: Its files cannot be given back.
    """
    name = definition.domain.name
    entry = entry_of(settings, name)
    if entry is None or entry.domain.uuid != definition.domain.uuid:
        # Who has forgotten it may have been killed before that was on the disk.
        await in_thread(disown, places(settings, str(definition.domain.uuid), name))
        return
    if entry.alive:
        raise DomainBusy(f"{name} was started meanwhile", remedy="move it as it runs")
    try:
        await in_thread(take_back, entry.places, moved=True)
        await in_thread(forget_ended, entry.places)
        await in_thread(disown, entry.places)
    except OSError as error:
        raise HypervisorError(
            f"{name} is not forgotten here: {plain_words(error)}", remedy="mend that, and try again"
        ) from error


def _runs(name: str) -> UsageError:
    return UsageError(f"{name} is not off", remedy=f"`entourage migrate {name} HOST` moves it")
