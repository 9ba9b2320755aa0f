"""The ground is true: two libvirtd of two hosts, and plain virsh moves the lab's guest."""

from __future__ import annotations

import uuid
from xml.etree import ElementTree as ET

import pytest

from lab.hosts import Lab
from lab.libvirtd import LOCAL, Libvirtd, ssh_uri
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE


def test_two_daemons_of_two_hosts(libvirt_lab: Lab) -> None:
    """Each is itself, reached from its own host and from the other by ssh."""
    a, b = libvirt_lab["a"], libvirt_lab["b"]
    for here, there in ((a, b), (b, a)):
        for host, uri in ((here, LOCAL), (there, ssh_uri(there))):
            said = here.run(["virsh", "--quiet", "--connect", uri, "hostname"]).stdout.strip()
            assert said == host.name
    for host in (a, b):
        capabilities = Libvirtd(host).virsh("capabilities").stdout
        own = uuid.UUID(host.path("/etc/machine-id").read_text().strip())
        assert ET.fromstring(capabilities).findtext("host/uuid") == str(own)  # noqa: S314


@pytest.mark.matrix
def test_virsh_moves_it_with_disk_and_tpm(world: LibvirtWorld) -> None:
    """There and back. Of libvirt's own move the image stays behind, and nothing else."""
    for _ in range(2):
        world.registers = world.guest.nv_increment()
        world.virsh_migrate()
        world.delete_volume(world.here)
        world.arrived()


@pytest.mark.matrix
def test_a_move_of_virsh_that_fails_is_taken_back_by_libvirt(world: LibvirtWorld) -> None:
    """The target's QEMU is killed: all is as before, but for the image that was made there."""
    with world.virsh_migrating("--bandwidth", "1") as migrating:
        world.kill(world.there, "qemu-system-x86_64")
        _, said = migrating.communicate(timeout=PATIENCE)
    assert migrating.returncode == 1, said
    world.delete_volume(world.there)
    world.is_as_before()


def test_a_domain_outlives_its_daemon(world: LibvirtWorld) -> None:
    world.kill_daemon(world.here)
    world.seen.wait_progress()
    world.disks_are_whole()
    world.start_daemon(world.here)
    assert world.domains(world.here) == {world.name: "running"}
    world.is_as_before()


@pytest.mark.matrix
def test_a_power_cut_takes_daemon_and_domains(world: LibvirtWorld) -> None:
    """And after it they start again; a persistent domain is off then."""
    host = world.here
    host.power_cut()
    assert not world.answers()
    host.power_on()
    assert not Libvirtd(host).runs
    world.booted(host)
    assert world.domains(host) == {world.name: "shut off"}
    world.start_again()
    world.lives()
