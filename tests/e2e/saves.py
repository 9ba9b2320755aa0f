"""A guest that is saved and restored, and what the tests of that do with it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run
from tests.e2e.shared import SHARED, filled, shared_storage
from tests.e2e.world import EMULATED, World, qmp

DIR = f"{SHARED}/saved"
OTHER = f"{SHARED}/again"
FAR = "/srv/far"
KEPT = (
    "/run/entourage/afar*",
    "/var/lib/entourage/afar*",
)
FPGA = """
[[external]]
id = "fpga0"
type = "fpga"
"""


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest with one disk on shared storage, and one on its host alone."""
    with shared_storage(lab, "1G"), Observer.start(lab) as seen:
        disks = (f"{SHARED}/d0.raw", f"{SHARED}/d1.raw")
        world = World.begin(lab, seen, "saved1", disks=disks, extra=EMULATED + FPGA)
        world.kept = (*world.kept, *KEPT)  # type: ignore[misc] - of this one
        yield world
        world.end()
        # Other modules have the same hosts, and know nothing of these.
        for host in (world.here, world.there):
            host.run(["sh", "-c", f"rm -rf {' '.join(KEPT)}"])


@pytest.fixture
def ready(world: World) -> Generator[World]:
    """The same, with nothing saved, before and after."""
    world.lives()
    yield world
    for host in (world.here, world.there):
        host.run(["rm", "-rf", DIR, OTHER, FAR, "/root/key", "/root/other"])


def run(world: World, *words: str, host: Host | None = None) -> Run:
    """Run a command that prints events to its end."""
    argv = ["entourage", words[0], "--json", *words[1:]]
    done = (host or world.here).run(argv, check=False, timeout=PATIENCE)
    return Run(done.returncode, done.stdout, done.stderr)


def save(world: World, directory: str = DIR, *options: str) -> Run:
    tool = world.tool()
    return run(world, "save", "--tool", str(tool), *options, "--", world.name, directory)


def restore(world: World, directory: str = DIR, *options: str, host: Host | None = None) -> Run:
    tool = world.tool()
    return run(world, "restore", "--tool", str(tool), *options, "--", directory, host=host)


def reasons(done: Run) -> str:
    """All that speaks against it."""
    return "; ".join(one["reason"] for one in done.of("device-refused"))


def is_gone(world: World, directory: str = DIR) -> None:
    """The guest has ended, and is in that directory; nothing else is left of it."""
    assert not world.answers()
    left = world.here.wait_clean(
        world.clean[world.here.name], ignore=(*world.kept, f"{directory}*")
    )
    assert not left, str(left)
    assert names(world.here, directory) == ["manifest.json", "memory"]
    assert not partial(world)


def partial(world: World) -> list[str]:
    """What is left of saves that were not whole."""
    return [name for name in names(world.here, SHARED) if name.endswith(".partial")]


def names(host: Host, directory: str) -> list[str]:
    return sorted(path.name for path in host.path(directory).iterdir())


def went_on(world: World, done: Run) -> None:
    """The guest goes on as if nothing had been."""
    assert done.status == 0, str(done)
    assert done.finished["outcome"] == "moved", str(done)
    world.lives()


def is_damaged(restoring: Callable[..., Run], device: str) -> None:
    """TEST alone shows it; without that, all goes back before the guest is let run."""
    shown = restoring("--dry-run")
    assert shown.status == 3, str(shown)
    assert "is damaged" in shown.refusals[device], str(shown)
    back = restoring()
    assert back.status == 4, str(back)
    assert back.finished["outcome"] == "rolled-back", str(back)
    assert f"{device} on " in back.stderr, str(back)
    assert "is damaged" in back.stderr, str(back)


def flip(path: Path, at: int | None = None) -> None:
    """Flip a bit of a file, in its middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 if at is None else at)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def killed_at(world: World, argv: list[str], victim: str, point: str) -> None:
    """Run a command, and kill it, its agent or both at a point of its way."""
    with Points(world.here, point) as points:
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        if victim != "agent":
            process.kill()
        if victim != "entourage":
            world.here.run(["pkill", "-KILL", "-f", "entourage agent"])
        points.open()
        process.communicate(timeout=PATIENCE)


def save_without_room(
    host: Host, argv: list[str], wants_room: Callable[[], bool] | None, *, killed: bool = False
) -> Run:
    """Run a command that saves, and have too little room for memory once it has begun.

    What was written is removed only after QEMU has stopped the guest, which has no room either.

    Args:
        host: Where the guest runs; its disks are where it is saved.
        argv: The command.
        wants_room: Whether QEMU has stopped the guest; None: it stands still already.
        killed: The agent is killed then, and leaves what was written.
    """
    begun, removes = "target.after.flush-open", "target.before.kill-target"
    # Who stands at a point says nothing, and to fill a disk may take longer than that is borne.
    patient = "/root/patient.toml"
    host.write_files({patient: '[migration]\nlink-silence = "60s"\n'})
    argv = [*argv[:2], "--config", patient, *argv[2:]]
    try:
        with Points(host, begun, *([removes] if wants_room else [])) as points:
            process = host.popen(argv, env=points.env)
            points.wait(begun, lambda: process.poll() is None)
            with filled(host, but=16 << 20):
                points.pass_on(begun)
                if wants_room is not None:
                    points.wait(removes, lambda: process.poll() is None)
                    with filled(host):
                        until(wants_room)
                        if killed:
                            host.run(["pkill", "-KILL", "-f", "entourage agent"])
                            process.wait(timeout=PATIENCE)  # it has the guest go on, in vain
                            until(wants_room)
                    points.open()
                stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        host.run(["rm", patient])
    return Run(process.returncode, stdout, stderr)


def wants_room(world: World) -> bool:
    """Whether QEMU has stopped the guest, which cannot write."""
    return qmp(world, "query-status")["status"] == "io-error"


def until(seen: Callable[[], bool]) -> None:
    """Ask until it is so: nobody tells a test."""
    deadline = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cut_power(world: World, point: str, words: Sequence[str]) -> None:
    """Cut the power of the guest's host at a point of a command's way; it boots again."""
    # What was sent may never have been heard: then the guest belongs where it was.
    stand = [point, *(["target.after.flush-go"] if point == "source.go-sent" else [])]
    with Points(world.here, *stand) as points:
        process = world.here.popen(["entourage", *words], env=points.env)
        for one in stand:
            points.wait(one, lambda: process.poll() is None)
        process.send_signal(signal.SIGSTOP)  # who stands at the point would go on now
        world.here.run(["pkill", "-STOP", "-f", "entourage agent"], check=False)
        points.let_go()
        world.here.power_cut()
        process.communicate(timeout=PATIENCE)
    world.here.power_on()
    world.booted(world.here)


def recovered(world: World) -> None:
    """Recover what was killed: everything is settled by that."""
    done = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert done.returncode == 0, done


def out_of_the_way(world: World) -> None:
    """Do what the refusals say: what the guest was before it goes back is taken away."""
    [state] = [path.name for path in world.here.path("/var/lib/entourage/domains").iterdir()]
    away = [f"/var/lib/entourage/domains/{state}", *(disk.path for disk in world.disks)]
    world.here.run(["rm", "-r", *away])


def writes_on(world: World) -> None:
    """Wait until the guest has written to each of its disks once more.

    After a restore, its words go by a connection that is not what it was.
    """
    began = world.guest.status(timeout=PATIENCE).disks
    deadline = time.monotonic() + PATIENCE
    while not writes_more(world, began):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def writes_more(world: World, began: dict[str, int]) -> bool:
    """Whether the guest has written to each of its disks since."""
    now = world.guest.status(timeout=PATIENCE).disks
    return all(now[disk] > number for disk, number in began.items())
