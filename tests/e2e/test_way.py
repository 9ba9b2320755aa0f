"""The way of the data is found, and proven before the guest is concerned; the plan tells of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.dying import PRE_COPY
from tests.e2e.run import far
from tests.e2e.world import World

DISK = "/srv/disk0.raw"
CONFIG = "/root/.ssh/config"


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen)
        yield world
        world.end()


@contextmanager
def alias(host: Host, name: str, *lines: str) -> Generator[None]:
    """A name of the other host that only ssh knows."""
    file = host.path(CONFIG)
    was = file.read_text() if file.exists() else None
    file.write_text("\n ".join([f"Host {name}", *lines]) + "\n" + (was or ""))
    file.chmod(0o600)
    try:
        yield
    finally:
        file.write_text(was) if was is not None else file.unlink()


@pytest.mark.parametrize("how", ["drop", pytest.param("reset", marks=pytest.mark.matrix)])
def test_a_firewall_in_the_way_is_found_at_test(world: World, how: str) -> None:
    lab, here, there = world.lab, world.here, world.there
    lab.cut(here.name, there.name, how=how, traffic="data")  # type: ignore[arg-type]
    try:
        run = world.migrate()
    finally:
        lab.mend(here.name, there.name)
    world.stayed(run, status=3)
    assert set(run.refusals) == {"memory"}
    assert f"no connection to {there.address}:49152" in run.refusals["memory"]
    assert "TCP ports 49152 to 49215" in run.refusals["memory"]


def test_check_prints_the_plan(world: World) -> None:
    there = world.there
    done = world.here.run(["entourage", "check", world.name, there.name])
    text = " ".join(done.stdout.split())
    assert f"{DISK} is copied, about" in text
    assert f"afterwards it is deleted on {world.here.name}" in text
    assert "its state goes with the memory" in text
    assert f"to {there.address}, TCP ports 49152 to 49215" in text
    assert "can move" in text
    world.is_as_before()


def test_status_tells_how_far_it_is_on_both_hosts(world: World) -> None:
    here, there = world.here, world.there
    with world.under(PRE_COPY) as under:
        under.wait(PRE_COPY)
        said = [host.run(["entourage", "status"]).stdout for host in (here, there)]
        run = under.end()
    world.moved(run)
    meanings = (f"it is moving to {there.name}", f"it arrives from {here.name}")
    for text, meaning in zip(said, meanings, strict=True):
        assert f"{world.name}: {meaning}" in text
        assert "under way" in text
        assert "copying " in text  # memory, or a disk, which was looked at a moment ago
        assert "since" in text


def test_a_range_of_just_what_is_needed(world: World) -> None:
    """What listened for the proof listens no more when memory and disks are to come."""
    world.moved(world.migrate("--ports", "49200-49201"))


def test_an_alias_of_ssh_behind_sudo(world: World) -> None:
    """Sudo drops SSH_CONNECTION, and nobody but ssh knows the alias."""
    remote = far("env", "-u", "SSH_CONNECTION", "entourage")
    there = world.there
    with alias(world.here, "other", f"HostName {there.address}", f"HostKeyAlias {there.name}"):
        run = world.migrate("--remote-command", remote, to="other")
        assert run.status == 0, str(run)
        [planned] = run.of("planned")
        assert planned["address"] == there.address
    world.arrived()


def test_a_forwarded_port_is_no_way(world: World) -> None:
    """Ssh reaches the other host by this host's loopback."""
    here, there = world.here, world.there
    proxy = f"ProxyCommand ssh -W {there.address}:22 {there.name}"
    remote = far("env", "-u", "SSH_CONNECTION", "entourage")
    with alias(here, "tunnel", "HostName 127.0.0.1", f"HostKeyAlias {there.name}", proxy):
        run = world.migrate("--remote-command", remote, to="tunnel")
        world.stayed(run, status=3)
        assert set(run.refusals) == {"domain"}
        assert "ssh reaches tunnel by 127.0.0.1" in run.refusals["domain"]
        assert "--data-address" in run.refusals["domain"]
        named = ("--data-address", there.address)
        run = world.migrate("--remote-command", remote, *named, to="tunnel")
        assert run.status == 0, str(run)
    world.arrived()
