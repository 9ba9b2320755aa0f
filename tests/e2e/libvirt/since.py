"""What saves of changes are looked at by: a domain's records, its disks, and their images."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from lab.guest import Disk, DiskRecords, disk_sequences
from lab.libvirtd import Libvirtd
from lab.processes import HostProcess
from tests.e2e.libvirt.saved import (
    SOCKETS,
    lives,
    names,
    partial,
    restore,
    save,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.shared import SHARED

DISKS = (Disk(f"{SHARED}/d0.raw"), Disk(f"{SHARED}/d1.qcow2", "qcow2"))
FORMATS = {"vda": DISKS[0], "vdb": DISKS[1]}
MON, TUE, WED, THU = (f"{SHARED}/saved-{day}" for day in ("mon", "tue", "wed", "thu"))
CHECKPOINT = ("--checkpoint", "--allow-tpm-rollback")
SMALL = "/mnt/small"
STANDS = "source.memory-landed"
BEFORE = "source.step-done.1"  # where the changes go is open, and the guest runs


def ended(process: HostProcess) -> Run:
    """Wait for a command's end."""
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return Run(process.returncode, stdout, stderr)


def checkpoint(world: LibvirtWorld, directory: str, *options: str) -> Run:
    return save(world, directory, *CHECKPOINT, *options)


def kept(world: LibvirtWorld, directory: str, *options: str) -> dict[str, str]:
    """Make a checkpoint; what was on the disks as the guest stood still, by their digests."""
    argv = ["entourage", "save", "--json", *CHECKPOINT, *options, "--tool", str(world.tool())]
    with Points(world.here, STANDS) as points:
        process = world.here.popen([*argv, "--", world.name, directory], env=points.env)
        try:
            points.wait(STANDS, lambda: process.poll() is None)
        except TimeoutError as error:
            points.open()
            raise AssertionError(str(ended(process))) from error
        were = on_disk(world)
        points.open()
        done = ended(process)
    assert done.status == 0, str(done)
    assert (done.finished["outcome"], done.finished["problems"]) == ("saved", []), str(done)
    is_as_it_was(world)
    return were


def is_as_it_was(world: LibvirtWorld) -> None:
    """The guest goes on, none of its writes has failed, and QEMU has nothing of a save."""
    lives(world)
    assert not partial(world)
    assert names(world.here, SOCKETS) == []
    assert asked(world, "query-block-jobs") == []
    nodes = asked(world, "query-named-block-nodes")
    assert not [one for one in nodes if str(one["node-name"]).startswith("entourage")]


def asked(world: LibvirtWorld, command: str) -> list[dict[str, object]]:
    """What its QEMU answers."""
    text = json.dumps({"execute": command})
    said = Libvirtd(world.here).virsh("qemu-monitor-command", world.name, text)
    found: list[dict[str, object]] = json.loads(said.stdout)["return"]
    return found


def records(world: LibvirtWorld) -> list[list[str]]:
    """The names of QEMU's records of each disk."""
    found: list[list[str]] = []
    for one in asked(world, "query-block"):
        inserted: Mapping[str, list[dict[str, str]]] = one["inserted"]  # type: ignore[assignment]
        found.append([each["name"] for each in inserted.get("dirty-bitmaps", [])])
    return found


def on_disk(world: LibvirtWorld) -> dict[str, str]:
    """Digests of what the guest sees on its disks."""
    return {name: digest(world, disk.path, disk.format) for name, disk in FORMATS.items()}


def in_save(world: LibvirtWorld, directory: str) -> dict[str, str]:
    """The same of what the copies in a save hold, with all that they are built on."""
    return {name: digest(world, f"{directory}/disks/{name}") for name in FORMATS}


def digest(world: LibvirtWorld, image: str, image_format: str = "") -> str:
    as_raw(world, image, image_format)
    said = world.here.run(["sh", "-c", "sha256sum /srv/as-raw; rm /srv/as-raw"]).stdout
    return said.split()[0]


def as_raw(world: LibvirtWorld, image: str, image_format: str = "") -> None:
    """Write what an image holds, with all that it is built on, to /srv/as-raw."""
    image_format = image_format or str(info(world, image)["format"])
    command = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw"]
    world.here.run([*command, image, "/srv/as-raw"])


def info(world: LibvirtWorld, image: str) -> dict[str, object]:
    said = world.here.run(["qemu-img", "info", "-U", "--output=json", image]).stdout
    found: dict[str, object] = json.loads(said)
    return found


def held(world: LibvirtWorld, directory: str, disk: str) -> DiskRecords:
    """What the guest had written to a disk, by the copy of it in a save."""
    as_raw(world, f"{directory}/disks/{disk}")
    try:
        return disk_sequences(world.here.path("/srv/as-raw"))
    finally:
        world.here.run(["rm", "/srv/as-raw"])


def only_changes(world: LibvirtWorld, directory: str, before: str) -> None:
    """Each image in a save is a small one, built on that of the one before."""
    for disk in FORMATS:
        told = info(world, f"{directory}/disks/{disk}")
        assert told["full-backing-filename"] == f"{before}/disks/{disk}", told
        # The guest writes its records one after the other: a few of these are few clusters.
        assert int(str(told["actual-size"])) < 4 << 20, told
        earlier, now = held(world, before, disk), held(world, directory, disk)
        assert (now.boot, now.missing) == (world.boot, ())
        assert earlier.last < now.last


def out_of_the_way(world: LibvirtWorld) -> None:
    """What the guest was before it goes back is taken away."""
    world.here.run(["entourage", "stop", "--force", world.name], check=False)
    uuid = Libvirtd(world.here).virsh("domuuid", world.name).stdout.strip()
    away = [f"/var/lib/libvirt/swtpm/{uuid}", *(disk.path for disk in DISKS)]
    world.here.run(["rm", "-rf", *away])


def went_back(world: LibvirtWorld, directory: str, were: Mapping[str, str]) -> None:
    """It is what it was, on the disks that it had then, by which its memory goes on."""
    out_of_the_way(world)
    done = restore(world, directory, "--revert", "--paused")
    assert done.status == 0, str(done)
    assert on_disk(world) == were
    for disk in DISKS:
        told = info(world, disk.path)
        assert (told["format"], "backing-filename" in told) == (disk.format, False)
    last = [held(world, directory, disk).last for disk in FORMATS]
    Libvirtd(world.here).virsh("resume", world.name)
    assert world.guest.status(timeout=PATIENCE).boot == world.boot
    assert world.guest.tpm() == world.registers
    deadline = time.monotonic() + PATIENCE
    while True:
        now = [disk_sequences(world.here.path(disk.path), disk.format) for disk in DISKS]
        if all(was < one.last for was, one in zip(last, now, strict=True)):
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)  # its words go by a connection that is not what it was
    # Its memory knows which number is the next: none is left out, and none written twice.
    assert [one.missing for one in now] == [(), ()]
