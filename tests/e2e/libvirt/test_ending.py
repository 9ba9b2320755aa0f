"""The guest ends by itself while libvirt moves it: it powers itself off, or its QEMU crashes."""

from __future__ import annotations

import pytest

from lab.libvirtd import Libvirtd
from tests.e2e.dying import ARMED, OPENED, PRE_COPY, PREPARE, STOPPED
from tests.e2e.ending import Ending, ends
from tests.e2e.faults.matrix import POINTS
from tests.e2e.libvirt.world import LibvirtWorld

COPYING = "source.copy-progress"
SLOWLY = ("--bandwidth", "20MiB/s")  # disks come first, at the same pace
ENDINGS = [
    *(
        Ending("poweroff", point)
        for point in (ARMED, OPENED, PREPARE, POINTS["prepared"], COPYING, PRE_COPY)
    ),
    *(
        Ending("crash", point)
        for point in (ARMED, PREPARE, POINTS["prepared"], COPYING, PRE_COPY, STOPPED)
    ),
]


@pytest.mark.matrix
@pytest.mark.parametrize("case", ENDINGS, ids=str)
def test_the_guest_ends_while_it_moves(world: LibvirtWorld, case: Ending) -> None:
    def revive() -> bool:
        """libvirtd 9.0 may crash of it, and systemd starts it again."""
        if Libvirtd(world.here).runs:
            return False
        world.start_daemon(world.here)
        return True

    ends(world, case, options=SLOWLY, meanwhile=revive)
    # One that has not crashed may do so later, as the domain is next ended: its call, which has
    # waited for the guest that is gone, goes on then (a segmentation fault in
    # qemuMigrationSrcPerform). That is not to be another test's.
    if Libvirtd(world.here).runs:
        world.kill_daemon(world.here)
    revive()
