"""The storage of a save stops answering midway: nobody waits for it for ever."""

from __future__ import annotations

import platform
import shutil
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.host import Host, HostProcess
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE
from tests.e2e.saves import KEPT, names, run
from tests.e2e.traced import Traced
from tests.e2e.world import World

SLOW = "/mnt/hangs"
DIR = f"{SLOW}/saved"
IMAGE = "/srv/hangs.img"
BASE = "/srv/hangs-base"
IN_DOUBT = 6  # an exit status

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="see tests/e2e/traced.py"),
    pytest.mark.skipif(
        shutil.which("fuse2fs") is None or not Path("/dev/fuse").exists(),
        reason="there is no fuse2fs, or no FUSE",
    ),
]


class Hanging:
    """A file system in a process, which stops answering when that is stopped.

    Args:
        host: Where it is mounted.
        process: The file system's.
    """

    def __init__(self, host: Host, process: HostProcess) -> None:
        self.host = host
        self._traced = Traced(process.pid)
        self._frozen = False

    def freeze(self) -> None:
        """From here on it does not answer.

        It has taken no request then: who waits for one that it has taken cannot even be killed
        (Linux, ``fs/fuse/dev.c``, ``request_wait_answer``), so that no command would end.
        """
        deadline = time.monotonic() + PATIENCE
        while not self._traced.stop():
            self._traced.go_on()
            assert time.monotonic() < deadline
            time.sleep(0.001)  # it tells nobody when it has answered
        self._frozen = True

    def thaw(self) -> None:
        """It answers again, also what was asked meanwhile."""
        if self._frozen:
            self._traced.go_on()
            self._frozen = False


@contextmanager
def hanging(host: Host) -> Generator[Hanging]:
    """Have such a file system on a host."""
    host.run(["truncate", "-s", "512M", IMAGE])
    host.run(["mkfs.ext4", "-q", IMAGE])
    host.run(["mkdir", "-p", SLOW])
    process = host.popen(["fuse2fs", "-f", "-s", IMAGE, SLOW])
    deadline = time.monotonic() + PATIENCE
    while host.run(["mountpoint", "-q", SLOW], check=False).returncode:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)  # it tells nobody
    storage = Hanging(host, process)
    try:
        yield storage
    finally:
        storage.thaw()
        host.run(["umount", SLOW])
        process.communicate(timeout=PATIENCE)
        host.run(["rmdir", SLOW])
        host.path(IMAGE).unlink()


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest whose disks are on its host, on storage that answers."""
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen, "saved5", disks=("/srv/s5.raw", "/srv/s5b.raw"))
        # What umount(8) keeps its lock in stays.
        world.kept = (*world.kept, *KEPT, IMAGE, f"{BASE}*", "/run/mount")  # type: ignore[misc] - of this one
        yield world
        world.end()
        for host in (world.here, world.there):
            host.run(["sh", "-c", f"rm -rf {' '.join(KEPT)} {BASE}"])


@pytest.fixture
def storage(world: World) -> Generator[Hanging]:
    world.lives()
    with hanging(world.here) as storage:
        yield storage


def interrupted(world: World, storage: Hanging, point: str, *words: str) -> int:
    """Ctrl-C, once the storage hangs: the command ends all the same. Its exit status."""
    with Points(world.here, point) as points:
        process = world.here.popen(["entourage", *words], env=points.env)
        points.wait(point, lambda: process.poll() is None)
        storage.freeze()
        points.open()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode in {4, 5, IN_DOUBT}, said
    return process.returncode


def settled(world: World) -> None:
    """Recover, once the storage answers: what works on it still has to hear of that."""
    deadline = time.monotonic() + PATIENCE
    while (done := world.here.run(["entourage", "recover"], check=False)).returncode:
        assert done.returncode in {1, 5, IN_DOUBT}, done
        assert time.monotonic() < deadline, done
        time.sleep(0.1)  # it tells nobody


@pytest.mark.parametrize("point", ["source.step-done.1", "source.guest-stopped"])
def test_a_save_is_given_up(world: World, storage: Hanging, point: str) -> None:
    """The guest goes on while the storage hangs; later, nothing is left of the save."""
    status = interrupted(world, storage, point, "save", "--", world.name, DIR)
    assert status in {4, 5}, status
    world.lives()
    storage.thaw()
    settled(world)
    assert names(world.here, SLOW) == ["lost+found"]
    world.lives()


def test_a_restore_is_given_up(world: World, storage: Hanging) -> None:
    """No guest runs while the storage hangs; later, it is restored."""
    assert run(world, "save", "--", world.name, DIR).status == 0
    status = interrupted(world, storage, "source.step-started.2", "restore", "--", DIR)
    assert status in {4, IN_DOUBT}
    assert not world.answers()
    storage.thaw()
    settled(world)
    assert names(world.here, DIR) == ["manifest.json", "memory"]
    done = run(world, "restore", "--", DIR)
    assert done.status == 0, str(done)
    world.lives()


def test_a_guest_does_not_wait_for_its_changes(world: World, storage: Hanging) -> None:
    """It stands still while they are copied; where the storage hangs then, it goes on by itself."""
    whole = ("save", "--checkpoint", "--allow-tpm-rollback")
    assert run(world, *whole, "--", world.name, BASE).status == 0
    changes = [*whole, "--since", BASE, "--", world.name, DIR]
    with Points(world.here, "source.guest-stopped") as points:
        process = world.here.popen(["entourage", *changes], env=points.env)
        points.wait("source.guest-stopped", lambda: process.poll() is None)
        storage.freeze()
        points.open()
        world.lives()  # and nobody has interrupted the command
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode in {4, 5}, said
    world.lives()
    storage.thaw()
    settled(world)
    assert names(world.here, SLOW) == ["lost+found"]
    # What was written is known as before.
    done = run(world, *changes)
    assert done.status == 0, str(done)
    world.lives()
