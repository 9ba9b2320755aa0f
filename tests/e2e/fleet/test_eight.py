"""One host with eight guests, and one that is off, is emptied to three others."""

from __future__ import annotations

import json

import pytest

from lab import network
from lab.guest import Disk, domain_toml
from lab.host import Host
from tests.e2e.fleet.world import GUESTS, SPARE, FleetWorld
from tests.e2e.run import PATIENCE
from tests.e2e.shared import SHARED, shared_storage
from tests.unit.eventually import wait_until

ONLY_C = "br8"
"""A bridge that of the targets only c has."""
RESTS = "rests"


@pytest.mark.matrix
def test_eight_guests_are_evacuated(world: FleetWorld) -> None:
    """One needs what only c has, one cannot move, d is full; what is off goes where its disk is."""
    world.is_spent = True
    hosts = world.lab
    a = hosts["a"]
    for name, bridges in (("a", (SPARE, ONLY_C)), ("c", (ONLY_C,))):
        for bridge in bridges:
            hosts[name].run(["ip", "link", "add", bridge, "type", "bridge"])
            hosts[name].run(["ip", "link", "set", bridge, "up"])
    free = ("web4", "web5", "web6")
    for name in free:
        world.start(name)
    world.start("web7", bridge=ONLY_C)
    world.start("web8", bridge=SPARE)
    world.start("web9", "d")
    world.settings("d", 'domains-memory = "130MiB"')
    with shared_storage(hosts):
        _off(a)
        run = world.run("plan", "a", "--off", "move", "--json")
        assert run.status == 4, str(run)
        plan = json.loads(run.stdout)
        assert [one["name"] for one in plan["stays"]] == ["web8"]
        reasons = " ".join(why["reason"] for why in plan["stays"][0]["why"])
        assert f"there is no bridge {SPARE}" in reasons
        targets = {one["name"]: one["target"] for one in plan["moves"]}
        assert (targets["web7"], targets[RESTS]) == ("c", "b")
        assert "d" not in targets.values()
        run = world.run("evacuate", "a", "--off", "move", "--name", "eight", "--at-once", "2")
        assert run.status == 4, str(run)
        assert set(world.moves("eight").values()) == {"moved"}, str(run)
        there = {*GUESTS, *free, "web7", "web8", "web9"}
        wait_until(lambda: world.where().keys() == there, PATIENCE)  # one may be too busy to say
        where = world.where()
        assert (where.pop("web8"), where.pop("web7"), where.pop("web9")) == ("a", "c", "d")
        assert where.keys() == {*GUESTS, *free}
        assert set(where.values()) <= {"b", "c"}, where
        assert [name for name in "abcd" if RESTS in _rest_on(hosts[name])] == ["b"]
        world.check([*GUESTS, *free])
        assert world.lives("web9").boot == world.boots["web9"]
        assert hosts["b"].run(["entourage", "start", RESTS]).returncode == 0
        assert hosts["b"].run(["entourage", "stop", "--force", RESTS]).returncode == 0


def _off(host: Host) -> None:
    """A machine that is off, and whose disk is on storage that a and b share."""
    disk = Disk(f"{SHARED}/{RESTS}.img")
    disk.create(host, "16M")
    text = domain_toml(
        RESTS, disks=[disk], tpm=False, memory="128M", address=network.guest_address(9)
    )
    host.write_files({f"/srv/{RESTS}.toml": text})
    host.run(["entourage", "start", f"/srv/{RESTS}.toml"])
    host.run(["entourage", "stop", "--force", RESTS])


def _rest_on(host: Host) -> set[str]:
    listed = json.loads(host.run(["entourage", "list", "--all", "--json"]).stdout)
    return {one["name"] for one in listed if one["state"] == "shut off"}
