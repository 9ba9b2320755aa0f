"""What avocado's tp-libvirt asserts of libvirt's own migration, asserted of ours.

``migration_with_vtpm``, and ``destructive_operations_around_live_migration``: the domain is not on
the target, runs on the source, and a second try works. Without a ``recover`` in between.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from typing import ClassVar

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.dying import PRE_COPY, STOPPED
from tests.e2e.libvirt.world import LibvirtWorld

SECRET = str(uuid.uuid4())
SECRET_XML = f"""
<secret ephemeral="no" private="yes">
  <uuid>{SECRET}</uuid>
  <usage type="vtpm"><name>of web1</name></usage>
</secret>
"""
SLOWLY = ("--bandwidth", "20MiB/s")  # disks come first, at the same pace


class EncryptedWorld(LibvirtWorld):
    """The TPM's state is encrypted."""

    tpm_secret: ClassVar = SECRET


def set_secret(host: Host, value: str) -> None:
    files = {"/root/secret.xml": SECRET_XML, "/root/secret": value}
    host.write_files(files)
    daemon = Libvirtd(host)
    daemon.virsh("secret-define", "/root/secret.xml")
    daemon.virsh("secret-set-value", SECRET, "--file", "/root/secret", "--plain")


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    for host in (libvirt_lab["a"], libvirt_lab["b"]):
        set_secret(host, "one for both")
    with Observer.start(libvirt_lab) as seen:
        world = EncryptedWorld.begin(libvirt_lab, seen)
        yield world
        world.end()


def test_an_encrypted_tpm(world: LibvirtWorld) -> None:
    """Where the target has another secret QEMU cannot take the state; with the same it moves."""
    set_secret(world.there, "another")
    run = world.migrate()
    set_secret(world.there, "one for both")
    world.stayed(run)
    world.moved(world.migrate())
    world.registers = world.guest.nv_increment()


@pytest.mark.matrix
@pytest.mark.parametrize("point", [PRE_COPY, STOPPED])
def test_the_targets_qemu_is_killed(world: LibvirtWorld, point: str) -> None:
    with world.under(point, options=SLOWLY if point == PRE_COPY else ()) as under:
        under.wait(point)
        world.kill(world.there, "qemu-system-x86_64")
        run = under.end()
    world.stayed(run)
    world.moved(world.migrate())


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_libvirtd_ends(world: LibvirtWorld, side: str, how: str) -> None:
    """While memory is copied; it comes back at once."""
    host = world.here if side == "source" else world.there
    with world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        if how == "kill":
            Libvirtd(host).kill()
        else:
            Libvirtd(host).stop()
        world.start_daemon(host)
        run = under.end()
    world.stayed(run)
    world.moved(world.migrate())
