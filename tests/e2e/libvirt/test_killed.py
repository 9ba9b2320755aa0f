"""The client, either libvirtd, either QEMU, either host dies in each phase; then ``recover``.

Who is to run the guest afterwards is written down beforehand, in ``CASES``. A libvirtd that was
killed is started again at once, as systemd does, if its name does not end in ``-off``.
"""

from __future__ import annotations

import pytest

from lab.libvirtd import Libvirtd
from tests.e2e.dying import (
    ARMED,
    GO_SAID,
    GO_STANDS,
    HELD,
    LANDED,
    LETTING_GO,
    OPENED,
    PRE_COPY,
    PREPARE,
    RAN,
    RELEASED,
    STOPPED,
    Case,
    settle,
    strike,
    victim,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.run import Under
from tests.e2e.world import World

CORE = [
    Case("source-host", GO_STANDS, "target"),
]
MATRIX = [
    Case("entourage", LANDED, "source"),
    Case("source-libvirtd", LANDED, "either"),
    # It ends what nobody has finished, so the guest is known never to have run there.
    Case("target-libvirtd", GO_STANDS, "source"),
    Case("target-host", RAN, "target", survives=False),
    Case("entourage", GO_SAID, "target"),
    Case("entourage", PRE_COPY, "source"),
    Case("source-libvirtd", PRE_COPY, "source"),
    Case("target-libvirtd", PRE_COPY, "source"),
    Case("target-qemu", LANDED, "source"),
    Case("entourage", ARMED, "source"),
    Case("entourage", PREPARE, "source"),
    Case("entourage", STOPPED, "source"),
    Case("entourage", HELD, "source"),
    Case("entourage", LETTING_GO, "target"),
    Case("agent", OPENED, "source"),
    Case("agent", PRE_COPY, "source"),
    Case("agent", STOPPED, "source"),
    Case("agent", LANDED, "source"),
    Case("agent", GO_STANDS, "source"),
    Case("agent", RELEASED, "target"),
    Case("agent", RAN, "target"),
    Case("ssh", LANDED, "source"),
    Case("ssh", GO_STANDS, "target"),
    Case("source-libvirtd", PREPARE, "source"),
    Case("source-libvirtd", STOPPED, "either"),
    Case("source-libvirtd", GO_SAID, "target"),
    Case("source-libvirtd", LETTING_GO, "target"),
    Case("source-libvirtd-off", PRE_COPY, "source"),
    Case("source-libvirtd-off", LETTING_GO, "target"),
    Case("target-libvirtd", OPENED, "target"),  # nothing of it has been used yet
    Case("target-libvirtd", STOPPED, "source"),
    Case("target-libvirtd", LANDED, "source"),
    Case("target-libvirtd", RELEASED, "target"),
    Case("target-libvirtd-off", PRE_COPY, "source"),
    Case("target-libvirtd-off", GO_STANDS, "source"),
    Case("target-qemu", PRE_COPY, "source"),
    Case("target-qemu", STOPPED, "source"),
    Case("target-qemu", GO_STANDS, "source"),
    Case("source-qemu", PRE_COPY, "source", survives=False),
    Case("source-host", PRE_COPY, "source", survives=False),
    Case("target-host", PRE_COPY, "source"),
    Case("target-host", STOPPED, "source"),
]
CASES = [
    *(pytest.param(case, id=str(case)) for case in CORE),
    *(pytest.param(case, id=str(case), marks=pytest.mark.matrix) for case in MATRIX),
]
SLOWLY = ("--bandwidth", "20MiB/s")  # disks come first, at the same pace


def kill(world: World, name: str, under: Under) -> None:
    """Kill it; a libvirtd comes back at once, or not before the migration has ended."""
    side, _, what = name.partition("-")
    if not what.startswith("libvirtd"):
        victim(world, name, under)
        return
    assert isinstance(world, LibvirtWorld)
    host = world.here if side == "source" else world.there
    world.kill_daemon(host)
    if what == "libvirtd":
        world.start_daemon(host)


@pytest.mark.parametrize("case", CASES)
def test_dies(world: LibvirtWorld, case: Case) -> None:
    """It starts with its host: where that boots again, libvirtd starts none beside the other."""
    options = SLOWLY if case.point in {PRE_COPY, PREPARE, ARMED, OPENED} else ()
    source = world.here
    Libvirtd(source).virsh("autostart", world.name)
    run = strike(world, case, options=options, kill=kill)
    if case.victim == "source-host":
        assert "running" not in world.domains(source).values()
    for host in (world.here, world.there):
        if not Libvirtd(host).runs:
            world.start_daemon(host)
    settle(world, case, run)
    assert "Autostart:      enable" in Libvirtd(world.here).virsh("dominfo", world.name).stdout
    Libvirtd(world.here).virsh("autostart", "--disable", world.name)
    world.running = world.here.snapshot()
    world.moved(world.migrate())
