"""Domains of other kinds than the other tests' PVH guest: what of them moves, and what not."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from lab.xen.hosts import XenHost
from tests.e2e.run import Run
from tests.e2e.xen.world import NAME, PATIENCE, SHARED, XenWorld

OTHER = "other"
LOCAL = f"/srv/{OTHER}.raw"
QCOW2 = f"/srv/{OTHER}.qcow2"
CONSOLE = f"/var/log/xen/console/guest-{OTHER}*.log"


def config(kind: str, *disks: str, more: Sequence[str] = ()) -> str:
    listed = ", ".join(f'"{disk}"' for disk in disks)
    return "\n".join(
        [
            f'name = "{OTHER}"',
            f'type = "{kind}"',
            "memory = 128",
            "vcpus = 1",
            'kernel = "/srv/guest/vmlinuz"',
            'ramdisk = "/srv/guest/initrd"',
            'cmdline = "console=hvc0 quiet"',
            'tsc_mode = "native"',
            f"disk = [ {listed} ]",
            *more,
            "",
        ]
    )


@contextmanager
def other(world: XenWorld, text: str) -> Generator[None]:
    """Another domain beside the guest, on the same host; nothing is left of it."""
    host = world.here
    host.write(f"/etc/xen/{OTHER}.cfg", text)
    host.run(["truncate", "-s", "4M", LOCAL])
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", QCOW2, "4M"])
    try:
        host.run(["xl", "create", f"/etc/xen/{OTHER}.cfg"], timeout=PATIENCE)
        yield
    finally:
        for each in (world.here, world.there):
            each.run(["xl", "destroy", OTHER], check=False)
            each.run(["sh", "-c", f"rm -f {LOCAL} {QCOW2} {CONSOLE}"])


@contextmanager
def without_shared(world: XenWorld) -> Generator[None]:
    """The guest of the other tests has the shared disk, and lets go of it: xl lets one have it."""
    world.here.run(["xl", "block-detach", NAME, "xvdb"], timeout=PATIENCE)
    try:
        yield
    finally:
        world.here.run(["xl", "block-attach", NAME, raw("xvdb", SHARED)], timeout=PATIENCE)


def ticks(host: XenHost, since: int = 0) -> int:
    """The last tick of the other one on a host's console, once there is a later one."""
    deadline = time.monotonic() + PATIENCE
    show = f"ls -t {CONSOLE} 2>/dev/null | head -n1 | xargs -r tail -n1"
    while True:
        words = host.run(["sh", "-c", show], check=False).stdout.split()
        if len(words) == 6 and words[:1] == ["boot"] and int(words[3]) > since:
            assert words[5] == "written", words
            return int(words[3])
        assert time.monotonic() < deadline, words
        time.sleep(0.5)  # the guest tells nobody but its console


def moved(world: XenWorld, *options: str) -> Run:
    command = ["entourage", "migrate", "--json", *options, OTHER, world.there.name]
    process = world.here.popen(command)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return Run(process.returncode, stdout, stderr)


def raw(vdev: str, path: str) -> str:
    return f"format=raw,vdev={vdev},access=rw,target={path}"


def test_a_pv_guest_is_refused(world: XenWorld) -> None:
    """Debian's Xen has no shadow paging: xl would fail once the guest is to suspend."""
    before = world.lives()
    with other(world, config("pv", raw("xvda", LOCAL))):
        ticks(world.here)
        run = moved(world)
        assert run.status == 3, run
        assert "shadow paging" in run.refusals["domain"], run
        last = ticks(world.here)
        ticks(world.here, last)  # and it runs on
    world.stayed(before)


def test_a_local_qcow2_disk_is_refused(world: XenWorld) -> None:
    before = world.lives()
    with other(world, config("pvh", f"format=qcow2,vdev=xvda,access=rw,target={QCOW2}")):
        last = ticks(world.here)
        run = moved(world)
        assert run.status == 3, run
        assert set(run.refusals) == {"block/xvda"}, run
        assert "raw" in run.refusals["block/xvda"], run
        ticks(world.here, last)
    world.stayed(before)


def test_an_hvm_guest_moves_with_a_shared_disk_and_not_with_a_local_one(world: XenWorld) -> None:
    """Its device model may write late to the disk that it emulates: that is not copied."""
    before = world.lives()
    display = ('vga = "none"', "vnc = 0", "sdl = 0")
    with other(world, config("hvm", raw("xvda", LOCAL), more=display)):
        ticks(world.here)
        run = moved(world)
        assert run.status == 3, run
        assert "emulates it" in run.refusals["block/xvda"], run
    with (
        without_shared(world),
        other(world, config("hvm", raw("xvda", SHARED), more=display)),
    ):
        last = ticks(world.here)
        run = moved(world)
        assert run.status == 0, run
        assert run.finished["outcome"] == "moved", run
        ticks(world.there, last)
        assert OTHER not in world.domains(world.here)
    world.stayed(before)
