"""A host is emptied: by a campaign, and by a shell loop over ``virsh migrate``, two at a time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.guests import SETTINGS, Shape
from bench.virsh import Virsh
from lab.host import Host
from lab.hosts import Lab
from lab.libvirtd import LOCAL, ssh_uri
from lab.observer import Observer

Log = Callable[[str], None]
GUESTS = 4
"""Under TCG each takes a sixth of a core as it stands idle: ten would leave nothing for moves."""
_AT_ONCE = 2
_PATIENCE = 600.0
_BOOT = 300.0
_PING = 0.005
_FLEET = '[[host]]\nname = "a"\n[[host]]\nname = "b"\n'
_CONFIG = "/etc/entourage/entourage.toml"
_MIGRATE = "virsh --quiet --connect {local} migrate --live --persistent --undefinesource"


def evacuate_times(shape: Shape, count: int, log: Log) -> dict[str, Any]:
    """Seconds in which each party empties a host onto another, and the worst blackout of each.

    All guests are libvirt's, and run all the time. The parties take turns; each host is emptied by
    each of them in turn, so that neither has the better direction.

    Args:
        shape: What each guest consists of.
        count: How many rounds.
        log: Takes a line for each.

    Returns:
        By what was measured, the parties' seconds, round by round, and their ratios.
    """
    if shutil.which("libvirtd") is None:
        return {"left out": "no libvirtd here"}
    found: dict[str, Any] = {"total": [], "worst blackout": []}
    lost = 0
    with Lab.up(name="bench-evacuate") as lab:
        guests = [Virsh(lab, shape, index, "evacuate") for index in range(GUESTS)]
        with Observer.start(lab, [one.address for one in guests], interval=_PING) as seen:
            bench = _Bench(lab, guests, seen)
            bench.begin()
            for number in range(count):
                one = bench.round(backwards=bool(number % 2))
                if one is None:
                    lost += 1
                    log("thrown out: a guest did not survive")
                    continue
                for what, seconds in one.items():
                    found[what].append(seconds)
                    cells = (f"{party} {took:.3f} s" for party, took in seconds.items())
                    log(f"{what:>16}: {', '.join(cells)}")
    for what in ("total", "worst blackout"):
        found[f"{what}, entourage to loop"] = [
            seconds["entourage"] / seconds["loop"] for seconds in found[what]
        ]
    return {"guests": GUESTS, "at once": _AT_ONCE, "rounds thrown out": lost, **found}


class _Bench:
    """All guests, on one of two hosts at a time.

    Args:
        lab: The hosts.
        guests: What is moved.
        seen: Pings all of them.
    """

    def __init__(self, lab: Lab, guests: Sequence[Virsh], seen: Observer) -> None:
        self._guests = guests
        self._seen = seen
        self._here, self._there = lab["a"], lab["b"]

    def begin(self) -> None:
        """Start all, one after the other."""
        for host in (self._here, self._there):
            host.run(["mkdir", "-p", "/etc/entourage"])
            host.write_files({"/etc/entourage/fleet.toml": _FLEET, _CONFIG: SETTINGS})
        for guest in self._guests:
            guest.start()
            self._seen.wait_for(lambda report: report.up, _BOOT, guest.address)

    def round(self, *, backwards: bool) -> Mapping[str, Mapping[str, float]] | None:
        """Each party empties the host that all are on; by what was measured, its seconds.

        None where a guest has rebooted, as some do without KVM: see docs/benchmarks.md.
        """
        boots = self._boots()
        parties = [("entourage", self._by_campaign), ("loop", self._by_loop)]
        totals: dict[str, float] = {}
        worst: dict[str, float] = {}
        for party, work in reversed(parties) if backwards else parties:
            for guest in self._guests:
                self._seen.wait_progress(_PATIENCE, guest.address)
            began = time.monotonic()
            work(self._here, self._there)
            totals[party] = time.monotonic() - began
            worst[party] = max(
                self._seen.longest_gap(began, None, guest.address).seconds for guest in self._guests
            )
            self._here, self._there = self._there, self._here
        for guest in self._guests:
            self._seen.wait_progress(_PATIENCE, guest.address)
        if self._boots() != boots:
            return None
        return {"total": totals, "worst blackout": worst}

    def _boots(self) -> list[str]:
        return [self._seen.report(guest.address).boot for guest in self._guests]

    def _by_campaign(self, here: Host, there: Host) -> None:
        limits = ("--at-once", str(_AT_ONCE), "--per-target", str(_AT_ONCE))
        there_only = ("--to", there.name)
        command = ["entourage", "evacuate", here.name, *there_only, *limits]
        here.run(command, timeout=_PATIENCE)

    def _by_loop(self, here: Host, there: Host) -> None:
        """What a user would type; two at a time is what it is told."""
        migrate = [*_MIGRATE.format(local=LOCAL).split(), "{}", ssh_uri(there)]
        names = "\n".join(guest.name for guest in self._guests)
        here.run(["xargs", "-P", str(_AT_ONCE), "-I{}", *migrate], input=names, timeout=_PATIENCE)
