"""A daemon between GO and Load: systemd keeps QEMU's connection for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.attend.cluster import VMID, Cluster, two_nodes
from tests.e2e.attend.world import Attend, settings, steps
from tests.e2e.run import PATIENCE
from tests.e2e.units.conftest import enable
from tests.e2e.units.daemon import UNIT, UnitAttend
from tests.unit.eventually import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.hosts import Lab

ALL = ["1", "2", "3"]
MARK = "/var/log/at-2"


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Generator[Cluster]:
    for host in (lab["a"], lab["b"]):
        settings(host, toolstack="proxmox")
        Attend.know(UnitAttend(host))
        enable(host, UNIT)
        Attend.of(host).stop()
    with two_nodes(lab) as one:
        yield one


@pytest.mark.parametrize("how", ["kill", pytest.param("restart", marks=pytest.mark.matrix)])
def test_a_daemon_that_ends_between_go_and_load(cluster: Cluster, how: str) -> None:
    """There is no way back for the guest: it runs on the target."""
    tool = cluster.tool(f'[ "$step:$recover" != 2:no ] || {{ touch {MARK}; sleep 1; }}')
    node, mark = cluster.there, cluster.here.path(MARK)
    daemon = Attend.of(node)
    assert isinstance(daemon, UnitAttend)
    before = daemon.shown("MainPID")
    moving = cluster.here.popen(["qm", "migrate", VMID, node.name])
    wait_until(mark.exists)
    mark.unlink()
    qemu = node.path(f"/run/qemu-server/{VMID}.pid").read_text().strip()
    node.run(["kill", "-STOP", qemu])  # it does not get as far as Load
    wait_until(lambda: daemon.shown("NFileDescriptorStore") != "0")
    # The source has sent all, and its QEMU is about to be ended.
    wait_until(node.path(f"/etc/pve/nodes/{node.name}/qemu-server/{VMID}.conf").exists)
    if how == "kill":
        node.run(["systemctl", "kill", "--signal=KILL", UNIT])
        wait_until(lambda: daemon.shown("MainPID") not in {before, "0"})
        daemon.start()
    else:
        node.run(["systemctl", "restart", "--no-block", UNIT])
        wait_until(lambda: daemon.shown("ActiveState") == "deactivating")
    node.run(["kill", "-CONT", qemu])
    said = moving.communicate(timeout=PATIENCE)
    assert moving.returncode == 0, (said, cluster.told())
    cluster.came()
    daemon.start()
    cluster.is_here()
    assert daemon.shown("MainPID") != before
    assert daemon.shown("NFileDescriptorStore") == "0"
    assert steps(tool) == {"dongle": ALL, "meter": ALL}
