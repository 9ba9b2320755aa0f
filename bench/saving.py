"""How long a save and a restore take, beside virsh's; and how long a checkpoint stops its guest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.guests import Entourage, Shape, fill
from bench.virsh import Virsh
from lab.hosts import Lab
from lab.libvirtd import LOCAL
from lab.observer import Observer

Log = Callable[[str], None]
_PATIENCE = 180.0
_BOOT = 180.0
_SETTLE = 1.0  # seconds: after it was let run again, a guest has something to catch up with
# Seconds from a save to its restore. A machine that is itself virtual gives what the guest had of
# its memory back to its host meanwhile; who restores at once has it for less.
_BETWEEN = 3.0
_PING = 0.001
_DIR = "/srv/saved"
_FILE = "/srv/saved.virsh"
_MEMORY = "/srv/memory.virsh"
_OVERLAY = "/srv/overlay.qcow2"


def save_times(shape: Shape, count: int, log: Log) -> dict[str, Any]:
    """Seconds of so many saves and restores of the same libvirt domain, and of an own machine.

    The parties take turns, each round the other way round; between a save and its restore some
    seconds pass. Beside the own machine's checkpoint, libvirt's snapshot of memory and disks while
    its domain runs; what stops the guest is the longest time without an answer to a ping.

    Args:
        shape: What the guests consist of.
        count: How many rounds.
        log: Takes a line for each.

    Returns:
        By what was done, the parties' seconds, round by round; all in the same run.
    """
    if shutil.which("libvirtd") is None:
        return {"left out": "no libvirtd here"}
    found: dict[str, Any] = {"save": [], "restore": [], "checkpoint stops": [], "checkpoint": []}
    with Lab.up(name="bench-save") as lab:
        own, theirs = Entourage(lab, shape, 0), Virsh(lab, shape, 1, "virsh")
        with Observer.start(lab, [own.address, theirs.address], interval=_PING) as seen:
            bench = _Bench(own, theirs, seen)
            bench.begin()
            for number in range(count):
                one = bench.round(backwards=bool(number % 2))
                for what, seconds in one.items():
                    found[what].append(seconds)
                    cells = (f"{party} {took:.3f} s" for party, took in seconds.items())
                    log(f"{what:>16}: {', '.join(cells)}")
    for what in tuple(found):
        found[f"{what}, entourage to virsh"] = [
            seconds["entourage"] / seconds["virsh"] for seconds in found[what]
        ]
    return found


class _Bench:
    """Both guests; one of them at a time runs.

    Args:
        own: A machine of Entourage's own.
        theirs: A domain of libvirt's.
        seen: Pings both.
    """

    def __init__(self, own: Entourage, theirs: Virsh, seen: Observer) -> None:
        self._own = own
        self._theirs = theirs
        self._seen = seen
        self._host = own.source

    def begin(self) -> None:
        """Start both, and leave them paused."""
        for guest in (self._own, self._theirs):
            guest.start()
            self._seen.wait_for(lambda report: report.up, _BOOT, guest.address)
            guest.pause()
        fill(self._host, self._own.shape.memory, self._own.shape.filled)

    def round(self, *, backwards: bool) -> dict[str, dict[str, float]]:
        """One round: by what was done, the seconds of each party."""
        saved: dict[str, float] = {}
        restored: dict[str, float] = {}
        parties = [
            ("entourage", self._theirs, self._by_entourage),
            ("virsh", self._theirs, self._by_virsh),
            ("own", self._own, self._own_machine),
        ]
        for party, guest, work in reversed(parties) if backwards else parties:
            guest.resume()
            self._calm(guest.address)
            saved[party], restored[party] = work()
            self._calm(guest.address)
            guest.pause()
        took, stops = self._checkpoints(backwards=backwards)
        return {
            "save": saved,
            "restore": restored,
            "checkpoint": took,
            "checkpoint stops": stops,
        }

    def _calm(self, address: str) -> None:
        self._seen.wait_progress(_PATIENCE, address)
        self._host.run(["sync"])  # or whoever is next waits for what the one before has written
        time.sleep(_SETTLE)

    def _timed(self, argv: Sequence[str]) -> float:
        began = time.monotonic()
        self._host.run(list(argv), timeout=_PATIENCE)
        return time.monotonic() - began

    def _virsh(self, *words: str) -> list[str]:
        return ["virsh", "--quiet", "--connect", LOCAL, *words]

    def _saved_by_entourage(self, name: str) -> tuple[float, float]:
        saved = self._timed(["entourage", "save", "--quiet", name, _DIR])
        time.sleep(_BETWEEN)
        restored = self._timed(["entourage", "restore", "--quiet", _DIR])
        self._host.run(["rm", "-r", _DIR])
        return saved, restored

    def _by_entourage(self) -> tuple[float, float]:
        return self._saved_by_entourage(self._theirs.name)

    def _own_machine(self) -> tuple[float, float]:
        return self._saved_by_entourage(self._own.name)

    def _by_virsh(self) -> tuple[float, float]:
        saved = self._timed(self._virsh("save", self._theirs.name, _FILE))
        time.sleep(_BETWEEN)
        restored = self._timed(self._virsh("restore", _FILE))
        self._host.run(["rm", _FILE])
        return saved, restored

    def _checkpoints(self, *, backwards: bool) -> tuple[dict[str, float], dict[str, float]]:
        took: dict[str, float] = {}
        stops: dict[str, float] = {}
        parties = [
            ("entourage", self._own, self._checkpoint),
            ("virsh", self._theirs, self._snapshot),
        ]
        for party, guest, work in reversed(parties) if backwards else parties:
            guest.resume()
            self._calm(guest.address)
            began = time.monotonic()
            took[party] = work()
            stops[party] = self._seen.longest_gap(began, None, guest.address).seconds
            self._calm(guest.address)
            guest.pause()
            self._host.run(["rm", "-rf", _DIR, _MEMORY, _OVERLAY])
        return took, stops

    def _checkpoint(self) -> float:
        return self._timed(["entourage", "save", "--checkpoint", "--quiet", self._own.name, _DIR])

    def _snapshot(self) -> float:
        name = self._theirs.name
        words = ("--live", "--no-metadata", "--memspec", f"file={_MEMORY},snapshot=external")
        where = ("--diskspec", f"vda,snapshot=external,file={_OVERLAY}")
        took = self._timed(self._virsh("snapshot-create-as", name, *words, *where))
        # What the guest has written since goes back into its disk: the next round is like this one.
        self._host.run(self._virsh("blockcommit", name, "vda", "--active", "--pivot", "--wait"))
        return took
