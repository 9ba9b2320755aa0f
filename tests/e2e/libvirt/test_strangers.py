"""A stranger with a key for the agent, and the libvirtd of its host: what XML of his gains."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from lab.hosts import Lab
from lab.libvirtd import LOCAL, Libvirtd
from tests.e2e.libvirt.world import QEMU
from tests.e2e.test_attacks import domain, hello, opening, speak

PLANTED = "/etc/cron.d/planted"
EVIL = "/root/evil"
RAN = "/root/ran"
_SENT = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 9  # as Entourage's source has it


def built(what: dict[str, Any], devices: str, emulator: str = QEMU) -> tuple[str, Any]:
    """What a source says for its domain to be built, with such XML."""
    xml = f"""<domain type="qemu" xmlns:q="http://libvirt.org/schemas/domain/qemu/1.0">
    <name>{what["name"]}</name><uuid>{what["uuid"]}</uuid><memory unit="MiB">64</memory>
    <os><type arch="x86_64" machine="q35">hvm</type></os>
    <devices><emulator>{emulator}</emulator>{devices}</devices>
    <q:commandline>{COMMAND if not devices and emulator == QEMU else ""}</q:commandline>
    </domain>"""
    if devices or emulator != QEMU:
        xml = xml.replace("<q:commandline></q:commandline>", "")
    return "build", {"xml": xml, "flags": _SENT, "parameters": {"destination_xml": xml}}


COMMAND = f'<q:arg value="-debugcon"/><q:arg value="file:{PLANTED}"/>'


@pytest.mark.parametrize(
    ("devices", "emulator", "says"),
    [
        (f'<serial type="file"><source path="{PLANTED}"/></serial>', QEMU, PLANTED),
        (
            '<disk type="file"><source file="/etc/shadow"/><target dev="vdz"/></disk>',
            QEMU,
            "agent.image-directories",
        ),
        ("", EVIL, EVIL),
        ("", QEMU, "libvirt:commandline"),
    ],
)
def test_xml_names_nothing_of_the_host(
    libvirt_lab: Lab, devices: str, emulator: str, says: str
) -> None:
    a, b = libvirt_lab["a"], libvirt_lab["b"]
    b.write_files({EVIL: f"#!/bin/sh\ntouch {RAN}\n"})
    b.path(EVIL).chmod(0o755)
    try:
        what = domain(uuid=str(uuid.uuid4()))
        facts = {"emulator": QEMU, "arch": "x86_64", "virt": "qemu"}
        said = speak(
            a, b, hello(LOCAL),
            ("test", {"domain": what, "facts": facts}),
            opening(what),
            built(what, devices, emulator),
        )  # fmt: skip
        assert "reply" in said[0], said
        assert ["reply" in one for one in said[1:]] == [True, True, False], said
        assert says in said[-1]["error"], said
        for path in (PLANTED, RAN):
            assert not b.path(path).exists()
        assert Libvirtd(b).domains() == {}
    finally:
        b.path(EVIL).unlink()


def test_a_domain_of_libvirts_is_known_to_the_others(libvirt_lab: Lab) -> None:
    """Else it could be moved in once more, as a machine of Entourage's own."""
    a, b = libvirt_lab["a"], libvirt_lab["b"]
    number = str(uuid.uuid4())
    xml = f"""<domain type="qemu"><name>victim</name><uuid>{number}</uuid>
    <memory unit="MiB">64</memory><os><type arch="x86_64" machine="q35">hvm</type></os>
    </domain>"""
    b.write_files({"/root/victim.xml": xml})
    b.run(["virsh", "define", "/root/victim.xml"])
    try:
        for what in (domain(uuid=number.upper()), domain(name="victim")):
            said = speak(a, b, hello(), opening(what))
            assert "a domain victim here already, of qemu:///system" in said[-1]["error"], said
    finally:
        b.run(["virsh", "undefine", "victim"])
        b.path("/root/victim.xml").unlink()
