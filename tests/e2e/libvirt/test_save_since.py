"""Saves of a libvirt domain that have only what its guest has written since a checkpoint."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from lab.processes import HostProcess
from tests.e2e.libvirt.saved import (
    FPGA,
    SavedWorld,
    killed_at,
    lives,
    names,
    reasons,
    recovered,
    restore,
    save,
    went_on,
)
from tests.e2e.libvirt.since import (
    BEFORE,
    CHECKPOINT,
    DISKS,
    MON,
    SMALL,
    STANDS,
    THU,
    TUE,
    WED,
    asked,
    checkpoint,
    digest,
    ended,
    in_save,
    info,
    is_as_it_was,
    kept,
    on_disk,
    only_changes,
    records,
    went_back,
)
from tests.e2e.libvirt.world import LibvirtWorld
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, loop, shared_storage


@pytest.fixture(scope="module")
def module_world(libvirt_lab: Lab) -> Generator[LibvirtWorld]:
    with shared_storage(libvirt_lab, "2G"), Observer.start(libvirt_lab) as seen:
        world = SavedWorld.begin(libvirt_lab, seen, "saved7", disks=DISKS, extra=FPGA)
        yield world
        world.end()


SENT = f"{SHARED}/saved-sent"


@pytest.fixture
def ready(world: LibvirtWorld) -> Generator[LibvirtWorld]:
    """The same, with nothing saved, before and after."""
    world.lives()
    yield world
    world.here.run(["sh", "-c", f"rm -rf {SHARED}/saved-*"])


@contextmanager
def small_storage(world: LibvirtWorld) -> Generator[None]:
    """A file system for a save alone."""
    with loop(world.here, "/srv/small.img", "512M") as device:
        world.here.run(["mkfs.ext4", "-q", device])
        world.here.run(["mkdir", SMALL])
        world.here.run(["mount", device, SMALL])
        try:
            yield
        finally:
            world.here.run(["umount", SMALL])
            world.here.run(["rmdir", SMALL])


@contextmanager
def frozen_under_changes(world: LibvirtWorld) -> Generator[HostProcess]:
    """A save whose storage hangs; the guest stands still, and its changes are being copied."""
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--since", MON]
    argv += ["--tool", str(world.tool()), "--", world.name, f"{SMALL}/saved"]
    with small_storage(world), Points(world.here, BEFORE) as points:
        process = world.here.popen(argv, env=points.env)
        points.wait(BEFORE, lambda: process.poll() is None)
        world.here.run(["fsfreeze", "--freeze", SMALL])
        try:
            points.open()
            deadline = time.monotonic() + PATIENCE
            while {one["type"] for one in asked(world, "query-block-jobs")} != {"backup"}:
                assert time.monotonic() < deadline
                time.sleep(0.01)  # QEMU tells nobody outside of it
            assert world.domains(world.here) == {world.name: "paused"}
            yield process
        finally:
            world.here.run(["fsfreeze", "--unfreeze", SMALL])
        recovered(world)
        assert names(world.here, SMALL) == ["lost+found"]


def runs_again(world: LibvirtWorld) -> None:
    """Somebody lets the guest run again."""
    deadline = time.monotonic() + PATIENCE
    while world.domains(world.here) != {world.name: "running"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # whoever does it tells the domain's log


def goes_on(world: LibvirtWorld, marks: list[list[str]]) -> None:
    """The records are what they were, and the next save goes by them."""
    is_as_it_was(world)
    # One that was begun for a checkpoint that is not kept is in nobody's way.
    assert [[name for name in one if "new" not in name] for one in records(world)] == marks
    were = kept(world, TUE, "--since", MON)
    assert in_save(world, TUE) == were
    only_changes(world, TUE, MON)


def test_only_what_was_written_since(ready: LibvirtWorld) -> None:
    world = ready
    kept(world, MON)
    were = kept(world, TUE, "--since", MON)
    only_changes(world, TUE, MON)
    assert in_save(world, TUE) == were
    assert [len(one) for one in records(world)] == [2, 2]


@pytest.mark.matrix
def test_storage_that_is_full(ready: LibvirtWorld) -> None:
    """What was written finds no room: the guest goes on, and none of its writes has failed."""
    world = ready
    kept(world, MON)
    marks = records(world)
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--since", MON]
    argv += ["--tool", str(world.tool()), "--", world.name, f"{SMALL}/saved"]
    with small_storage(world), Points(world.here, BEFORE) as points:
        process = world.here.popen(argv, env=points.env)
        points.wait(BEFORE, lambda: process.poll() is None)
        for size in ("1M", "4k"):
            fill = f"cat /dev/zero | dd of={SMALL}/{size} bs={size} iflag=fullblock"
            world.here.run(["sh", "-c", fill], check=False)
        points.open()
        done = ended(process)
        assert done.status == 4, str(done)
        assert "No space left" in done.finished["message"], str(done)
        assert "room" in done.stderr, str(done)
        is_as_it_was(world)
    goes_on(world, marks)


@pytest.mark.matrix
@pytest.mark.parametrize("victim", ["", "entourage", "libvirtd", "both"])
def test_storage_that_hangs(ready: LibvirtWorld, victim: str) -> None:
    """Ctrl-C, or whoever is killed: the guest goes on while the storage still hangs."""
    world = ready
    kept(world, MON)
    marks = records(world)
    with frozen_under_changes(world) as process:
        if victim in {"entourage", "both"}:
            process.kill()
        if victim in {"libvirtd", "both"}:
            world.kill_daemon(world.here)
            world.start_daemon(world.here)
        if not victim:
            process.send_signal(signal.SIGINT)
        runs_again(world)
        lives(world)
        assert asked(world, "query-block-jobs") == []
        stdout, stderr = process.communicate(timeout=PATIENCE)
    if victim in {"", "libvirtd"}:
        assert process.returncode in {4, 5}, stdout + stderr
    goes_on(world, marks)


KILLED = [
    # Who is killed where, and whether there is a save then.
    ("entourage", BEFORE, False),
    ("entourage", "source.step-started.2", False),
    ("entourage", STANDS, False),
    ("agent", "source.step-started.2", False),
    ("libvirtd", "source.step-started.2", False),
    ("both", BEFORE, False),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("victim", "point", "saved"), KILLED)
def test_killed(
    ready: LibvirtWorld,
    victim: str,
    point: str,
    saved: bool,  # noqa: FBT001 - a case's
) -> None:
    world = ready
    kept(world, MON)
    marks = records(world)
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--since", MON]
    killed_at(world, [*argv, "--tool", str(world.tool()), "--", world.name, WED], victim, point)
    recovered(world)
    assert world.here.path(WED).exists() == saved
    goes_on(world, marks)


@pytest.mark.matrix
def test_a_guest_that_somebody_resumes_is_not_saved(ready: LibvirtWorld) -> None:
    """Its changes are not copied while it runs."""
    world = ready
    kept(world, MON)
    marks, point = records(world), "source.guest-stopped"
    argv = ["entourage", "save", "--json", *CHECKPOINT, "--since", MON]
    with Points(world.here, point) as points:
        command = [*argv, "--tool", str(world.tool()), "--", world.name, WED]
        process = world.here.popen(command, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        Libvirtd(world.here).virsh("resume", world.name)
        points.open()
        done = ended(process)
    assert "somebody has let the guest run on" in done.finished["message"], str(done)
    goes_on(world, marks)


@pytest.mark.matrix
def test_an_image_on_top_of_it(ready: LibvirtWorld) -> None:
    """A snapshot hides the record; merged down again, what was written meanwhile is in it."""
    world, over = ready, f"{SHARED}/over.qcow2"
    kept(world, MON)
    daemon = Libvirtd(world.here)
    where = ("--diskspec", f"vda,file={over}", "--diskspec", "vdb,snapshot=no")
    daemon.virsh("snapshot-create-as", world.name, "--disk-only", "--no-metadata", *where)
    world.seen.wait_progress(PATIENCE, world.address)
    refused = checkpoint(world, TUE, "--since", MON)
    assert refused.status == 3, str(refused)
    assert "is not known" in refused.refusals["block/vda"], str(refused)
    assert "block/vdb" not in refused.refusals
    daemon.virsh("blockcommit", world.name, "vda", "--active", "--pivot", "--wait")
    world.here.run(["rm", over])
    were = kept(world, TUE, "--since", MON)
    assert in_save(world, TUE) == were


@pytest.mark.matrix
def test_a_disk_that_was_attached_since(ready: LibvirtWorld) -> None:
    """It is copied whole beside the changes of the others, and later its changes are.

    An I/O thread has it.
    """
    world, path = ready, f"{SHARED}/d2.raw"
    kept(world, MON)
    world.here.run(["sh", "-c", f"head -c 1M /dev/urandom >{path}; truncate -s 8M {path}"])
    daemon = Libvirtd(world.here)
    daemon.virsh("iothreadadd", world.name, "1")
    how = ("--subdriver", "raw", "--cache", "none", "--targetbus", "virtio", "--iothread", "1")
    daemon.virsh("attach-disk", world.name, path, "vdc", "--driver", "qemu", *how)
    try:
        kept(world, TUE, "--since", MON)
        only_changes(world, TUE, MON)
        kept(world, WED, "--since", TUE)
        only_changes(world, WED, TUE)
        whole, changed = (info(world, f"{where}/disks/vdc") for where in (TUE, WED))
        assert "full-backing-filename" not in whole
        assert changed["full-backing-filename"] == f"{TUE}/disks/vdc"
        are = {digest(world, image) for image in (f"{TUE}/disks/vdc", f"{WED}/disks/vdc")}
        assert are == {digest(world, path, "raw")}
    finally:
        daemon.virsh("detach-disk", world.name, "vdc")
        daemon.virsh("iothreaddel", world.name, "1", check=False)
        world.here.run(["rm", path])


@pytest.mark.matrix
def test_three_since_each_other(ready: LibvirtWorld) -> None:
    """And a last one as it ends. The last of this file: its guest forgets what it has done."""
    world = ready
    were = {MON: kept(world, MON)}
    for before, directory in [(MON, TUE), (TUE, WED)]:
        were[directory] = kept(world, directory, "--since", before)
        only_changes(world, directory, before)
    were[SENT] = kept(world, SENT, "--since", WED, "--compress")
    only_changes(world, SENT, WED)
    for directory, digests in were.items():
        assert in_save(world, directory) == digests
    [shown] = json.loads(world.here.run(["entourage", "saved", "--json", WED]).stdout)
    assert shown["since"] == TUE, shown
    planned = save(world, THU, "--since", WED, "--dry-run")
    assert planned.status == 0, str(planned)
    done = save(world, THU, "--since", WED)
    assert done.status == 0, str(done)
    only_changes(world, THU, WED)
    assert in_save(world, THU) == on_disk(world)
    world.here.run(["rm", *(disk.path for disk in DISKS)])
    went_on(world, restore(world, THU))
    # It is another QEMU, which knows nothing of what was written before.
    unknown = checkpoint(world, f"{SHARED}/saved-fri", "--since", WED)
    assert unknown.status == 3, str(unknown)
    assert "is not known" in reasons(unknown), str(unknown)
    for directory, digests in were.items():
        went_back(world, directory, digests)
