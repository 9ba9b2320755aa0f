"""QEMU and swtpm run as a user without privileges, who has the files for as long as they run."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.guest import Disk, domain_toml
from lab.host import Host
from lab.hosts import QEMU_USER, Lab
from lab.observer import Observer
from tests.e2e.dying import LANDED, PRE_COPY
from tests.e2e.shared import SHARED, shared_storage
from tests.e2e.world import World, qmp

SETTINGS = "/etc/entourage/entourage.toml"
USERS = "/etc/passwd"
OWN = Disk("/srv/own.qcow2", "qcow2")
SHARED_DISK = Disk(f"{SHARED}/disk0.raw")
FREE = "10.77.0.105"
UUID = "5d925376-e060-41de-92a1-0a2217d71daf"
ROOT = 0
OTHER = "nobody"  # every host has one, of another number than QEMU's
SLOWLY = ("--bandwidth", "20MiB/s")


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    with shared_storage(lab), Observer.start(lab) as seen:
        world = World.begin(lab, seen, disks=[SHARED_DISK, OWN])
        yield world
        world.end()


@contextmanager
def changed(host: Host, path: str, old: str, new: str) -> Generator[None]:
    """A file of the host's says something else for a while."""
    file = host.path(path)
    before = file.read_text()
    assert old in before
    file.write_text(before.replace(old, new))
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def runs_as(host: Host, user: str) -> Generator[None]:
    """The host's settings name a user."""
    with changed(host, SETTINGS, "[agent]\n", f'[qemu]\nuser = "{user}"\n[agent]\n'):
        yield


def number(host: Host, user: str = QEMU_USER) -> int:
    """The id of a user on a host."""
    [line] = [
        line for line in host.path(USERS).read_text().splitlines() if line.startswith(f"{user}:")
    ]
    return int(line.split(":")[2])


def owner(host: Host, path: str) -> int:
    return host.path(path).stat().st_uid


def processes(world: World, host: Host) -> dict[str, dict[str, str]]:
    """What the kernel says of the domain's programs on a host, by their names."""
    found: dict[str, dict[str, str]] = {}
    for text in host.leftovers(world.clean[host.name]).processes:
        pid, program = text.split()[:2]
        if Path(program).name in {"qemu-system-x86_64", "swtpm"}:
            status = host.run(["cat", f"/proc/{pid}/status"]).stdout
            pairs = (line.partition(":")[::2] for line in status.splitlines())
            found[Path(program).name] = {name: value.strip() for name, value in pairs}
    assert sorted(found) == ["qemu-system-x86_64", "swtpm"]
    return found


def is_unprivileged(world: World, host: Host, user: str = QEMU_USER) -> None:
    """Both programs are the user's, and have nothing of root's; so are the files."""
    uid = number(host, user)
    for name, status in processes(world, host).items():
        assert set(status["Uid"].split()) == {str(uid)}, name
        assert "0" not in status["Groups"].split(), name
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0, (name, kind)
        assert status["NoNewPrivs"] == "1", name
    assert owner(host, OWN.path) == uid
    for path in state(host).glob("tpm-tpm0/*"):
        assert path.stat().st_uid == uid, path


def state(host: Host) -> Path:
    [directory] = host.path("/var/lib/entourage/domains").iterdir()
    return directory


def test_it_has_no_privileges(world: World) -> None:
    is_unprivileged(world, world.here)
    directory = state(world.here)
    assert directory.stat().st_uid == ROOT
    assert directory.stat().st_mode & 0o777 == 0o710
    for name in ("domain.json", "owners.json"):
        assert (directory / name).stat().st_uid == ROOT
        assert (directory / name).stat().st_mode & 0o777 == 0o600
    for path in world.here.path("/run/entourage/q").glob("*/*.sock"):
        assert path.stat().st_mode & 0o777 == 0o600, path
        # The monitors are root's: a QEMU that has been taken over reaches no other one's.
        expected = number(world.here) if path.name == "swtpm.sock" else ROOT
        assert path.stat().st_uid == expected, path


def test_there_and_back(world: World) -> None:
    for _ in range(2):
        with world.under(LANDED) as under:
            under.wait(LANDED)
            is_unprivileged(world, world.there)
            [key] = world.there.path("/run/entourage/q").glob("*/psk/keys.psk")
            assert key.stat().st_uid == number(world.there)
            assert key.stat().st_mode & 0o777 == 0o600
            assert owner(world.here, OWN.path) == number(world.here)
            run = under.end()
        world.moved(run)
        is_unprivileged(world, world.here)


@pytest.mark.matrix
def test_a_disk_that_is_kept_is_given_back(world: World) -> None:
    run = world.migrate("--keep-source-disks")
    assert run.status == 0, str(run)
    assert owner(world.here, OWN.path) == ROOT
    world.here.path(OWN.path).unlink()
    world.arrived()
    world.moved(world.migrate())


@pytest.mark.matrix
def test_a_rollback_gives_back(world: World) -> None:
    before = owner(world.here, SHARED_DISK.path)
    with runs_as(world.there, OTHER), world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        is_unprivileged(world, world.there, OTHER)
        assert owner(world.there, SHARED_DISK.path) == number(world.there, OTHER)
        world.kill(world.there, "qemu-system-x86_64")
        run = under.end()
    world.stayed(run)
    assert owner(world.here, SHARED_DISK.path) == before
    is_unprivileged(world, world.here)


def test_a_crash_loses_no_owner(world: World) -> None:
    """The agent is killed: what it had given away is in its journal."""
    before = owner(world.here, SHARED_DISK.path)
    with runs_as(world.there, OTHER), world.under(PRE_COPY, options=SLOWLY) as under:
        under.wait(PRE_COPY)
        assert owner(world.there, SHARED_DISK.path) == number(world.there, OTHER)
        came = world.there.leftovers(world.clean[world.there.name]).processes
        agents = [text.split()[0] for text in came if text.split()[-1] == "agent"]
        assert agents
        world.there.run(["kill", "-KILL", *agents], check=False)
        run = under.end()
    assert run.status == 4, str(run)
    world.there.run(["entourage", "recover"], check=False)
    world.is_as_before()
    assert owner(world.here, SHARED_DISK.path) == before
    is_unprivileged(world, world.here)


@pytest.mark.matrix
def test_to_a_host_that_asks_for_root_and_back(world: World) -> None:
    with runs_as(world.there, "root"):
        world.moved(world.migrate())
        for name, status in processes(world, world.here).items():
            assert set(status["Uid"].split()) == {"0"}, name
        assert owner(world.here, OWN.path) == ROOT
        world.moved(world.migrate())
        is_unprivileged(world, world.here)


def test_a_user_that_is_missing_there(world: World) -> None:
    with runs_as(world.there, "nobody-here"):
        run = world.migrate()
    world.stayed(run, status=3)
    assert "no user nobody-here" in run.refusals["domain"]


@pytest.mark.matrix
def test_it_is_off(world: World) -> None:
    """Pulled out, or shut down by its guest: the files are whose they were."""
    host, uid = world.here, number(world.here)
    host.run(["entourage", "stop", "--force", world.name])
    owners = {disk.path: owner(host, disk.path) for disk in world.disks}
    assert set(owners.values()) == {ROOT}
    assert not (state(host) / "owners.json").exists()
    world.start_again()
    is_unprivileged(world, host)
    qmp(world, "quit")
    host.wait_clean(world.clean[host.name], ignore=("/run/*", "/var/lib/*", *world.kept))
    assert owner(host, OWN.path) == uid
    done = host.run(["entourage", "stop", world.name], check=False)
    assert done.returncode != 0
    assert owner(host, OWN.path) == ROOT
    with runs_as(host, "root"):
        world.start_again()
        assert owner(host, OWN.path) == ROOT
        assert {status["Uid"].split()[0] for status in processes(world, host).values()} == {"0"}
        host.run(["entourage", "stop", "--force", world.name])
    world.start_again()
    is_unprivileged(world, host)


def starts(host: Host, text: str) -> str:
    """Start a domain, and stop it again if it started; what was said of it."""
    host.path("/root/other.toml").write_text(text)
    try:
        done = host.run(["entourage", "start", "/root/other.toml"], check=False)
        if done.returncode == 0:
            host.run(["entourage", "stop", "--force", "other"])
            host.run(["rm", "-r", f"/var/lib/entourage/domains/{UUID}"])
    finally:
        host.path("/root/other.toml").unlink()
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "where", ["/root/other.raw", pytest.param("/srv/vmlinuz", marks=pytest.mark.matrix)]
)
def test_what_the_user_cannot_open_is_refused(lab: Lab, where: str) -> None:
    host = lab["a"]
    text = domain_toml("other", disks=[], tpm=False, net=False, address=FREE, uuid=UUID)
    if where.endswith(".raw"):
        Disk(where).create(host, "1M")
        text += f'[[block]]\nid = "disk0"\npath = "{where}"\n'
    else:
        [kernel] = [line for line in text.splitlines() if line.startswith("kernel = ")]
        host.run(["cp", kernel.split('"')[1], where])
        host.run(["chmod", "600", where])
        text = text.replace(kernel, f'kernel = "{where}"')
    try:
        said = starts(host, text)
        assert QEMU_USER in said
        assert "remedy" in said
        assert owner(host, where) == ROOT
        with runs_as(host, "root"):
            assert "other runs" in starts(host, text)
    finally:
        host.path(where).unlink()


@pytest.mark.matrix
def test_without_such_a_user_it_is_said_once(lab: Lab) -> None:
    host = lab["a"]
    text = domain_toml("other", disks=[], tpm=False, net=False, address=FREE, uuid=UUID)
    assert "as root" not in starts(host, text)
    with changed(host, USERS, f"{QEMU_USER}:", "somebody-else:"):
        said = starts(host, text)
        assert "other runs" in said
        assert said.count("QEMU runs as root") == 1
        with runs_as(host, "root"):
            assert "as root" not in starts(host, text)
        with runs_as(host, QEMU_USER):
            assert "useradd --system --no-create-home" in starts(host, text)
