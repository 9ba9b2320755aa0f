"""The ``entourage attend`` of a host whose unit is enabled."""

from __future__ import annotations

from tests.e2e.attend.world import Attend
from tests.e2e.run import PATIENCE
from tests.unit.eventually import wait_until

UNIT = "entourage-attend"


class UnitAttend(Attend):
    """The daemon of a host whose unit is enabled."""

    def start(self, **environment: str) -> None:
        """Have systemd start it, and return when it attends."""
        assert not environment
        self.host.run(["systemctl", "start", UNIT])
        wait_until(lambda: self.shown("StatusText").startswith("attends"))

    def _end(self, how: str) -> None:
        """End it for good, as systemd does."""
        del how
        self.host.run(["systemctl", "stop", UNIT], timeout=PATIENCE)

    @property
    def runs(self) -> bool:
        """Whether it is there, or soon is again."""
        return self.shown("ActiveState") in {"active", "activating"}

    @property
    def log(self) -> str:
        """What it has said since its host was booted."""
        return self.host.run(["journalctl", "--no-pager", "-b", "-u", UNIT]).stdout

    def shown(self, what: str) -> str:
        """A property of its unit."""
        return self.host.run(["systemctl", "show", "-P", what, UNIT]).stdout.strip()
