"""A daemon, or a libvirtd, is killed while it attends; what is left settles itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.e2e.attend.world import Attend, AttendWorld, steps
from tests.e2e.dying import (
    ARMED,
    GO_SAID,
    GO_STANDS,
    LANDED,
    LETTING_GO,
    OPENED,
    RAN,
    RELEASED,
    STOPPED,
)
from tests.e2e.points import Points

PRE_COPY = "source.copy-progress"  # no policy of ours is told here


@dataclass(frozen=True)
class Case:
    """What is killed at a point, and whose the guest is afterwards."""

    victim: str
    point: str
    owner: str

    def __str__(self) -> str:
        return f"{self.victim}-{self.point}"


CORE = [
    Case("daemon", STOPPED, "source"),
]
MATRIX = [
    Case("daemon", GO_SAID, "target"),
    Case("daemon", GO_STANDS, "source"),
    Case("daemon", RELEASED, "target"),
    Case("source-libvirtd", PRE_COPY, "source"),
    Case("target-libvirtd", PRE_COPY, "source"),
    Case("daemon", ARMED, "source"),
    Case("daemon", OPENED, "source"),
    Case("daemon", PRE_COPY, "source"),
    Case("daemon", LANDED, "source"),
    Case("daemon", RAN, "target"),
    Case("daemon", LETTING_GO, "target"),
]


@pytest.mark.parametrize(
    "case", [*CORE, *(pytest.param(case, marks=pytest.mark.matrix) for case in MATRIX)], ids=str
)
def test_killed(world: AttendWorld, daemons: dict[str, Attend], case: Case) -> None:
    tool = world.tool()
    source, target = world.here, world.there
    host = source if case.point.startswith("source.") else target
    daemon = daemons[host.name]
    with Points(host, case.point) as points:
        daemon.stop()
        daemon.start(**points.env)
        with world.begin_virsh() as virsh:
            points.wait(case.point, lambda: virsh.process.poll() is None)
            if case.victim == "daemon":
                daemon.kill()
            else:
                world.kill_daemon(source if case.victim == "source-libvirtd" else target)
            points.open()
            if case.victim != "daemon":
                world.start_daemon(source if case.victim == "source-libvirtd" else target)
            done = virsh.end()
        if daemon.runs:
            daemon.stop()
        daemon.start()
    said = world.told(done)
    world.settled()
    told = steps(tool)
    if case.owner == "target":
        world.delete_volume(source)
        world.arrived()
        assert told == {"dongle": ["1", "2", "3"], "meter": ["1", "2", "3"]}, (told, said)
        return
    world.remove_image(target)
    world.is_as_before()
    for calls in told.values():  # each is put back once, by the last step that is known of it
        assert not calls or [call for call in calls if call.startswith("r")] == calls[-1:], said
