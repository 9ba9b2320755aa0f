"""Where both hosts have certificates memory and disks travel under libvirt's own TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.certificates import PKI, Authority
from lab.libvirtd import Libvirtd
from tests.e2e.libvirt.world import NOT_THERE, LibvirtWorld
from tests.e2e.run import PATIENCE

WIRETAP = str(Path(__file__).with_name("wiretap.py"))


@contextmanager
def tapped(world: LibvirtWorld, heard: dict[str, int]) -> Generator[None]:
    """Listen to what the other host gets, for what the guest has in its memory and on its disk."""
    argv = [sys.executable, WIRETAP, "uplink", world.here.address, world.boot]
    tap = world.there.popen(argv, stdin=subprocess.PIPE)
    assert tap.stdout is not None
    assert tap.stdout.readline().strip() == "listening"
    yield
    said, _ = tap.communicate(timeout=PATIENCE)
    heard.update(json.loads(said))


@contextmanager
def certified(world: LibvirtWorld, directory: Path) -> Generator[None]:
    """Certificates on both hosts, of one authority."""
    authority = Authority(directory)
    hosts = (world.here, world.there)
    for host in hosts:
        certificate = authority.certify(host.name, [host.name])
        files = {**certificate.for_qemu(), **certificate.for_libvirt()}
        host.run(["mkdir", "-p", *{str(Path(path).parent) for path in files}])
        host.write_files(files)
        for path in files:
            host.path(path).chmod(0o600)
    try:
        yield
    finally:
        for host in hosts:
            host.run(["rm", "-r", *(f"{PKI}/{name}" for name in ("CA", "libvirt", "qemu"))])
            host.run(["rmdir", "--ignore-fail-on-non-empty", PKI])


def test_without_certificates(world: LibvirtWorld) -> None:
    """It can be read on the wire, and the user is warned."""
    heard: dict[str, int] = {}
    with tapped(world, heard):
        run = world.migrate()
    world.moved(run)
    assert any("unencrypted" in event["message"] for event in run.of("warned")), str(run)
    assert heard["readable"] > 0


def test_with_certificates(world: LibvirtWorld, tmp_path: Path) -> None:
    """Neither is so."""
    heard: dict[str, int] = {}
    with certified(world, tmp_path), tapped(world, heard):
        run = world.migrate()
    world.moved(run)
    assert run.of("warned") == [], str(run)
    assert heard["readable"] == 0
    assert heard["bytes"] > 1 << 20


@pytest.mark.matrix
def test_all_of_it_by_tls(world: LibvirtWorld, tmp_path: Path) -> None:
    """To a host without Entourage, which only its libvirtd speaks for, on its own TLS port."""
    heard: dict[str, int] = {}
    target, daemon = world.there, Libvirtd(world.there)
    with certified(world, tmp_path):
        daemon.stop()
        daemon.start(listen=True)
        with tapped(world, heard):
            run = world.migrate(*NOT_THERE, to=f"qemu+tls://{target.name}/system")
        daemon.stop()
        world.start_daemon(target)
    world.moved(run)
    assert ["has no Entourage" in event["message"] for event in run.of("warned")] == [True]
    assert heard["readable"] == 0
    assert heard["bytes"] > 1 << 20
    world.moved(world.migrate())  # back, now that there is one: it had not heard of that arrival
