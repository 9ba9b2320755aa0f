"""A domain of xl's moves, or is refused: what xl, Entourage and the guest itself say of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from lab.xen.hosts import XenHost
from tests.e2e.xen.world import DISK, NAME, PATIENCE, SETTINGS, SHARED, SIDE, XenWorld

TOOL, CALLS, HOLD = "/usr/local/sbin/move-it", "/var/log/move-it", "/run/hold-it"
# Step 3 lasts as long as there is a file; step and -recover of every call are written down.
SCRIPT = f"""\
#!/bin/sh
echo "$*" >>{CALLS}
case "$*" in
    *'-step 3'*-recover*) ;;
    *'-step 3'*) while [ -e {HOLD} ]; do sleep 0.1; done ;;
esac
case "$*" in
    *-recover*) ;;
    *"-step $(cat /run/fail-at 2>/dev/null || echo none) "*) echo "Error: as it was told" ;;
esac
"""
FPGA = '[[external]]\nid = "fpga0"\ntype = "fpga"\n'
WITH_TOOL = f'{SETTINGS}[tool]\nexternal = "{TOOL}"\n'
CONFIG = "/etc/entourage/with-tool.toml"
# A site's own of 2006. Its tool is for vTPMs, which this guest has none of: the FPGA names it.
SXP = "/etc/xen/xend-config.sxp"
OF_2006 = f"""\
# -*- sh -*-
# Xend configuration file.
(xend-relocation-server no)
(external-migration-tool '{TOOL}')
(network-script network-bridge)
(dom0-min-mem 196)
"""
ITS_OWN = f'{FPGA}tool = "{TOOL}"\n'
# A medium that the guest can only read, and where it goes.
MEDIUM, ELSEWHERE = "/srv/medium.iso", "/srv/medium-there.iso"


def calls(world: XenWorld) -> list[str]:
    """The steps of the tool's calls for the FPGA, ``3`` or ``2r`` for a recovery."""
    found: list[str] = []
    for line in world.here.read(CALLS).splitlines():
        words = line.split()
        if words[words.index("-type") + 1] == "fpga":
            recover = "r" if "-recover" in words else ""
            found.append(words[words.index("-step") + 1] + recover)
    return found


def with_tool(world: XenWorld, *, fail_at: int = 0) -> tuple[str, ...]:
    """Give it a device that only a tool can move, and the tool; returns the options."""
    for host in (world.here, world.there):
        host.run(["rm", "-f", CALLS, HOLD, "/run/fail-at"])
    world.here.write(SIDE, FPGA)
    world.here.write(TOOL, SCRIPT)
    world.here.run(["chmod", "755", TOOL])
    world.here.write(CONFIG, WITH_TOOL)
    if fail_at:
        world.here.write("/run/fail-at", f"{fail_at}\n")
    return ("--config", CONFIG)


def without_tool(world: XenWorld) -> None:
    for host in (world.here, world.there):
        host.run(["rm", "-f", SIDE, "/run/fail-at"])


def with_medium(world: XenWorld) -> None:
    """Give the running guest a read-only disk, which only this host has."""
    for host in (world.here, world.there):
        host.run(["rm", "-f", MEDIUM, ELSEWHERE])
    world.here.run(["dd", "if=/dev/urandom", f"of={MEDIUM}", "bs=64k", "count=5"])
    disk = f"format=raw,vdev=xvdc,access=ro,target={MEDIUM}"
    world.here.run(["xl", "block-attach", NAME, disk], timeout=PATIENCE)


def another_bridge(world: XenWorld) -> str:
    """A bridge that both hosts have and the guest is not on."""
    for host in (world.here, world.there):
        add = "ip link add lan1 type bridge 2>/dev/null; ip link set lan1 up"
        host.run(["sh", "-c", add])
    return "xenbr0" if world.bridge() == "lan1" else "lan1"


def digest(host: XenHost, path: str) -> str:
    return host.run(["sha256sum", path]).stdout.split()[0]


def test_everything_that_speaks_against_it_is_refused_at_once(world: XenWorld) -> None:
    before = world.lives()
    world.here.write(SIDE, FPGA)
    world.there.run(["touch", DISK])
    world.there.run(["mv", "/srv/guest/initrd", "/srv/guest/initrd.away"])
    run = world.migrate("--net", f"{world.bridge()}=lan9")
    world.there.run(["mv", "/srv/guest/initrd.away", "/srv/guest/initrd"])
    world.there.run(["rm", DISK])
    without_tool(world)
    assert run.status == 3, run
    assert set(run.refusals) == {"block/xvda", "net/vif0", "external/fpga0", "domain"}
    assert "is there already" in run.refusals["block/xvda"]
    assert "no bridge lan9" in run.refusals["net/vif0"]
    assert "tool" in run.refusals["external/fpga0"]
    assert "/srv/guest/initrd" in run.refusals["domain"]
    world.stayed(before)


def test_it_moves_with_sync_held_by_an_external_tool(world: XenWorld) -> None:
    """By the settings of 2006, onto another bridge, with a medium that goes to another place."""
    before = world.lives()
    with_tool(world)
    world.here.write(SIDE, ITS_OWN)
    world.here.write(SXP, OF_2006)
    with_medium(world)
    medium, bridge = digest(world.here, MEDIUM), another_bridge(world)
    options = (
        *("--config", SXP, "--max-blackout", "120s"),
        *("--net", f"{world.bridge()}={bridge}", "--disk", f"xvdc={ELSEWHERE}"),
    )
    world.here.run(["touch", HOLD])
    with world.under("source.memory-landed", options=options) as under:
        under.wait("source.memory-landed")
        stood = world.tick(world.here)
        under.pass_on("source.memory-landed")
        # All of memory and the copied disk are on the target; SYNC is held by the tool.
        deadline = time.monotonic() + PATIENCE
        while "3" not in calls(world):
            assert time.monotonic() < deadline
        # At once, and looked at later: a tool has a minute, and these hosts are slow.
        with ThreadPoolExecutor() as at_once:
            logs = at_once.map(world.log, (world.there, world.here))
            domains = at_once.map(world.domains, (world.there, world.here))
            said = at_once.submit(world.tick, world.here)
        world.here.run(["rm", HOLD])
        run = under.end()
    log_there, log_here = logs
    domains_there, domains_here = domains
    assert "requesting permission to start" in log_there
    assert domains_there == {f"{NAME}--incoming": "--p---"}
    # xl has heard of nothing: suspended, and still called by its name.
    [(name, state)] = domains_here.items()
    assert (name, "s" in state) == (NAME, True)
    assert "Target has acknowledged" not in log_here
    assert said.result() == stood
    assert calls(world) == ["1", "2", "3"]
    assert world.tick(world.here) == stood
    source = world.here
    without_tool(world)
    world.moved(run, before)
    assert "Target reports successful startup" in world.log(source)
    assert "Domain started" in world.log(world.here)
    # The configuration came along in xl's stream, and says what is otherwise here.
    assert world.bridge() == bridge
    assert world.here.run(["ls", f"/sys/class/net/{bridge}/brif"]).stdout.startswith("vif")
    paths = {disk["vdev"]: disk["pdev_path"] for disk in world.config(world.here)["disks"]}
    assert paths == {"xvda": DISK, "xvdb": SHARED, "xvdc": ELSEWHERE}
    # What is only read was copied, and stays where it was.
    assert digest(world.here, ELSEWHERE) == digest(source, MEDIUM) == medium
    # The guest keeps it: where it goes next, there is one of that content to be used in place.
    source.run(["mv", MEDIUM, ELSEWHERE])


def test_a_failure_in_step_1_is_rolled_back(world: XenWorld) -> None:
    before = world.lives()
    run = world.migrate(*with_tool(world, fail_at=1))
    without_tool(world)
    assert run.status == 4, run
    assert calls(world) == ["1", "0r"]
    world.stayed(before)


def test_a_failure_in_step_2_is_rolled_back(world: XenWorld) -> None:
    before = world.lives()
    run = world.migrate(*with_tool(world, fail_at=2))
    without_tool(world)
    assert run.status == 4, run
    assert calls(world) == ["1", "2", "1r"]
    world.stayed(before)


def test_a_failure_in_step_3_is_rolled_back_by_xl_itself(world: XenWorld) -> None:
    before = world.lives()
    source, target = world.here, world.there
    options = with_tool(world, fail_at=3)
    source.run(["touch", HOLD])
    with world.under("source.memory-landed", options=options) as under:
        under.wait("source.memory-landed")
        under.pass_on("source.memory-landed")
        source.run(["rm", HOLD])
        run = under.end()
    without_tool(world)
    assert run.status == 4, run
    assert calls(world) == ["1", "2", "3", "2r"]
    # The target's copy destroyed itself, and then the sender's went on.
    assert "destroying our copy" in world.log(target)
    assert "Migration failed, resuming at sender" in world.log(source)
    world.stayed(before)
