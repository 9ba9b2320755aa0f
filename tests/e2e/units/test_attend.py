"""Stock ``virsh migrate``, attended by daemons that systemd runs, bound by their unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab.libvirtd import start_all
from lab.observer import Observer
from tests.e2e.attend.world import DEVICES, Attend, AttendWorld, settings, steps
from tests.e2e.units.conftest import enable
from tests.e2e.units.daemon import UNIT, UnitAttend
from tests.unit.eventually import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.host import Host
    from lab.hosts import Lab

SYSTEMDS = ("/run/systemd/*", "/run/log/*", "/tmp/systemd-*")  # noqa: S108 - its PrivateTmp=
ALL = ["1", "2", "3"]
HANGS = '[ "$type:$step:$recover" != dongle:2:no ] || exec sleep 60'


@pytest.fixture(scope="module")
def daemons(lab: Lab) -> Generator[dict[Host, UnitAttend]]:
    hosts = (lab["a"], lab["b"])
    found = {host: UnitAttend(host) for host in hosts}
    for host, each in found.items():
        Attend.know(each)
        each.install_hook()
        settings(host)
    start_all(hosts)
    for host, each in found.items():
        enable(host, UNIT)
        each.start()
    yield found
    for each in found.values():
        each.stop()


@pytest.fixture(scope="module")
def world(lab: Lab, daemons: dict[Host, UnitAttend]) -> Generator[AttendWorld]:
    assert daemons
    with Observer.start(lab) as seen:
        world = AttendWorld.begin(lab, seen, extra=DEVICES)
        assert isinstance(world, AttendWorld)
        world.kept = (*world.kept, *SYSTEMDS)  # type: ignore[misc] - of this one
        yield world
        world.end()


def test_there_and_back(world: AttendWorld) -> None:
    for p2p in (False, True):
        tool = world.tool()
        world.came(world.virsh(p2p=p2p))
        assert steps(tool) == {"dongle": ALL, "meter": ALL}
        world.settled()


@pytest.mark.matrix
def test_a_daemon_that_is_killed_comes_back(
    world: AttendWorld, daemons: dict[Host, UnitAttend]
) -> None:
    """By systemd, and settles what the one before it has left."""
    daemon = daemons[world.here]
    tool = world.tool(HANGS)
    before = daemon.shown("MainPID")
    with world.begin_virsh() as virsh:
        wait_until(lambda: "2" in steps(tool)["dongle"])
        world.here.run(["systemctl", "kill", "--signal=KILL", UNIT])
        done = virsh.end()
    assert done.returncode != 0, world.told(done)
    wait_until(lambda: daemon.shown("MainPID") not in {before, "0"})
    world.came_back(done)
    world.attended_again()
    told = steps(tool)["dongle"]
    assert told[-1].startswith("r"), (told, world.told(done))
    world.tool()
    world.came(world.virsh())


@pytest.mark.matrix
def test_a_daemon_that_is_stopped_puts_back(
    world: AttendWorld, daemons: dict[Host, UnitAttend]
) -> None:
    tool = world.tool(HANGS)
    with world.begin_virsh() as virsh:
        wait_until(lambda: "2" in steps(tool)["dongle"])
        daemons[world.here].stop()
        done = virsh.end()
    daemons[world.here].start()
    world.came_back(done)
    assert daemons[world.here].shown("Result") == "success"
    told = steps(tool)["dongle"]
    assert told[-1].startswith("r"), (told, world.told(done))
