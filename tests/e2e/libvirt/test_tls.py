"""Where both hosts have certificates memory and disks travel under libvirt's own TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.certificates import QEMU_PKI, Authority
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import PATIENCE

WIRETAP = str(Path(__file__).with_name("wiretap.py"))


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with Observer.start(libvirt_lab) as seen:
        world = LibvirtWorld.begin(libvirt_lab, seen)
        yield world
        world.end()


@contextmanager
def tapped(world: LibvirtWorld, heard: dict[str, int]) -> Generator[None]:
    """Listen to what the other host gets, for what the guest has in its memory and on its disk."""
    argv = [sys.executable, WIRETAP, "uplink", world.boot]
    tap = world.there.popen(argv, stdin=subprocess.PIPE)
    assert tap.stdout is not None
    assert tap.stdout.readline().strip() == "listening"
    yield
    said, _ = tap.communicate(timeout=PATIENCE)
    heard.update(json.loads(said))


def test_with_certificates_and_without(
    world: LibvirtWorld, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without, it can be read on the wire, and the user is warned; with them neither is so."""
    clear: dict[str, int] = {}
    with tapped(world, clear):
        run = world.migrate()
    world.moved(run)
    assert any("unencrypted" in event["message"] for event in run.of("warned")), str(run)
    assert clear["readable"] > 0

    authority = Authority(tmp_path_factory.mktemp("authority"))
    for host in (world.here, world.there):
        host.run(["mkdir", "-p", QEMU_PKI])
        host.write_files(authority.files(host.name, [host.name]))
        host.run(["sh", "-c", f"chmod 600 {QEMU_PKI}/*-key.pem"])
    sealed: dict[str, int] = {}
    with tapped(world, sealed):
        run = world.migrate()
    for host in (world.here, world.there):
        host.run(["rm", "-r", QEMU_PKI])
        host.run(["rmdir", "--ignore-fail-on-non-empty", str(Path(QEMU_PKI).parent)])
    world.moved(run)
    assert run.of("warned") == [], str(run)
    assert sealed["readable"] == 0
    assert sealed["bytes"] > clear["bytes"] / 2
