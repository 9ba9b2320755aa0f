"""A controller that systemd runs, without any right on its host, moves machines by ssh."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lab import systemd
from lab.observer import Observer
from tests.e2e.fleet.test_page import ASK
from tests.e2e.run import PATIENCE
from tests.e2e.units.conftest import OPT
from tests.e2e.world import World
from tests.unit.eventually import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

    from lab.host import Host
    from lab.hosts import Lab

UNIT = "entourage-fleet"
STATE = "/var/lib/entourage-fleet"
SOCKET = "/run/entourage-fleet/page.sock"
FLEET = "".join(f'[[host]]\nname = "{name}"\nssh = "root@{name}"\n' for name in ("a", "b"))
AS_IT = ["setpriv", f"--reuid={UNIT}", f"--regid={UNIT}", "--init-groups"]
ENVIRONMENT = {
    "ENTOURAGE_STATE_DIR": STATE,
    "ENTOURAGE_RUN_DIR": "/run/entourage-fleet",
    "HOME": STATE,
}


@pytest.fixture(scope="module")
def world(lab: Lab) -> Generator[World]:
    """A guest on a, and the controller as docs/fleet.md has it, also on a."""
    with Observer.start(lab) as seen:
        world = World.begin(lab, seen, "fleet1", disks=["/srv/fleet.raw"], tpm=False)
        install(lab)
        yield world
        world.here.run(["entourage", "stop", "--force", world.name], timeout=PATIENCE)
    lab["a"].run(["systemctl", "disable", "--now", UNIT], timeout=PATIENCE)


def install(lab: Lab) -> None:
    """Do what the documentation asks for."""
    a, ours = lab["a"], ("-o", UNIT, "-g", UNIT)
    a.run(["systemd-sysusers", f"{OPT}/lib/sysusers.d/{UNIT}.conf"])
    a.run(["cp", f"{OPT}/lib/systemd/system/{UNIT}.service", systemd.UNITS])
    a.run(["install", "-d", *ours, "-m", "0700", STATE, f"{STATE}/.ssh"])
    key = f"{STATE}/.ssh/id_ed25519"
    a.run([*AS_IT, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    a.run(["install", *ours, "-m", "0600", "/root/.ssh/known_hosts", f"{STATE}/.ssh/"])
    public = a.path(f"{key}.pub").read_text()
    for host in (lab["a"], lab["b"]):
        with host.path("/root/.ssh/authorized_keys").open("a") as file:
            file.write(public)
    a.write_files({"/etc/entourage/fleet.toml": FLEET})
    a.run(["systemctl", "enable", "--now", UNIT])


def figures(host: Host) -> str:
    """What the page has for Prometheus; empty where it does not listen yet."""
    argv = [f"{OPT}/bin/python", "-c", ASK, SOCKET, "/metrics"]
    return host.run(argv, check=False).stdout


def said(host: Host) -> str:
    """What the unit has said."""
    return host.run(["journalctl", "--no-pager", "-b", "-u", UNIT]).stdout


def runs_on(host: Host, name: str) -> bool:
    """Whether a host says that it runs the domain."""
    known = json.loads(host.run(["entourage", "list", "--json"]).stdout)
    return [one["state"] for one in known if one["name"] == name] == ["running"]


def test_it_hears_its_hosts(world: World) -> None:
    a = world.lab["a"]
    wait_until(lambda: "entourage_fleet_hosts_silent 0.0" in figures(a))
    status = a.run(["stat", "-c", "%U %a", SOCKET]).stdout.strip()
    assert status == f"{UNIT} 660"


@pytest.mark.matrix
def test_it_goes_on_with_what_a_terminal_has_begun(world: World) -> None:
    """That one was killed: the unit's controller evacuates the host."""
    a, b = world.lab["a"], world.lab["b"]
    argv = [*AS_IT, f"{OPT}/bin/entourage", "evacuate", "a", "--name", "empty-a"]
    terminal = a.popen(argv, env=ENVIRONMENT)

    def moves() -> bool:
        known = a.run(
            [*AS_IT, f"{OPT}/bin/entourage", "campaign", "show", "empty-a", "--json"],
            env=ENVIRONMENT,
            check=False,
        )
        assert terminal.poll() is None, terminal.communicate()
        return '"moves"' in known.stdout and '"status":"moves"' in known.stdout.replace(" ", "")

    wait_until(moves)
    terminal.kill()
    terminal.communicate()
    wait_until(lambda: runs_on(b, world.name), PATIENCE)
    world.here, world.there = b, a
    world.lives()
    wait_until(lambda: 'entourage_fleet_campaigns{phase="ended"} 1.0' in figures(a))
    assert world.lab["a"].run(["systemctl", "is-active", UNIT]).stdout == "active\n", said(a)
