"""An ``entourage migrate`` as the tests run it: what it said, where it is held, what it calls."""

from __future__ import annotations

import json
import shlex
import signal
from dataclasses import dataclass
from typing import Any

from lab.processes import HostProcess
from tests.e2e.points import Points

# More than the longest migration takes on a machine that does other things as well.
PATIENCE = 120.0


@dataclass(frozen=True)
class Run:
    """What an ``entourage migrate`` has done and said."""

    status: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What ``--json`` printed."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def finished(self) -> dict[str, Any]:
        """The last event."""
        last = self.events[-1]
        assert last["event"] == "finished"
        return last

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def refusals(self) -> dict[str, str]:
        """Device: host, reason and remedy of its refusal."""
        found = self.of("device-refused")
        return {one["device"]: f"{one['host']}: {one['reason']} ({one['remedy']})" for one in found}

    @property
    def recovered(self) -> dict[str, int]:
        """Device: the last good step that its recovery was told."""
        assert not [one for one in self.of("device-recovered") if one["error"]], self
        return {one["device"]: one["last_good"] for one in self.of("device-recovered")}

    def __str__(self) -> str:
        return f"exit status {self.status}\n{self.stdout}\n{self.stderr}"


def far(*command: str, **environment: str) -> str:
    """A ``--remote-command``: Entourage there with an environment of its own."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    return shlex.join(["env", *variables, *(command or ("entourage",))])


@dataclass(frozen=True)
class Under:
    """An ``entourage migrate`` under way, and the points at which it is held."""

    process: HostProcess
    points: Points
    far_points: Points

    def wait(self, point: str) -> None:
        """Wait until it stands at a point, of whichever host."""
        points = self.points if point.startswith("source.") else self.far_points
        try:
            points.wait(point, lambda: self.process.poll() is None)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.end()}") from error

    def pass_on(self, point: str) -> None:
        """Let it go on from there."""
        points = self.points if point.startswith("source.") else self.far_points
        points.pass_on(point)

    def signal(self, name: str) -> None:
        """Send it a signal."""
        self.process.send_signal(signal.Signals[f"SIG{name}"])

    def open(self) -> None:
        """Let it go on, and hold it nowhere any more."""
        self.points.open()
        self.far_points.open()

    def end(self) -> Run:
        """Let it go on to its end."""
        self.open()
        stdout, stderr = self.process.communicate(timeout=PATIENCE)
        return Run(self.process.returncode, stdout, stderr)
