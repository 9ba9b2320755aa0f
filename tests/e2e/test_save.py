"""A guest is saved into a directory and restored: here, there, and in one place only."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run, far
from tests.e2e.shared import SHARED, shared_storage
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


def test_twice_in_a_row(ready: World) -> None:
    world = ready
    tool = world.tool()
    saved = run(world, "save", "--tool", str(tool), "--", world.name, DIR)
    assert saved.status == 0, str(saved)
    assert not saved.of("warned"), str(saved)
    assert [call for call in tool.calls() if call[1] == "fpga"] == [
        ["-type", "fpga", "-step", step, "-host", DIR, "-domname", world.name]
        for step in ("1", "2", "3")
    ]
    is_gone(world)
    refused = world.here.run(["entourage", "start", world.name], check=False)
    assert refused.returncode == 3
    assert f"entourage restore {DIR}" in refused.stderr
    went_on(world, restore(world))
    again = restore(world)
    assert again.status == 3, str(again)
    assert f"it was restored on {world.here.name}" in reasons(again), str(again)
    assert save(world, OTHER).status == 0
    is_gone(world, OTHER)
    went_on(world, restore(world, OTHER))


def test_on_the_other_host(ready: World) -> None:
    world = ready
    assert save(world).status == 0
    shown = json.loads(world.there.run(["entourage", "saved", "--json", SHARED]).stdout)
    assert [(one["domain"], one["host"], one["against"]) for one in shown] == [
        (world.name, world.here.name, [])
    ]
    done = restore(world, host=world.there)
    assert done.status == 0, str(done)
    world.here, world.there = world.there, world.here
    world.lives()
    lost = restore(world, host=world.there)
    assert lost.status == 3, str(lost)
    assert f"it was restored on {world.here.name}" in reasons(lost), str(lost)
    world.moved(world.migrate("--tool", str(world.tool())))


def test_onto_another_host(ready: World) -> None:
    """By the agent there; what its way is cut off from is no save."""
    world = ready
    place = f"{world.there.name}:{FAR}"
    done = save(world, place)
    assert done.status == 0, str(done)
    assert not world.answers()
    assert names(world.there, FAR) == ["manifest.json", "memory"]
    refused = world.here.run(["entourage", "start", world.name], check=False)
    assert refused.returncode == 3
    assert place in refused.stderr
    done = restore(world, FAR, host=world.there)
    assert done.status == 0, str(done)
    world.here, world.there = world.there, world.here
    world.lives()
    left = world.there.wait_clean(world.clean[world.there.name], ignore=world.kept)
    assert not left, str(left)


@pytest.mark.parametrize("host", ["", pytest.param("there", marks=pytest.mark.matrix)])
def test_compressed_and_encrypted(ready: World, host: str) -> None:
    world = ready
    made = world.here.run(["age-keygen", "-o", "/root/key"])
    recipient = made.stderr.split()[-1]
    world.there.path("/root/key").write_bytes(world.here.path("/root/key").read_bytes())
    place = f"{world.there.name}:{FAR}" if host else DIR
    directory, where = (FAR, world.there) if host else (DIR, world.here)
    done = save(world, place, "--compress", "--encrypt", recipient)
    assert done.status == 0, str(done)
    memory = where.path(f"{directory}/memory")
    assert memory.read_bytes()[:18] == b"age-encryption.org"
    assert memory.stat().st_size < (150 << 20)
    refused = restore(world, directory, host=where)
    assert refused.status == 2, str(refused)
    assert "--identity" in refused.stderr
    where.run(["age-keygen", "-o", "/root/other"])
    wrong = restore(world, directory, "--identity", "/root/other", host=where)
    assert wrong.status == 2, str(wrong)
    assert "no identity matched" in wrong.stderr, str(wrong)
    done = restore(world, directory, "--identity", "/root/key", host=where)
    assert done.status == 0, str(done)
    if host:
        world.here, world.there = world.there, world.here
    world.lives()


CUT = [
    ("StreamLocalBindMask", "source.guest-stopped", "guest"),
    pytest.param("StreamLocalBindMask", "source.step-started.1", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage save", "source.step-started.2", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage agent", "target.after.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("what", "point", "left"), CUT)
def test_cut_off_on_its_way_to_another_host(ready: World, what: str, point: str, left: str) -> None:
    world = ready
    place, at_target = f"{world.there.name}:{FAR}", point.startswith("target")
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, place]
    with Points(world.there if at_target else world.here, point) as points:
        remote = far(**points.env) if at_target else far()
        env = {} if at_target else points.env
        argv[2:2] = ["--remote-command", remote]
        process = world.here.popen(argv, env=env)
        points.wait(point, lambda: process.poll() is None)
        host = world.there if at_target else world.here
        host.run(["pkill", "-KILL", "-f", what])
        points.open()
        process.communicate(timeout=PATIENCE)
    for host in (world.here, world.there):
        recovered = host.run(["entourage", "recover"], check=False, timeout=PATIENCE)
        assert recovered.returncode == 0, recovered
    assert world.there.path(FAR).exists() == (left == "save")
    if left == "guest":
        world.is_clean(world.there)
        assert not [name for name in names(world.here, "/run/entourage") if ".sock" in name]
    if left == "save":
        assert not world.answers()
        assert restore(world, FAR, host=world.there).status == 0
        world.here, world.there = world.there, world.here
    world.lives()


@pytest.mark.matrix
def test_its_source_is_gone_for_good(ready: World) -> None:
    """The save on another host stands, and nobody confirms that it was let go of."""
    world = ready
    place = f"{world.there.name}:{FAR}"
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, place]
    with Points(world.here, "source.go-sent") as points:
        process = world.here.popen(argv, env=points.env)
        points.wait("source.go-sent", lambda: process.poll() is None)
        world.here.run(["pkill", "-KILL", "-f", "entourage save"])
        points.open()
        process.communicate(timeout=PATIENCE)
    silent = world.there.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert silent.returncode == 5, silent
    refused = restore(world, FAR, host=world.there)
    assert refused.status == 1, str(refused)
    assert "is not settled here" in refused.stderr
    fenced = ["entourage", "recover", world.name, "--target-is-fenced"]
    assert world.there.run(fenced, check=False, timeout=PATIENCE).returncode == 0
    assert restore(world, FAR, host=world.there).status == 0
    assert world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE).returncode == 0
    world.here, world.there = world.there, world.here
    world.lives()
    world.is_clean(world.there)


@pytest.mark.matrix
def test_a_copy_of_the_directory(ready: World) -> None:
    world = ready
    assert save(world).status == 0
    world.here.run(["cp", "-a", DIR, OTHER])
    refused = restore(world, OTHER)
    assert refused.status == 2, str(refused)
    assert "--only-copy" in refused.stderr
    went_on(world, restore(world, OTHER, "--only-copy"))


@pytest.mark.matrix
def test_a_paused_guest_stays_paused(ready: World) -> None:
    world = ready
    assert save(world).status == 0
    done = restore(world, DIR, "--paused")
    assert done.status == 0, str(done)
    [shown] = json.loads(world.here.run(["entourage", "list", "--json"]).stdout)
    assert shown["state"] == "paused"
    assert save(world, OTHER).status == 0
    done = restore(world, OTHER)
    assert done.status == 0, str(done)
    [shown] = json.loads(world.here.run(["entourage", "list", "--json"]).stdout)
    assert shown["state"] == "paused"
    qmp(world, "cont")
    world.lives()


def test_what_has_changed_is_refused(ready: World) -> None:
    """A disk that was written to, memory with a bit flipped, rights that let others in."""
    world = ready
    assert save(world).status == 0
    here = world.here
    disk, memory = here.path(world.disks[0].path), here.path(f"{DIR}/memory")
    was = disk.stat()
    here.run(["touch", world.disks[0].path])
    refused = restore(world)
    assert refused.status == 3, str(refused)
    assert "was written to" in refused.refusals["block/disk0"], str(refused)
    os.utime(disk, ns=(was.st_mtime_ns, was.st_mtime_ns))
    flip(memory)
    refused = restore(world, DIR, "--only-copy")
    assert refused.status == 3, str(refused)
    assert "is damaged" in refused.refusals["memory"], str(refused)
    flip(memory)
    memory.chmod(0o666)
    refused = restore(world)
    assert refused.status == 2, str(refused)
    assert "others than root may write" in refused.stderr
    memory.chmod(0o600)
    went_on(world, restore(world, DIR, "--only-copy"))


def test_all_at_shutdown_and_at_boot(ready: World) -> None:
    """As the unit does it: saved and restored; what cannot be saved is ended."""
    world = ready
    tool = ("--tool", str(world.tool()))
    done = run(world, "save", "--all", "--at-shutdown", *tool, OTHER)
    assert done.status == 2, str(done)  # what it is on may not be mounted
    world.here.run(["mkdir", OTHER])
    done = run(world, "save", "--all", "--at-shutdown", *tool, OTHER)
    assert done.status == 0, str(done)
    assert names(world.here, OTHER) == [world.name]
    is_gone(world, f"{OTHER}/{world.name}")
    done = run(world, "restore", "--all", *tool, OTHER)
    assert done.status == 0, str(done)
    assert names(world.here, OTHER) == []
    world.lives()
    assert run(world, "restore", "--all", *tool, OTHER).status == 0  # nothing is to be restored
    world.here.run(["mkdir", "-p", f"{OTHER}/{world.name}/mine"])
    done = run(world, "save", "--all", "--at-shutdown", "--timeout", "1s", *tool, OTHER)
    assert done.status == 4, str(done)
    assert "is there already" in reasons(done), str(done)
    assert not world.answers()
    world.restart()


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def test_no_room(ready: World) -> None:
    """A disk that fills up while memory is written: the guest goes on, and nothing is left."""
    world = ready
    with Points(world.here, "target.after.flush-open") as points:
        argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
        process = world.here.popen(argv, env=points.env)
        points.wait("target.after.flush-open", lambda: process.poll() is None)
        filler = f"{SHARED}/filler"
        space = os.statvfs(world.here.path(SHARED))
        most = space.f_bavail * space.f_frsize - (16 << 20)
        world.here.run(["fallocate", "-l", str(most), filler])
        points.open()
        stdout, stderr = process.communicate(timeout=PATIENCE)
        world.here.run(["rm", filler])
    done = Run(process.returncode, stdout, stderr)
    assert done.status == 4, str(done)
    assert "no space left" in done.finished["message"].lower(), str(done)
    assert not partial(world)
    assert not world.here.path(DIR).exists()
    world.lives()


KILLED = [
    # Who is killed where, and what there is then: a save, or a guest that runs.
    ("entourage", "source.step-started.2", "guest"),
    ("agent", "target.after.flush-go", "save"),
    pytest.param("entourage", "source.after.flush-armed", "guest", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "guest", marks=pytest.mark.matrix),
    pytest.param("agent", "target.after.let-run", "save", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), KILLED)
def test_killed_while_it_is_saved(ready: World, victim: str, point: str, left: str) -> None:
    world = ready
    argv = ["entourage", "save", "--json", "--tool", str(world.tool()), "--", world.name, DIR]
    killed_at(world, argv, victim, point)
    recovered = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert recovered.returncode == 0, recovered
    assert world.here.path(DIR).exists() == (left == "save"), recovered
    assert not partial(world)
    if left == "save":
        is_gone(world)
        went_on(world, restore(world))
    world.lives()


RESTORED = [
    ("entourage", "source.after.disarm-deadman", "save"),
    ("agent", "target.after.flush-go", "guest"),
    pytest.param("entourage", "source.after.flush-armed", "save", marks=pytest.mark.matrix),
    pytest.param("agent", "target.before.flush-go", "save", marks=pytest.mark.matrix),
    pytest.param("entourage", "source.go-sent", "guest", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("victim", "point", "left"), RESTORED)
def test_killed_while_it_is_restored(ready: World, victim: str, point: str, left: str) -> None:
    world = ready
    assert save(world).status == 0
    argv = ["entourage", "restore", "--json", "--tool", str(world.tool()), "--", DIR]
    killed_at(world, argv, victim, point)
    if point == "source.after.disarm-deadman":
        lost = restore(world, host=world.there)
        assert f"is being restored on {world.here.name}" in reasons(lost), str(lost)
    recovered = world.here.run(["entourage", "recover"], check=False, timeout=PATIENCE)
    assert recovered.returncode == 0, recovered
    if left == "save":
        assert names(world.here, DIR) == ["manifest.json", "memory"]
        went_on(world, restore(world))
    world.lives()
    assert json.loads(world.here.path(f"{DIR}/claim.json").read_text())["restored"]


def killed_at(world: World, argv: list[str], victim: str, point: str) -> None:
    """Run a command, and kill it or its agent at a point of its way."""
    with Points(world.here, point) as points:
        process = world.here.popen(argv, env=points.env)
        points.wait(point, lambda: process.poll() is None)
        if victim == "agent":
            world.here.run(["pkill", "-KILL", "-f", "entourage agent"])
        else:
            process.kill()
        points.open()
        process.communicate(timeout=PATIENCE)
