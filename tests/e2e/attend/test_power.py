"""The power of either host is cut while a migration is attended; what is left settles itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lab.libvirtd import Libvirtd
from tests.e2e.attend.test_killed import PRE_COPY
from tests.e2e.attend.world import Attend, AttendWorld, steps
from tests.e2e.dying import GO_STANDS, LANDED, LETTING_GO, RAN, STOPPED
from tests.e2e.points import Points

pytestmark = pytest.mark.matrix
SYNCED = "sync --file-system /var/log/move-it"  # what a tool was told outlives its host


@dataclass(frozen=True)
class Cut:
    """Whose power is cut at a point, and whose the guest is afterwards.

    Attributes:
        host: ``source`` or ``target``.
        point: Where the migration stands.
        owner: The same words.
        survives: False where the guest was on that host.
        by_hand: Whether libvirt waits for ever, and its user has to end that.
    """

    host: str
    point: str
    owner: str
    survives: bool = True
    by_hand: bool = False

    def __str__(self) -> str:
        return f"{self.host}-{self.point}"


CUTS = [
    Cut("source", PRE_COPY, "source", survives=False),
    Cut("source", STOPPED, "source", survives=False),
    Cut("source", LANDED, "source", survives=False),
    Cut("source", GO_STANDS, "source", survives=False),  # libvirt's client, which drives it, dies
    Cut("source", RAN, "target"),
    Cut("source", LETTING_GO, "target"),
    Cut("target", PRE_COPY, "source"),
    Cut("target", STOPPED, "source"),
    Cut("target", LANDED, "source"),
    # QEMU has sent all, and waits for a word of the target's that never comes.
    Cut("target", GO_STANDS, "source", by_hand=True),
    Cut("target", RAN, "target", survives=False),
    Cut("target", LETTING_GO, "target", survives=False),
]


@pytest.mark.parametrize("case", CUTS, ids=str)
def test_cut(world: AttendWorld, daemons: dict[str, Attend], case: Cut) -> None:
    tool = world.tool(SYNCED)
    source, target = world.here, world.there
    victim = source if case.host == "source" else target
    holder = source if case.point.startswith("source.") else target
    for host in (source, target):
        host.run(["sync", "--file-system", "/var/log/move-it"])
    with Points(holder, case.point) as points:
        daemons[holder.name].stop()
        daemons[holder.name].start(**points.env)
        with world.begin_virsh() as virsh:
            points.wait(case.point, lambda: virsh.process.poll() is None)
            if holder is victim:  # it stands at the point, and would go on now
                daemons[holder.name].freeze()
                points.let_go()
            victim.power_cut()
            if holder is not victim:
                points.open()
            if case.host == "target":
                # libvirt may wait for its disks' connections, which notice nothing before that.
                victim.power_on()
                world.booted(victim)
            if case.by_hand:
                Libvirtd(source).virsh("domjobabort", world.name)
            done = virsh.end()
        if holder is not victim:
            daemons[holder.name].stop()
            daemons[holder.name].start()
    if case.host == "source":
        victim.power_on()
        world.booted(victim)
    said = world.told(done)
    world.settled()
    world.links_end(source)
    told = steps(tool)
    if not case.survives and case.owner == "target":
        assert told == {"dongle": ["1", "2", "3"], "meter": ["1", "2", "3"]}, (told, said)
        for host in (source, target):  # whether libvirt still knows it there is libvirt's own
            assert world.name not in Libvirtd(host).virsh("list", "--name").stdout, said
        world.remove_image(target)
        world.start_over()
        return
    if case.owner == "target":
        # libvirt's own clean-up of the source was cut off with its host, or came too late.
        Libvirtd(source).virsh("undefine", world.name, check=False)
        world.delete_volume(source)
        world.arrived()
        assert told == {"dongle": ["1", "2", "3"], "meter": ["1", "2", "3"]}, (told, said)
        return
    world.remove_image(target)
    if case.survives:
        world.is_as_before()
    else:
        world.start_again()
        world.attended_again()
        world.is_clean(target)
    for calls in told.values():  # each is put back once, by the last step that is known of it
        assert [call for call in calls if call.startswith("r")] == calls[-1:], (told, said)
