"""Two attended domains that migrate at once: each takes its own devices along."""

from __future__ import annotations

import pytest

from lab.domain_xml import domain_xml
from lab.guest import Disk
from lab.libvirtd import IMAGES, Libvirtd, ssh_uri
from lab.network import guest_address
from tests.e2e.attend.world import AttendWorld, steps
from tests.e2e.run import PATIENCE

ALL = ["1", "2", "3"]
OTHER = "web2"
DISK = Disk(f"{IMAGES}/web2.qcow2", "qcow2")
DEVICES = """
[[external]]
id = "lamp"
type = "lamp"
tool = "/usr/local/sbin/move-it"
"""


@pytest.mark.parametrize(
    "fails", [pytest.param(False, marks=pytest.mark.matrix), True], ids=["both", "one-goes-back"]
)
def test_two_at_once(world: AttendWorld, *, fails: bool) -> None:
    """Where one of them goes back, the other does not."""
    tool = world.tool('[ "$type:$step:$recover" != lamp:3:no ] || exit 1' if fails else "")
    source, target = world.here, world.there
    DISK.create(source, "64M")
    text = domain_xml(
        OTHER, disks=[DISK], tpm=False, address=guest_address(2), metadata=DEVICES, memory=128
    )
    source.path("/root/other.xml").write_text(text)
    daemon = Libvirtd(source)
    daemon.virsh("create", "/root/other.xml", timeout=PATIENCE)
    source.path("/root/other.xml").unlink()
    command = ["virsh", "migrate", "--live", "--copy-storage-all", OTHER, ssh_uri(target)]
    other = source.popen(command)
    try:
        done = world.virsh()
        said = other.communicate(timeout=PATIENCE)
    finally:
        other.kill()
        other.communicate(timeout=PATIENCE)
    world.settled()
    its = Libvirtd(source if fails else target)
    assert its.domains()[OTHER] == "running", said
    assert (other.returncode != 0) == fails, said
    its.virsh("destroy", OTHER)
    for host in (source, target):
        Libvirtd(host).virsh("pool-refresh", "default")
        Libvirtd(host).virsh("vol-delete", DISK.path, check=False)
    world.came(done)
    told = steps(tool, "dongle", "meter", "lamp")
    assert (told["dongle"], told["meter"]) == (ALL, ALL)
    assert told["lamp"] == ([*ALL, "r2"] if fails else ALL)
