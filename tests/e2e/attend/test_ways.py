"""Other ways of migrating than the usual one, and what becomes of hosts between two migrations."""

from __future__ import annotations

import time

import pytest

from lab.libvirtd import Libvirtd
from tests.e2e.attend.world import HOOKS, Attend, AttendWorld, steps
from tests.e2e.dying import RAN
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE

ALL = ["1", "2", "3"]


def test_libvirtd_is_restarted_under_the_daemons(world: AttendWorld) -> None:
    """They look at all domains again, and attend them as before."""
    tool = world.tool()
    for host in (world.here, world.there):
        looked = Attend.of(host).log.count("attends ")
        world.kill_daemon(host)
        world.start_daemon(host)
        deadline = time.monotonic() + PATIENCE
        while Attend.of(host).log.count("attends ") == looked:
            assert time.monotonic() < deadline, Attend.of(host).log
            time.sleep(0.05)  # it tells nobody else
        assert not any(
            "cannot be looked at" in line for line in Attend.of(host).log.splitlines()[-2:]
        )
    world.came(world.virsh())
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


@pytest.mark.matrix
def test_virsh_suspends_the_guest_to_get_done(world: AttendWorld) -> None:
    """``--timeout``: it stands still longer than a blackout may last, and nobody gives up."""
    tool = world.tool()
    mark = world.seen.mark()
    world.came(world.virsh("--timeout", "1", "--bandwidth", "8"))
    assert world.seen.longest_gap(mark).seconds > 3  # max-blackout in these hosts' settings
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


@pytest.mark.parametrize("fails", [False, pytest.param(True, marks=pytest.mark.matrix)])
def test_cockpits_call(world: AttendWorld, *, fails: bool) -> None:
    """As domainMigrateToUri of cockpit-machines (src/libvirtApi/domain.ts, 2026-08-21) makes it.

    Peer to peer, live, persistent, undefined on the source, its disks copied.
    """
    tool = world.tool('[ "$type:$step:$recover" != dongle:2:no ] || exit 1' if fails else "")
    done = world.by_api("migrateToURI3", 1 | 2 | 8 | 16 | 64)
    if fails:
        world.came_back(done)
    else:
        world.came(done)
    assert steps(tool)["dongle"] == (["1", "2", "r1"] if fails else ALL)


@pytest.mark.matrix
def test_a_hook_of_somebody_elses_that_fails(world: AttendWorld) -> None:
    """After ours has had the devices prepared, and QEMU waits for the stream: all goes back."""
    tool = world.tool()
    other = world.there.path(f"{HOOKS}/zz-another")
    other.write_text('#!/bin/sh\n[ "$2" != started ]\n')
    other.chmod(0o755)
    try:
        done = world.virsh()
    finally:
        other.unlink()
    world.came_back(done)
    assert steps(tool) == {"dongle": ["1", "r1"], "meter": ["1", "r1"]}


@pytest.mark.matrix
def test_a_target_that_has_its_definition(world: AttendWorld) -> None:
    """Of an earlier time: then libvirt shows it as off where it never ran."""
    define_there(world)
    tool = world.tool('[ "$type:$step:$recover" != dongle:3:no ] || exit 1')
    done = world.virsh()
    assert done.returncode != 0, world.told(done)
    world.settled()
    Libvirtd(world.there).virsh("undefine", world.name)
    world.came_back(done)
    told = steps(tool)
    assert told["dongle"] == [*ALL, "r2"], told
    tool = world.tool()
    define_there(world)
    world.came(world.virsh())
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


def define_there(world: AttendWorld) -> None:
    text = Libvirtd(world.here).virsh("dumpxml", "--inactive", world.name).stdout
    file = world.there.path("/root/earlier.xml")
    file.write_text(text)
    Libvirtd(world.there).virsh("define", "/root/earlier.xml")
    file.unlink()


@pytest.mark.matrix
def test_a_source_that_keeps_its_definition(world: AttendWorld) -> None:
    tool = world.tool()
    done = world.virsh(without=["--undefinesource"])
    assert done.returncode == 0, world.told(done)
    world.settled()
    Libvirtd(world.here).virsh("undefine", world.name)
    world.came(done)
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


@pytest.mark.matrix
def test_a_link_that_ends_after_the_guest_ran(
    world: AttendWorld, daemons: dict[str, Attend]
) -> None:
    """The source never hears that it ran: it asks, and lets go."""
    tool, source, target = world.tool(), world.here, world.there
    with Points(target, RAN) as points:
        daemons[target.name].stop()
        daemons[target.name].start(**points.env)
        with world.begin_virsh() as virsh:
            points.wait(RAN, lambda: virsh.process.poll() is None)
            links = [each for each in target.snapshot().processes.values() if is_link(each)]
            assert links
            for each in links:
                target.run(["kill", "-KILL", each.split()[0]])
            points.open()
            done = virsh.end()
        daemons[target.name].stop()
        daemons[target.name].start()
    assert done.returncode == 0, world.told(done)
    world.settled()
    world.delete_volume(source)
    world.arrived()
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


def is_link(process: str) -> bool:
    """Whether it is the ssh of a link between two daemons."""
    return "attend --answer" in process and process.split()[1] == "ssh"
