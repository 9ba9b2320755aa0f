"""Stock ``virsh migrate`` takes a domain's external devices along, or leaves all as it was."""

from __future__ import annotations

import json
import time
from xml.etree import ElementTree as ET

import pytest

from lab.libvirtd import Libvirtd
from tests.e2e.attend.world import Attend, AttendWorld, settings, steps
from tests.e2e.run import PATIENCE
from tests.unit.eventually import wait_until

ALL = ["1", "2", "3"]
FAILS = '[ "$type:$step:$recover" != dongle:{step}:no ] || exit 1'
HANGS = '[ "$type:$step:$recover" != dongle:{step}:no ] || exec sleep 60'


def test_there_and_back(world: AttendWorld) -> None:
    for p2p in (False, False, True, True):
        tool = world.tool()
        world.came(world.virsh(p2p=p2p))
        assert steps(tool) == {"dongle": ALL, "meter": ALL}
        world.settled()
        [told] = world.there.path("/run/entourage/attend").glob("*.jsonl")
        finished = json.loads(told.read_text().splitlines()[-1])
        assert finished["outcome"] == "moved"
        assert finished["runs_on"] == world.here.name
        assert finished["blackout"]


@pytest.mark.parametrize(
    "p2p", [False, pytest.param(True, marks=pytest.mark.matrix)], ids=["direct", "p2p"]
)
def test_a_refusal_is_virshs_error(world: AttendWorld, *, p2p: bool) -> None:
    """With every reason; where libvirt hides it, `attend --check` has it."""
    tool = world.tool()
    world.here.path(tool.path).rename(world.here.path(f"{tool.path}.away"))
    try:
        done = world.virsh(p2p=p2p)
    finally:
        world.here.path(f"{tool.path}.away").rename(world.here.path(tool.path))
    world.came_back(done)
    assert tool.calls() == []
    last = world.shown()["last"]
    assert last["outcome"] == "refused"
    assert [each["device"] for each in last["refusals"]] == ["external/dongle", "external/meter"]
    if not p2p:
        for label in ("external/dongle", "external/meter"):
            assert f"{label} on {world.here.name}: its external tool" in done.stderr


@pytest.mark.parametrize("step", [2, *(pytest.param(n, marks=pytest.mark.matrix) for n in (1, 3))])
def test_a_device_that_fails(world: AttendWorld, step: int) -> None:
    tool = world.tool(FAILS.format(step=step))
    done = world.virsh(p2p=step == 2)
    world.came_back(done)
    told = steps(tool)
    assert told["dongle"] == [*ALL[:step], f"r{step - 1}"], told
    assert told["meter"][-1].startswith("r"), told
    if step == 1:
        assert "external/dongle" in done.stderr
    wait_until(lambda: "external/dongle" in str(world.shown()["last"]))


@pytest.mark.matrix
@pytest.mark.parametrize("step", [2, 3])
def test_a_device_that_hangs(world: AttendWorld, step: int) -> None:
    tool = world.tool(HANGS.format(step=step))
    mark = world.seen.mark()
    world.came_back(world.virsh())
    assert world.seen.longest_gap(mark).seconds < 10
    told = steps(tool)
    assert told["dongle"] == [*ALL[:step], f"r{step - 1}"], told


@pytest.mark.matrix
def test_it_is_not_attended_any_more(world: AttendWorld) -> None:
    """Then it is libvirt's alone, and its XML as it was; and attended again."""
    tool = world.tool()
    daemon = Libvirtd(world.here)
    assert "urn:entourage:attend" in daemon.virsh("dumpxml", world.name).stdout
    world.here.run(["entourage", "attend", "--off", world.name])
    assert "urn:entourage:attend" not in daemon.virsh("dumpxml", world.name).stdout
    world.came(world.virsh())
    assert tool.calls() == []
    xml = ET.fromstring(Libvirtd(world.here).virsh("dumpxml", world.name).stdout)  # noqa: S314
    assert not [each for each in xml.iter() if "commandline" in each.tag and len(each)]
    world.there.run(["entourage", "attend", "--on", world.name])
    world.came(world.virsh())  # back
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


@pytest.mark.matrix
def test_entourage_moves_it_itself(world: AttendWorld) -> None:
    """Nobody attends that; afterwards it is attended again, also where it came back."""
    tool = world.tool()
    world.came(world.virsh())  # it has QEMU's object in its XML now
    world.moved(world.migrate())
    world.attended_again()
    world.stayed(world.migrate("--max-blackout", "1ms"))
    world.attended_again()
    world.came(world.virsh())
    for told in steps(tool).values():  # by host, not by time
        assert told.count("3") == 3, told  # each of the three that arrived
        assert sum(each.startswith("r") for each in told) == 1, told


@pytest.mark.matrix
def test_entourage_saves_it_itself(world: AttendWorld) -> None:
    """With its devices, also where it has arrived attended."""
    tool = world.tool()
    world.came(world.virsh())  # it has QEMU's object in its XML now
    tool.calls()
    world.here.run(["entourage", "save", world.name, "/root/saved"], timeout=PATIENCE)
    assert not world.answers()
    world.here.run(["entourage", "restore", "/root/saved"], timeout=PATIENCE)
    world.lives()
    world.attended_again()
    world.here.run(["rm", "-r", "/root/saved"])
    world.came(world.virsh())
    for told in steps(tool).values():
        assert told.count("3") == 4, told


@pytest.mark.matrix
def test_it_is_saved_only_where_it_is_not_attended(world: AttendWorld) -> None:
    """What would stand in the file could not be restored: it is refused, and the guest runs on."""
    world.came(world.virsh())  # it has QEMU's object in its XML now
    daemon, file = Libvirtd(world.here), "/root/saved"
    done = daemon.virsh("save", world.name, file, check=False, timeout=PATIENCE)
    assert done.returncode != 0
    world.lives()
    world.here.run(["entourage", "attend", "--off", world.name])
    daemon.virsh("save", world.name, file, timeout=PATIENCE)
    daemon.virsh("restore", file, timeout=PATIENCE)
    world.lives()
    world.here.path(file).unlink()
    world.here.run(["entourage", "attend", "--on", world.name])
    world.attended_again()


def test_the_hook_without_a_daemon(world: AttendWorld, daemons: dict[str, Attend]) -> None:
    tool = world.tool()
    daemons[world.there.name].stop()
    done = world.virsh()
    world.came_back(done)
    assert "its daemon does not answer on this host" in done.stderr
    assert tool.calls() == []


@pytest.mark.matrix
def test_no_daemon_on_the_source(world: AttendWorld, daemons: dict[str, Attend]) -> None:
    tool = world.tool()
    daemons[world.here.name].kill()
    done = world.virsh()
    assert f"{world.here.name} cannot be asked about this domain's devices" in done.stderr, (
        done.stderr
    )
    daemons[world.here.name].start()
    world.came_back(done)
    assert tool.calls() == []
    world.came(world.virsh())
    assert steps(tool) == {"dongle": ALL, "meter": ALL}


@pytest.mark.matrix
def test_a_target_without_the_hook(world: AttendWorld) -> None:
    """Nobody leaves devices behind by mistake: QEMU's object keeps the guest here."""
    tool = world.tool()
    Attend.of(world.there).remove_hook()
    try:
        done = world.virsh()
    finally:
        Attend.of(world.there).install_hook()
    world.came_back(done)
    assert tool.calls() == []


@pytest.mark.matrix
def test_a_domain_is_let_go_without_a_daemon(
    world: AttendWorld, daemons: dict[str, Attend]
) -> None:
    """As docs/attend.md has it."""
    tool = world.tool()
    daemons[world.here.name].kill()
    host = Libvirtd(world.here)
    host.virsh("metadata", world.name, "urn:entourage:attend", "--remove", "--live")
    command = '{"execute": "object-del", "arguments": {"id": "entourage-attend"}}'
    host.virsh("qemu-monitor-command", world.name, command)
    done = world.virsh()
    daemons[world.here.name].start()
    world.came(done)
    assert tool.calls() == []


@pytest.mark.matrix
def test_virsh_gives_up_while_the_guest_runs(world: AttendWorld) -> None:
    tool = world.tool()
    with world.begin_virsh("--bandwidth", "1") as virsh:
        wait_for_job(world)
        Libvirtd(world.here).virsh("domjobabort", world.name)
        done = virsh.end()
    world.came_back(done)
    assert steps(tool) == {"dongle": ["1", "r1"], "meter": ["1", "r1"]}


def test_virsh_gives_up_while_the_guest_stands_still(world: AttendWorld) -> None:
    tool = world.tool('[ "$step:$recover" != 2:no ] || { touch /root/at-2; sleep 1; }')
    mark = world.here.path("/root/at-2")
    with world.begin_virsh() as virsh:
        deadline = time.monotonic() + PATIENCE
        while not mark.exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)  # a tool tells nobody else where it is
        Libvirtd(world.here).virsh("domjobabort", world.name)
        done = virsh.end()
    mark.unlink()
    world.came_back(done)
    for told in steps(tool).values():  # QEMU may be deaf until both devices are done
        done_by_then = [each for each in told if each in ALL]
        assert told[:-1] == done_by_then == ALL[: len(done_by_then)], told
        assert told[-1] in {f"r{done_by_then[-1]}", f"r{int(done_by_then[-1]) - 1}"}, told


def wait_for_job(world: AttendWorld) -> None:
    """Wait until libvirt copies memory or disks."""
    deadline = time.monotonic() + PATIENCE
    while True:
        info = Libvirtd(world.here).virsh("domjobinfo", world.name, check=False).stdout
        if "Data processed" in info or "Memory processed" in info:
            return
        assert time.monotonic() < deadline, info
        time.sleep(0.05)  # virsh tells nobody how far it is


@pytest.mark.matrix
def test_settings_that_allow_it(world: AttendWorld, daemons: dict[str, Attend]) -> None:
    """Then a domain goes without its devices where no daemon is."""
    tool = world.tool()
    for name in ("a", "b"):
        settings(world.lab[name], unattended="allow")
        daemons[name].stop()
    daemons[world.here.name].start()
    try:
        world.came(world.virsh())
        assert tool.calls() == []
    finally:
        for name in ("a", "b"):
            settings(world.lab[name])
            if daemons[name].runs:
                daemons[name].stop()
            daemons[name].start()
