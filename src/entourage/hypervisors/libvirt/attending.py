"""What ``entourage attend`` has put into a libvirt domain: a note, and QEMU's object.

The note is an element of the running domain's ``<metadata>``. The object stands in
``<qemu:commandline>`` of a domain that has arrived here attended; where it was added to a running
one, it stands nowhere. ``entourage migrate`` takes both out before it moves the domain by itself.
"""

from __future__ import annotations

import re
from typing import Any, Final
from xml.sax.saxutils import quoteattr

from entourage.errors import HypervisorError
from entourage.hypervisors.attended import hook
from entourage.hypervisors.attended.switchover import ID
from entourage.hypervisors.attended.toolstack import OBJECT, Arriving, Note
from entourage.hypervisors.libvirt.connection import RefusedError, ask, tell_qemu
from entourage.hypervisors.libvirt.constants import NO_DOMAIN
from entourage.hypervisors.libvirt.domainxml import parse

NAMESPACE: Final = "urn:entourage:attend"
_KEY, _ELEMENT, _LIVE = "entourage-attend", 2, 1  # VIR_DOMAIN_METADATA_ELEMENT, …_AFFECT_LIVE
_NO_METADATA = 80  # VIR_ERR_NO_DOMAIN_METADATA
_NAMESPACE_OF_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_EMPTY = re.compile(r"<qemu:commandline[^>]*>\s*</qemu:commandline>\s*")


def arriving(xml: str) -> Arriving:
    """A domain that is about to come, of its XML; raises HypervisorError where it is none."""
    root = parse(xml)
    found = root.find(f"metadata/{{{NAMESPACE}}}migration")
    note = None
    if found is not None:
        note = Note(host=found.get("host", ""), nonce=found.get("nonce", ""))
    return Arriving(name=root.findtext("name", ""), uuid=root.findtext("uuid", ""), note=note)


def with_object(xml: str, socket: str) -> str:
    """The same XML with QEMU's object in it; raises HypervisorError where it is no domain's."""
    head, end, tail = xml.rpartition("</domain>")
    if not end:
        raise HypervisorError("what the hook was given is no domain's XML")
    value = f"dbus-vmstate,id={OBJECT},addr=unix:path={socket},id-list={ID}"
    ours = (
        f"<qemu:commandline xmlns:qemu='{_NAMESPACE_OF_QEMU}'>"
        f"<qemu:arg value='-object'/><qemu:arg value={quoteattr(value)}/>"
        "</qemu:commandline>\n"
    )
    return f"{head}{ours}{end}{tail}"


def without_object(xml: str) -> str:
    """The same XML without QEMU's object of an earlier arrival."""
    without = hook.without_object(xml.encode()).decode()
    return xml if without == xml else _EMPTY.sub("", without)


async def write_note(raw: Any, note: Note | None) -> None:
    """Write a note into a running domain; None removes it. One that is gone has none."""
    text = None
    if note is not None:
        text = f"<migration host={quoteattr(note.host)} nonce={quoteattr(note.nonce)}/>"
    try:
        await ask(raw.setMetadata, _ELEMENT, text, _KEY if text else None, NAMESPACE, _LIVE)
    except RefusedError as error:
        if note is not None or error.code not in {_NO_METADATA, NO_DOMAIN}:
            raise


async def has_note(raw: Any) -> bool:
    """Whether a running domain has a note."""
    try:
        await ask(raw.metadata, _ELEMENT, NAMESPACE, _LIVE)
    except RefusedError:
        return False
    return True


async def remove_object(raw: Any) -> None:
    """Take QEMU's object away from a domain; none is no error, nor is one that does not run."""
    try:
        await tell_qemu(raw, "object-del", id=OBJECT)
    except RefusedError:
        return


async def withdraw(raw: Any) -> None:
    """Before a migration of our own: nobody is to attend it."""
    if await has_note(raw):
        await write_note(raw, None)
        await remove_object(raw)
