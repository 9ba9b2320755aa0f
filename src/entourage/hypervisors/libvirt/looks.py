"""What is looked at in a libvirt domain that runs here, before it moves."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from entourage.hosts.threads import in_thread
from entourage.hypervisors.libvirt.attending import without_object
from entourage.hypervisors.libvirt.bootfiles import about
from entourage.hypervisors.libvirt.connection import RefusedError, ask, phases
from entourage.hypervisors.libvirt.constants import XML_INACTIVE, XML_MIGRATABLE, Flag
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.errors import device_of, plain
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.survey import Survey
from entourage.steps import Refusal

_VERSION = re.compile("[0-9]{1,12}")


async def facts(handle: Handle) -> Mapping[str, str]:
    """Versions, what the machine is made of, the CPU, the XML, digests of the boot files."""
    raw = handle.connection.raw
    text = without_object(await ask(handle.raw.XMLDesc, XML_MIGRATABLE))
    xml = parse(text)
    kind, cpu = xml.find("os/type"), xml.find("cpu")
    found = {
        "libvirt": str(await ask(raw.getLibVersion)),
        "qemu": str(await ask(raw.getVersion)),
        "emulator": xml.findtext("devices/emulator", ""),
        "arch": kind.get("arch", "") if kind is not None else "",
        "virt": xml.get("type", ""),
        "cpu": _text(cpu),
        "xml": text,
        "networks": json.dumps([net.network for net in handle.domain.net if net.network]),
    }
    if not handle.transient:
        found["definition"] = await ask(handle.raw.XMLDesc, XML_INACTIVE | XML_MIGRATABLE)
    return found | await about(handle.domain)


def version_in(said: str) -> int:
    """A version as libvirt has it (9000000), from what the other host says; 0 where it is none."""
    return int(said) if _VERSION.fullmatch(said) else 0


async def blockers(handle: Handle, found: Survey) -> Sequence[Refusal]:
    """What speaks against moving it, or waits for its next start; and what libvirt itself says.

    That is not asked where it would only wait for a job's end.
    """
    if found.begun:
        return [*found.begun, *found.pending]
    return [*await asked(handle, "move"), *found.pending]


async def asked(handle: Handle, doing: str) -> Sequence[Refusal]:
    """What libvirt itself has against moving it: it is asked by a Begin that begins nothing.

    Args:
        handle: The domain, as libvirtd has it.
        doing: What is to be done with it, in a word.
    """
    try:
        library = await in_thread(phases)
        await ask(library.begin, handle.raw, {}, Flag.LIVE | Flag.UNSAFE)
    except RefusedError as error:
        reason = plain(error.message)
        return [
            Refusal(
                device_of(handle.domain, reason) or "domain",
                socket.gethostname(),
                f"libvirt cannot {doing} it: {reason}",
                "take out of the domain what it names, and try again",
            )
        ]
    return ()


def _text(cpu: ET.Element | None) -> str:
    return "" if cpu is None else ET.tostring(cpu, encoding="unicode")
