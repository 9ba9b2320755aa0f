"""The wires between hosts: a switch, ways to cut it, and addresses."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Final, Literal

from lab.processes import checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lab.host import Host

SUBNET = "10.77.0"
PREFIX = 24
SWITCH_BRIDGE = "lab0"
HOST_BRIDGE = "br0"
CLIENT_ADDRESS = f"{SUBNET}.250"
FIRST_GUEST = 100
GUESTS = 100

How = Literal["drop", "lossy", "reset"]
Direction = Literal["both", "a-b", "b-a"]
Traffic = Literal["all", "ssh", "data"]


def host_address(index: int) -> str:
    """The address of the host with that index, from 1."""
    return f"{SUBNET}.{index}"


def guest_address(index: int = 0) -> str:
    """The address of the guest with that index, from 0."""
    return f"{SUBNET}.{FIRST_GUEST + index}"


def mac_of(address: str) -> str:
    """The MAC of a lab NIC: made from its address, so that nobody has to ask for it."""
    last = int(address.rsplit(".", 1)[1])
    family = "52:54:00" if FIRST_GUEST <= last < FIRST_GUEST + GUESTS else "02:4c:42"
    return f"{family}:77:00:{last:02x}"


def guest_neighbours() -> list[tuple[str, str]]:
    """The (address, MAC) of guests, for who must not wait for ARP."""
    addresses = [guest_address(index) for index in range(GUESTS)]
    return [(address, mac_of(address)) for address in addresses]


def ip_batch(netns_pid: int, lines: Iterable[str]) -> None:
    """Run `ip` commands in the network namespace of a process, and only in that.

    Other namespaces stay the machine's, so that `netns PID` means what it means outside.
    """
    checked(
        subprocess.run(
            ["nsenter", f"--target={netns_pid}", "--net", "--", "ip", "-batch", "-"],
            input="\n".join(lines),
            text=True,
            check=False,
            capture_output=True,
        )
    )


def port_of(host: str) -> str:
    """The switch's port that a host is plugged into."""
    return f"to-{host}"


def plug_in(switch_pid: int, hosts: Sequence[tuple[str, int]]) -> None:
    """Connect hosts, by name and first process, to the switch; each gets an `uplink`."""
    lines: list[str] = []
    for name, pid in hosts:
        lines += [
            f"link add name {port_of(name)} type veth peer name uplink netns {pid}",
            f"link set dev {port_of(name)} master {SWITCH_BRIDGE} up",
        ]
    ip_batch(switch_pid, lines)


def cut_table(a: str, b: str) -> str:
    """The name of the nftables table that cuts two hosts, whichever comes first."""
    return "cut_" + "_".join(sorted((a, b)))


_LOSES: Final[dict[How, str]] = {"drop": "", "lossy": "numgen random mod 20 == 0"}


@dataclass(frozen=True)
class Cut:
    """A cut between two hosts; `mend` undoes it."""

    a: Host
    b: Host
    how: How
    direction: Direction
    traffic: Traffic

    @property
    def _table(self) -> str:
        return cut_table(self.a.name, self.b.name)

    def _rules(self, where: str, verdict: str) -> list[str]:
        """The rules that give the verdict on the traffic to be cut."""
        ssh = [f"{where} tcp {port} 22" for port in ("sport", "dport")]
        if self.traffic == "all":
            return [f"{where} {verdict}"]
        if self.traffic == "ssh":
            return [f"{match} {verdict}" for match in ssh]
        # Not by `!=`: nft merges two of these into one comparison that means something else.
        return [f"{match} accept" for match in ssh] + [f"{where} meta l4proto tcp {verdict}"]

    def make(self, switch: Host) -> None:
        """Cut now; what was said before and not yet heard is lost too."""
        if self.how in _LOSES:
            self._lose(switch, _LOSES[self.how])
        else:
            self._reset()

    def _lose(self, switch: Host, which: str) -> None:
        """Lose packets without a word, in the switch: neither host can know."""
        ways: list[tuple[Host, Host]] = []
        if self.direction in ("both", "a-b"):
            ways.append((self.a, self.b))
        if self.direction in ("both", "b-a"):
            ways.append((self.b, self.a))
        rules = [
            rule
            for source, target in ways
            for rule in self._rules(
                f"iifname {port_of(source.name)} oifname {port_of(target.name)}",
                f"{which} counter drop",
            )
        ]
        _nft(switch, "bridge", self._table, [_chain("forward", rules)])

    def _reset(self) -> None:
        """Answer with RST, on both hosts, and reset the connections that there are."""
        for here, there in ((self.a, self.b), (self.b, self.a)):
            where = f"{there.address} meta l4proto tcp"
            verdict = "reject with tcp reset"
            chains = [
                # The RST that answers the output has to get in.
                _chain(
                    "input",
                    ["tcp flags & rst == rst accept", *self._rules(f"ip saddr {where}", verdict)],
                ),
                _chain("output", self._rules(f"ip daddr {where}", verdict)),
            ]
            _nft(here, "inet", self._table, chains)
        for here, there in ((self.a, self.b), (self.b, self.a)):
            self._reset_existing(here, there)

    def _reset_existing(self, here: Host, there: Host) -> None:
        """Close the established connections: an idle one would send nothing to be answered."""
        wanted = {
            "all": [],
            "ssh": ["(", "sport", "=", "22", "or", "dport", "=", "22", ")"],
            "data": ["sport", "!=", "22", "and", "dport", "!=", "22"],
        }[self.traffic]
        here.run(["ss", "--kill", "--tcp", "--no-header", "dst", there.address, *wanted])


def dropped(switch: Host, table: str) -> int:
    """How many packets a cut by ``drop`` has lost so far."""
    listed = switch.run(["nft", "list", "table", "bridge", table]).stdout
    return sum(map(int, re.findall(r"counter packets (\d+)", listed)))


def mend(hosts: Iterable[Host], table_pattern: str) -> None:
    """Remove the cuts whose table matches, on these hosts: a cut leaves no other trace."""
    for host in hosts:
        if not host.is_on:
            continue
        for line in host.run(["nft", "list", "tables"]).stdout.splitlines():
            _, family, table = line.split()
            if fnmatch(table, table_pattern):
                host.run(["nft", "delete", "table", family, table])


def _chain(hook: str, rules: Sequence[str]) -> str:
    return "\n".join(
        [f"chain {hook} {{", f"type filter hook {hook} priority 0", *rules, "}"],
    )


def _nft(host: Host, family: str, table: str, chains: Sequence[str]) -> None:
    host.run(["nft", "-f", "-"], input="\n".join([f"table {family} {table} {{", *chains, "}", ""]))
