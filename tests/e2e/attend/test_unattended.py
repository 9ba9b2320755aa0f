"""A domain that has nothing for Entourage is libvirt's alone, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.attend.world import Attend, AttendWorld, steps


@pytest.fixture(scope="module")
def module_world(attend_lab: Lab, daemons: dict[str, Attend]) -> Generator[AttendWorld]:
    del daemons
    with Observer.start(attend_lab) as seen:
        world = AttendWorld.begin(attend_lab, seen, extra="")
        assert isinstance(world, AttendWorld)
        yield world
        world.end()


def test_its_xml_is_as_it_was(world: AttendWorld, daemons: dict[str, Attend]) -> None:
    daemon = daemons[world.here.name]
    daemon.stop()
    before = Libvirtd(world.here).virsh("dumpxml", world.name).stdout
    daemon.start()
    assert Libvirtd(world.here).virsh("dumpxml", world.name).stdout == before
    shown = world.here.run(["entourage", "attend", "--check", world.name], check=False)
    assert shown.returncode == 2
    assert "has no device for Entourage" in shown.stderr


@pytest.mark.matrix
@pytest.mark.parametrize("p2p", [False, True], ids=["direct", "p2p"])
def test_it_moves(world: AttendWorld, *, p2p: bool) -> None:
    tool = world.tool()
    before = Libvirtd(world.here).virsh("dumpxml", "--migratable", world.name).stdout
    world.came(world.virsh(p2p=p2p))
    assert Libvirtd(world.here).virsh("dumpxml", "--migratable", world.name).stdout == before
    assert steps(tool) == {"dongle": [], "meter": []}
    journals = [host.path("/var/lib/entourage/journal.db") for host in (world.here, world.there)]
    assert all(journal.exists() for journal in journals)
    uuid = Libvirtd(world.here).virsh("domuuid", world.name).stdout.strip()
    assert not world.here.path(f"/run/entourage/attend/{uuid}.json").exists()
