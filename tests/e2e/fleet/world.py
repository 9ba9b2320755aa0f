"""Four hosts and a few guests, and what is true of them after a campaign, seen from outside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab import network
from lab.guest import Disk, Guest, domain_toml
from lab.host import Host
from lab.hosts import Lab
from lab.processes import HostProcess
from lab.settings import SETTINGS
from tests.e2e.run import PATIENCE, Run
from tests.unit.eventually import wait_until

HOSTS = ("a", "b", "c", "d")
GUESTS = ("web1", "web2", "web3")
MEMORY = "128M"
SPARE = "br9"
"""A bridge that only one host has."""
FLEET = "".join(f'[[host]]\nname = "{name}"\n' for name in HOSTS)


@dataclass(frozen=True)
class Lives:
    """A guest, as it is itself: of one that was started anew the boot is another."""

    boot: str
    uptime: float


class FleetWorld:
    """The lab's hosts, of which ``a`` has all guests at first.

    Args:
        lab: The hosts.

    Attributes:
        is_spent: Guests went with their host's power: the next test begins anew.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.is_spent = False
        self.boots: dict[str, str] = {}

    @classmethod
    def begin(cls, lab: Lab) -> FleetWorld:
        """Start the guests on a."""
        world = cls(lab)
        for name in HOSTS:
            lab[name].run(["mkdir", "-p", "/etc/entourage"])
            lab[name].write_files({"/etc/entourage/fleet.toml": FLEET})
        for name in GUESTS:
            world.start(name)
        return world

    def start(self, name: str, host: str = "a", *, bridge: str = network.HOST_BRIDGE) -> None:
        """Start a guest, and wait until it answers."""
        disk, there = Disk(f"/srv/{name}.img"), self.lab[host]
        disk.create(there, "16M")
        text = domain_toml(
            name, disks=[disk], tpm=False, memory=MEMORY, address=_address(name), bridge=bridge
        )
        there.write_files({f"/srv/{name}.toml": text})
        there.run(["entourage", "start", f"/srv/{name}.toml"])
        if bridge == network.HOST_BRIDGE:
            self.boots[name] = self.lives(name).boot

    def lives(self, name: str) -> Lives:
        """What a guest says of itself, wherever it is, once it answers."""
        found: list[Lives] = []

        def answers() -> bool:
            with contextlib.suppress(OSError):
                status = Guest(self.lab, _address(name)).status(PATIENCE)
                found.append(Lives(boot=status.boot, uptime=status.uptime))
            return bool(found)

        wait_until(answers)
        return found[0]

    def settings(self, host: str, agent: str = "") -> None:
        """Write a host's settings: the lab's, with more of its agent's, which come last there."""
        text = f"{SETTINGS}{agent}\n"
        self.lab[host].write_files({"/etc/entourage/entourage.toml": text})

    def begin_run(self, *words: str, host: str = "a", **environment: str) -> HostProcess:
        """Begin a command on a host."""
        return self.lab[host].popen(["entourage", *words], env=environment)

    def run(self, *words: str, host: str = "a") -> Run:
        """Run a command on a host to its end."""
        return ended(self.begin_run(*words, host=host))

    def where(self) -> dict[str, str]:
        """The host of each domain that runs; of one that runs on two, both."""
        found: dict[str, list[str]] = {}
        for host in HOSTS:
            if self.lab[host].is_on:
                for each in _json(self.lab[host], "list", "--json"):
                    if each["state"] in {"running", "paused"}:
                        found.setdefault(each["name"], []).append(host)
        return {name: "+".join(hosts) for name, hosts in found.items()}

    def moves(self, campaign: str, *database: str, host: str = "a") -> Mapping[str, str]:
        """The status of each move of a campaign, by the domain's name, as a host's store has it."""
        shown = _json(self.lab[host], "campaign", "show", campaign, "--json", *database)
        return {each["move"]["name"]: each.get("status", "waits") for each in shown["moves"]}

    def wait_until_one_moves(self, campaign: str, *database: str, host: str = "a") -> None:
        """Wait until something of a campaign is under way."""
        words = ["entourage", "campaign", "show", campaign, *database]
        known = self.lab[host]  # each pair is TESTed before it is there
        wait_until(lambda: not known.run(words, check=False).returncode, PATIENCE)
        wait_until(lambda: "moves" in self.moves(campaign, *database, host=host).values())

    def bring_home(self) -> None:
        """Have all guests on a again, for the next test."""
        for name, host in self.where().items():
            if host != "a" and name in GUESTS:
                run = self.run("migrate", name, "a", host=host)
                assert run.status == 0, str(run)

    def check(self, names: Sequence[str] = GUESTS, *, away: bool = True) -> None:
        """Each guest runs once, and has run on since it was started; nothing is left over."""
        where = self.where()
        assert set(names) <= where.keys(), where
        assert not [name for name, host in where.items() if "+" in host], where
        if away:
            assert "a" not in {where[name] for name in names}, where
        for name in names:
            assert self.lives(name).boot == self.boots[name]
        for host in HOSTS:
            room = _json(self.lab[host], "room", "--json")
            assert room["cordons"] == [], f"{host}: {room}"
            assert _json(self.lab[host], "status", "--json") == []


def ended(process: HostProcess, patience: float = PATIENCE) -> Run:
    """Wait for a command."""
    stdout, stderr = process.communicate(timeout=patience)
    return Run(process.returncode, stdout, stderr)


def _json(host: Host, *words: str) -> Any:
    return json.loads(host.run(["entourage", *words]).stdout)


def _address(name: str) -> str:
    return network.guest_address(int(name[-1]) - 1)
