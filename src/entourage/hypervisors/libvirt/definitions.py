"""libvirt's domains that are off: as another host can have them, defined there, forgotten here."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from entourage.domain import Domain
from entourage.errors import DomainBusy, HypervisorError, UsageError
from entourage.hosts.threads import in_thread
from entourage.hypervisors.files import is_on_local_storage
from entourage.hypervisors.leaving import images, objections
from entourage.hypervisors.libvirt.arrival import sync_definitions
from entourage.hypervisors.libvirt.bootfiles import about
from entourage.hypervisors.libvirt.connection import Connection, RefusedError, ask
from entourage.hypervisors.libvirt.constants import OFF, XML_INACTIVE, XML_SECURE
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.handed import check_identity, read
from entourage.hypervisors.libvirt.tpm import STATES
from entourage.hypervisors.libvirt.undefine import KNOWS_TPM, set_aside
from entourage.hypervisors.values import Definition


async def definition(connection: Connection, raw: Any, domain: Domain) -> Definition:
    """A domain that is off.

    Args:
        connection: To its libvirtd.
        raw: ``libvirt.virDomain``.
        domain: The same as Entourage has it.

    Raises:
        UsageError: It runs.
        HypervisorError: An image of it cannot be read.
    """

    def look() -> tuple[int, str, bool, list[str]]:
        kept = {
            "a saved state (virsh managedsave)": raw.hasManagedSaveImage(0),
            "snapshots": raw.snapshotNum(0),
            "checkpoints": raw.listAllCheckpoints(0),
        }
        text: str = raw.XMLDesc(XML_INACTIVE | XML_SECURE)
        names = [name for name, there in kept.items() if there]
        return raw.state(0)[0], text, bool(raw.autostart()), names

    state, text, autostart, kept = await ask(look)
    if state not in OFF:
        raise _runs(domain.name)
    xml = parse(text)
    kind = xml.find("os/type")
    nvram = xml.find("os/nvram")
    files = await images(domain)
    path = (nvram.text or "").strip() if nvram is not None else ""
    if path and await in_thread(Path(path).exists):
        files.append(path)
    version = int(await ask(connection.raw.getLibVersion))
    states = await in_thread(tpm_states, domain, text, version)
    files += states or []
    stays = list(objections(domain, tpm_is_alone=states is None))
    if kept:
        reason = f"libvirt keeps {', '.join(kept)} of it on this host, which would be lost"
        stays.append(("domain", reason, "start it, and move it then; or delete what is kept"))
    facts = {
        "libvirt": str(version),
        "emulator": xml.findtext("devices/emulator", ""),
        "arch": kind.get("arch", "") if kind is not None else "",
        "virt": xml.get("type", ""),
        "xml": text,
    }
    return Definition(
        domain=domain,
        autostart=autostart,
        images=tuple(dict.fromkeys(files)),
        facts=facts | await about(domain),
        objections=tuple(stays),
    )


def tpm_states(domain: Domain, text: str, version: int) -> list[str] | None:
    """The files of its emulated TPMs' states, which both hosts must see; None: they cannot leave.

    Args:
        domain: The domain.
        text: Its XML.
        version: The daemon's: libvirt before 8.9 deletes the state with the definition.
    """
    if not any(tpm.type == "emulator" for tpm in domain.tpm):
        return []
    placed = parse(text).find("devices/tpm/backend/source") is not None  # not in STATES
    if version < KNOWS_TPM or placed or is_on_local_storage(STATES):
        return None
    return sorted(map(str, (STATES / str(domain.uuid)).rglob("*.permall")))


async def define(connection: Connection, definition: Definition) -> None:
    """Define a domain by the XML that was judged; on the disk when this returns.

    Raises:
        HypervisorError: It is another domain's, or libvirt does not take it.
    """
    text = definition.facts.get("xml", "")
    check_identity(read(text), definition.domain)

    def make() -> None:
        defined = connection.raw.defineXML(text)
        defined.setAutostart(int(definition.autostart))

    name = definition.domain.name
    try:
        await ask(make)
    except RefusedError as error:
        raise HypervisorError(
            f"libvirt does not define {name}: {error.message}", remedy="mend that, and try again"
        ) from error
    await in_thread(sync_definitions)


async def undefine(connection: Connection, definition: Definition) -> None:
    """Forget a domain; on the disk when this returns. Nothing of what belongs to it is deleted.

    Raises:
        DomainBusy: It was started meanwhile; its definition is kept.
        HypervisorError: libvirt does not forget it.
    """
    name, uuid = definition.domain.name, str(definition.domain.uuid)
    raw = await connection.domain(uuid)
    if raw is None:  # who has forgotten it may have been killed before that was on the disk
        await in_thread(sync_definitions)
        return
    if (await ask(raw.state, 0))[0] not in OFF:
        raise _started(name)
    try:
        await set_aside(raw)
    except RefusedError as error:
        raise HypervisorError(
            f"libvirt does not forget {name}: {error.message}",
            remedy=f"virsh undefine --keep-nvram {name}",
        ) from error
    # Started between the two, it runs on, with no definition: it gets that back.
    with contextlib.suppress(RefusedError):
        if (await ask(raw.state, 0))[0] not in OFF:
            await define(connection, definition)
            raise _started(name)
    await in_thread(sync_definitions)


def _runs(name: str) -> UsageError:
    return UsageError(f"{name} is not off", remedy=f"`entourage migrate {name} HOST` moves it")


def _started(name: str) -> DomainBusy:
    return DomainBusy(f"{name} was started meanwhile", remedy="move it as it runs")
