"""A lab guest as a libvirt domain."""

from __future__ import annotations

import uuid as uuids
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from lab import network
from lab.guest import Disk, cmdline
from lab.guest_image import guest_image

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMESPACE = "urn:entourage:domain"
ET.register_namespace("entourage", _NAMESPACE)


def domain_xml(
    name: str,
    *,
    disks: Sequence[Disk] = (),
    tpm: bool = True,
    tpm_secret: str = "",
    net: bool = True,
    memory: int = 192,
    vcpus: int = 1,
    uuid: str = "",
    address: str = network.guest_address(),
    bridge: str = network.HOST_BRIDGE,
    dirty: int = 0,
    devices: str = "",
    metadata: str = "",
    agent: bool = False,
) -> str:
    """Write the XML of a lab guest.

    Args:
        name: Of the domain.
        disks: Their images lie on the host already.
        tpm: Whether it has an emulated TPM.
        tpm_secret: The UUID of libvirt's secret that the TPM's state is encrypted with.
        net: Whether it has a NIC on `bridge`, without which nobody hears of it.
        memory: In MiB.
        vcpus: How many processors.
        uuid: A new one if not given.
        address: The guest's, from which its MAC follows.
        bridge: On the host.
        dirty: MiB of memory that it dirties in a second.
        devices: More XML for its <devices>.
        metadata: What its user says to Entourage about it, in TOML.
        agent: Whether QEMU's guest agent runs in it, which can be asked to run `/bin/notice`.
    """
    image = guest_image(agent=agent)
    domain = ET.Element("domain", type="qemu")  # TCG, on every machine
    for tag, text in (
        ("name", name),
        ("uuid", uuid or str(uuids.uuid4())),
        ("vcpu", str(vcpus)),
        ("on_poweroff", "destroy"),
        ("on_reboot", "restart"),
        ("on_crash", "destroy"),
    ):
        ET.SubElement(domain, tag).text = text
    if metadata:
        part = ET.SubElement(domain, "metadata")
        ET.SubElement(part, f"{{{_NAMESPACE}}}devices").text = metadata
    ET.SubElement(domain, "memory", unit="MiB").text = str(memory)
    os = ET.SubElement(domain, "os")
    ET.SubElement(os, "type", arch="x86_64", machine="q35").text = "hvm"
    ET.SubElement(os, "kernel").text = str(image.kernel)
    ET.SubElement(os, "initrd").text = str(image.initrd)
    ET.SubElement(os, "cmdline").text = cmdline(address, dirty)
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    parts = ET.fromstring(f"<devices>{devices}</devices>")  # noqa: S314  # written by a test
    domain.append(parts)
    ET.SubElement(parts, "emulator").text = "/usr/bin/qemu-system-x86_64"
    for index, disk in enumerate(disks):
        part = ET.SubElement(parts, "disk", type="file", device="disk")
        ET.SubElement(part, "driver", name="qemu", type=disk.format, cache="none")
        ET.SubElement(part, "source", file=disk.path)
        ET.SubElement(part, "target", dev=f"vd{chr(ord('a') + index)}", bus="virtio")
    if net:
        part = ET.SubElement(parts, "interface", type="bridge")
        ET.SubElement(part, "source", bridge=bridge)
        ET.SubElement(part, "mac", address=network.mac_of(address))
        ET.SubElement(part, "model", type="virtio")
        ET.SubElement(part, "driver", name="qemu")  # a lab host may be without vhost-net
        ET.SubElement(part, "rom", enabled="no")
    if tpm:
        part = ET.SubElement(parts, "tpm", model="tpm-crb")
        backend = ET.SubElement(part, "backend", type="emulator", version="2.0")
        if tpm_secret:
            ET.SubElement(backend, "encryption", secret=tpm_secret)
    if agent:
        part = ET.SubElement(parts, "channel", type="unix")
        ET.SubElement(part, "target", type="virtio", name="org.qemu.guest_agent.0")
    part = ET.SubElement(parts, "serial", type="file")
    ET.SubElement(part, "source", path=f"/var/log/libvirt/{name}.serial")
    ET.SubElement(parts, "memballoon", model="none")
    if parts.find("controller[@type='usb']") is None:
        ET.SubElement(parts, "controller", type="usb", model="none")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode")
