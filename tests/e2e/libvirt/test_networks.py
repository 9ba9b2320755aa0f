"""A NIC on a network of libvirt's: the target's network of that name says what it is there."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.libvirt.world import LibvirtWorld

pytestmark = pytest.mark.matrix
MAC = "52:54:00:0b:0b:0b"
NETWORK = """
<network>
  <name>{name}</name><forward mode="bridge"/><bridge name="{bridge}"/>
  <portgroup name="web"/>
</network>
"""
ON_LAN = f"""
<interface type="network">
  <mac address="{MAC}"/><source network="lan" portgroup="web"/>
  <model type="virtio"/><driver name="qemu"/><rom enabled="no"/>
</interface>
"""


@dataclass
class NetworkWorld(LibvirtWorld):
    """The domain has a NIC more, on a network that each host has on another bridge."""

    nics = 2
    # libvirt keeps a directory for the ports of a network that has once had one.
    kept = (*LibvirtWorld.kept, "/run/libvirt/network/*", "/run/libvirt/network/*/ports")

    def _write(self, extra: str) -> str:
        """After the other one, by which the guest is heard."""
        file = super()._write(extra)
        there = self.here.path(file)
        text = there.read_text().replace("</devices>", f"{ON_LAN}</devices>")
        there.write_text(text)
        return file


def define(host: Host, name: str, bridge: str) -> None:
    if not host.path(f"/sys/class/net/{bridge}").exists():
        host.run(["ip", "link", "add", bridge, "type", "bridge"])
        host.run(["ip", "link", "set", bridge, "up"])
    host.path("/root/network.xml").write_text(NETWORK.format(name=name, bridge=bridge))
    Libvirtd(host).virsh("net-define", "/root/network.xml")
    Libvirtd(host).virsh("net-start", name)
    host.path("/root/network.xml").unlink()


def forget(host: Host, name: str) -> None:
    Libvirtd(host).virsh("net-destroy", name)
    Libvirtd(host).virsh("net-undefine", name)


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    a, b = libvirt_lab["a"], libvirt_lab["b"]
    define(a, "lan", "bra")
    define(b, "lan", "brb")
    define(b, "wan", "brw")
    with Observer.start(libvirt_lab) as seen:
        world = NetworkWorld.begin(libvirt_lab, seen)
        yield world
        world.end()
    for host, name in ((a, "lan"), (b, "lan"), (b, "wan")):
        forget(host, name)
    for host, bridge in ((a, "bra"), (b, "brb"), (b, "brw")):
        host.run(["ip", "link", "delete", bridge])


def nic(world: LibvirtWorld, *options: str) -> ET.Element:
    text = Libvirtd(world.here).virsh("dumpxml", world.name, *options).stdout
    found = [
        each
        for each in ET.fromstring(text).iterfind("devices/interface")  # noqa: S314 - libvirt's
        if each.find(f"mac[@address='{MAC}']") is not None
    ]
    assert len(found) == 1, text
    return found[0]


def source(world: LibvirtWorld, *options: str) -> dict[str, str]:
    found = nic(world, *options).find("source")
    assert found is not None
    return dict(found.attrib)


def test_a_network_that_is_not_there_is_told_at_test(world: LibvirtWorld) -> None:
    daemon = Libvirtd(world.there)
    daemon.virsh("net-destroy", "lan")
    try:
        run = world.migrate("--dry-run")
    finally:
        daemon.virsh("net-start", "lan")
    assert "there is no network lan" in str(run.refusals), str(run)
    world.stayed(run, status=3)


def test_it_is_on_the_bridge_of_that_network_there(world: LibvirtWorld) -> None:
    assert source(world)["bridge"] == "bra"
    world.moved(world.migrate())
    there = source(world)
    assert (there["network"], there["bridge"]) == ("lan", "brb")
    assert source(world, "--inactive") == {"network": "lan", "portgroup": "web"}
    ports = Libvirtd(world.here).virsh("net-port-list", "lan").stdout.split()
    assert len(ports) == 1  # that network knows of it
    world.moved(world.migrate())
    assert source(world)["bridge"] == "bra"


def test_another_network_keeps_its_portgroup(world: LibvirtWorld) -> None:
    world.moved(world.migrate("--net", "lan=wan"))
    there = source(world)
    assert (there["network"], there["portgroup"], there["bridge"]) == ("wan", "web", "brw")
    assert source(world, "--inactive") == {"network": "wan", "portgroup": "web"}
    world.moved(world.migrate("--net", "wan=lan"))
    assert source(world, "--inactive") == {"network": "lan", "portgroup": "web"}
