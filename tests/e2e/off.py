"""A domain that is off, and which of two hosts has it; moved, and killed in the middle of that."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lab.host import Host
from lab.hosts import Lab
from lab.processes import HostProcess
from tests.e2e.points import Points
from tests.e2e.run import PATIENCE, Run

NAME = "rests"
CORE_POINTS = (
    pytest.param("offline-claimed", marks=pytest.mark.matrix),
    "offline-gone",
    pytest.param("offline-forgotten", marks=pytest.mark.matrix),
)


@dataclass
class Off:
    """It, on two hosts.

    Attributes:
        lab: The hosts, a and b.
        disk: Its disk on storage that both see; it holds something that must stay.
    """

    lab: Lab
    disk: str

    def move(self, host: str = "a", *words: str, to: str = "b") -> Run:
        """Run `entourage migrate --offline` on a host to its end."""
        return _ended(self._begin(host, *words, to=to))

    def killed(self, point: str) -> None:
        """The same on a, killed at a point."""
        with Points(self.lab["a"], point) as points:
            process = self._begin("a", env=points.env)
            points.wait(point, lambda: process.poll() is None)
            process.send_signal(signal.SIGKILL)
            _ended(process)

    def _begin(
        self, host: str, *words: str, to: str = "b", env: dict[str, str] | None = None
    ) -> HostProcess:
        command = ["entourage", "migrate", "--offline", *words, NAME, to]
        return self.lab[host].popen(command, env=env or {})

    def where(self) -> str:
        """The hosts that have it, off."""
        return "+".join(name for name in ("a", "b") if self._has(self.lab[name]))

    def claims(self) -> list[str]:
        """What hosts keep that is not theirs yet."""
        found = [
            each for name in ("a", "b") for each in self.lab[name].path(_CLAIMS).glob("*.json")
        ]
        return sorted(each.name for each in found)

    def _has(self, host: Host) -> bool:
        listed = json.loads(host.run(["entourage", "list", "--all", "--json"]).stdout)
        return any(one["name"] == NAME and one["state"] == "shut off" for one in listed)


_CLAIMS = "/var/lib/entourage/claims"


def moves_and_comes_back(off: Off, starts: Callable[[Host], None]) -> None:
    """It is where it was moved to, can be started there, and not where it was."""
    there = off.lab["b"]
    run = off.move("a", "--json", "--dry-run")
    assert (run.status, run.finished["outcome"]) == (0, "can-move"), str(run)
    assert off.where() == "a"
    run = off.move()
    assert run.status == 0, str(run)
    assert off.where() == "b"
    assert off.move().status == 0  # done is done
    assert off.where() == "b"
    run = _ended(off.lab["a"].popen(["entourage", "start", NAME]))
    assert run.status == 3, str(run)
    assert f"{NAME} moved to b" in run.stderr
    starts(there)
    run = off.move("b", "--json", to="a")
    assert run.status != 0, str(run)
    assert "is not off" in run.stderr + run.stdout, str(run)
    assert there.run(["entourage", "stop", "--force", NAME]).returncode == 0
    run = off.move("b", to="a")
    assert run.status == 0, str(run)
    assert off.where() == "a"
    assert off.claims() == []


def is_made_sure_of(off: Off, point: str) -> None:
    """Killed there, no two hosts have it; the same command goes on, and one has it then."""
    off.killed(point)
    assert off.where() in {"a", ""}, point
    for name in ("a", "b"):
        if name == "b" or point != "offline-claimed":  # until the journal says so it is a's
            run = _ended(off.lab[name].popen(["entourage", "start", NAME]))
            assert run.status != 0, str(run)
    run = off.move()
    assert run.status == 0, f"{point}: {run}"
    assert off.where() == "b"
    assert off.claims() == []
    run = off.move("b", to="a")
    assert run.status == 0, f"{point}: {run}"
    assert off.where() == "a"


def _ended(process: HostProcess) -> Run:
    stdout, stderr = process.communicate(timeout=PATIENCE)
    return Run(process.returncode, stdout, stderr)
