"""What cannot move is refused: by name, with a reason and a remedy, before anything is touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.observer import Observer
from tests.e2e.world import World, other_bridge, qmp

DISK = "/srv/disk0.raw"
FILLER = "/srv/filler"
OTHER_VERSION = (
    "python -c 'import sys, entourage.messages as words; words.OLDEST = words.NEWEST = 99; "
    'sys.argv[0] = "entourage"; from entourage.__main__ import main; main()\''
)


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    with Observer.start(lab) as seen:
        # Such a device may be named although nothing like it is plugged in.
        host_usb = '[[usb]]\nid = "key"\nvendor = 0x1050\nproduct = 0x0407\n'
        world = World.begin(lab, seen, extra=host_usb)
        yield world
        world.end()


@contextmanager
def without_swtpm(host: Host) -> Generator[None]:
    host.run(["mv", "/usr/bin/swtpm", "/usr/bin/swtpm.away"])
    try:
        yield
    finally:
        host.run(["mv", "/usr/bin/swtpm.away", "/usr/bin/swtpm"])


@contextmanager
def full(host: Host) -> Generator[None]:
    free = int(host.run(["stat", "-f", "-c", "%a", "/srv"]).stdout)
    size = int(host.run(["stat", "-f", "-c", "%S", "/srv"]).stdout)
    # The journal of the other host needs a little.
    host.run(["fallocate", "-l", str(free * size - (12 << 20)), FILLER])
    try:
        yield
    finally:
        host.path(FILLER).unlink()


@contextmanager
def in_the_way(host: Host) -> Generator[None]:
    host.path(DISK).write_text("something of somebody's")
    try:
        yield
        assert host.path(DISK).read_text() == "something of somebody's"
    finally:
        host.path(DISK).unlink()


USB = {"usb/key": ("1050:0407", "take it out")}
LACKING: dict[str, tuple[Callable[[Host], AbstractContextManager[None]], tuple[str, ...]]] = {
    "tpm/tpm0": (without_swtpm, ("swtpm", "install")),
    "net/net0": (other_bridge, ("no bridge br0", "--net br0=")),
    "block/disk0": (full, ("no space left", "make room")),
}


@pytest.mark.parametrize("device", LACKING)
def test_what_the_target_lacks(world: World, device: str) -> None:
    """Beside the USB device of the host itself, which is refused whatever else there is."""
    lack, words = LACKING[device]
    with lack(world.there):
        run = world.migrate()
    world.stayed(run, status=3)
    assert set(run.refusals) == {device, "usb/key"}
    for word in (world.there.name, *words):
        assert word in run.refusals[device]
    for word in USB["usb/key"]:
        assert word in run.refusals["usb/key"]


def test_a_file_is_there_already(world: World) -> None:
    with in_the_way(world.there):
        run = world.migrate()
    world.stayed(run, status=3)
    assert set(run.refusals) == {"block/disk0", "usb/key"}
    assert DISK in run.refusals["block/disk0"]
    assert "is there already" in run.refusals["block/disk0"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry-run"])
def test_all_at_once(world: World, dry: list[str]) -> None:
    with ExitStack() as lacks:
        for lack in (without_swtpm, other_bridge, in_the_way):
            lacks.enter_context(lack(world.there))
        run = world.migrate(*dry)
    world.stayed(run, status=3)
    assert set(run.refusals) == {"tpm/tpm0", "net/net0", "block/disk0", "usb/key"}


def test_what_was_plugged_in_by_a_monitor(world: World) -> None:
    """The machine that runs is asked, not the record of its start."""
    keyboard = {"driver": "usb-kbd", "id": "mine", "bus": "usb.0", "port": "9"}
    qmp(world, ("device_add", keyboard))
    run = world.migrate("--dry-run")
    world.stayed(run, status=3)
    assert "mine (usb-kbd) was plugged" in run.refusals["domain"]
    assert "device_del mine" in run.refusals["domain"]
    qmp(world, ("device_del", {"id": "mine"}))
    assert set(world.migrate("--dry-run").refusals) == {"usb/key"}


def test_a_host_of_pci(world: World) -> None:
    """VFIO needs hardware, so the record of the running domain is made to say so."""
    [record] = world.here.path("/run/entourage/q").glob("*/running.json")
    text = record.read_text()
    running = json.loads(text)
    running["domain"]["pci"] = [{"id": "gpu", "host": "0000:3b:00.0"}]
    try:
        record.write_text(json.dumps(running))
        run = world.migrate()
    finally:
        record.write_text(text)
    world.stayed(run, status=3)
    assert set(run.refusals) == {"pci/gpu", "usb/key"}
    assert "3b:00.0" in run.refusals["pci/gpu"]


@pytest.mark.parametrize("target", ["own", "localhost"])
def test_to_where_it_is(world: World, target: str) -> None:
    keys = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    name = world.here.name if target == "own" else "localhost"
    run = world.migrate(*keys, to=name)
    world.stayed(run, status=2)
    assert f"{name} is this host" in run.stderr, str(run)
    assert f"{world.name} runs here already; name another host" in run.stderr


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("nowhere.invalid", 1, "nowhere.invalid"),
        ("-oProxyCommand=touch /root/pwned", 2, "no host name"),
        ("b\ntouch /root/pwned", 2, "no host name"),
        ("", 2, "no host name"),
        ("$(touch pwned)", 2, "no host name"),
        ("$(touch${IFS}pwned)", 1, ""),
    ],
)
def test_no_such_host(world: World, target: str, status: int, said: str) -> None:
    run = world.migrate(to=target)
    world.stayed(run, status=status)
    assert said in run.stderr, str(run)
    assert "Traceback" not in run.stderr


def test_no_answer_from_the_host(world: World) -> None:
    world.lab.cut("a", "b", how="reset", traffic="ssh")
    run = world.migrate()
    world.lab.mend("a", "b")
    world.stayed(run, status=1)
    assert "Connection refused" in run.stderr or "reset" in run.stderr, str(run)


@pytest.mark.parametrize("name", ["nobody", "../../etc/passwd", "$(touch pwned)", "web1\n", ""])
def test_no_such_domain(world: World, name: str) -> None:
    done = world.here.run(["entourage", "migrate", "--", name, world.there.name], check=False)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    world.is_as_before()


def test_a_domain_with_a_newline(world: World) -> None:
    file = "/usr/local/etc/newline.toml"
    world.here.path(file).write_text('name = "web\\n1"\nmemory = "64M"\n')
    done = world.here.run(["entourage", "start", file], check=False)
    assert done.returncode == 2
    assert f"{file}: name:" in done.stderr
    world.is_as_before()


def test_another_version_there(world: World) -> None:
    run = world.migrate("--remote-command", OTHER_VERSION)
    world.stayed(run, status=1)
    assert "protocol" in run.stderr, str(run)
    assert "install the same version" in run.stderr


def test_no_entourage_there(world: World) -> None:
    run = world.migrate("--remote-command", "/usr/bin/entourage-is-not-here")
    world.stayed(run, status=1)
    assert "install Entourage on b" in run.stderr, str(run)


def test_no_such_bridge_or_disk_to_map(world: World) -> None:
    for option in (["--net", "br9=br0"], ["--disk", "disk9=/srv/x"]):
        run = world.migrate(*option)
        world.stayed(run, status=2)
        assert option[1].split("=")[0] in run.stderr
