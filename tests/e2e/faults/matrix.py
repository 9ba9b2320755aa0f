"""The faults, and what is to come of each: written down before anything is tried.

A letter for each fault at each point:

* ``S`` the source has the guest, which lives on;
* ``T`` the target has it, which lives on;
* ``s``, ``t`` the same, but what was killed was a part of the guest's own machine while the guest
  was on it: the guest may be dead there, and starts again with all that it was told is written;
* ``E`` either host: the fault races with a message on its way. The guest lives on;
* ``e`` either host, and the guest may be dead there;
* ``.`` there is nothing to kill, or it is the same as the case beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

POINTS: Final = {
    "test": "source.step-started.0",
    "armed": "source.after.flush-armed",
    "opened": "target.after.flush-open",
    "prepare": "source.step-started.1",
    "prepared": "source.step-done.1",
    "pre-copy": "source.policy-changed",
    "stopped": "source.step-started.2",
    "sync": "source.step-started.3",
    "landed": "source.memory-landed",
    "held": "source.after.disarm-deadman",
    "go-said": "source.go-sent",
    "go-heard": "target.before.flush-go",
    "go-stands": "target.after.flush-go",
    "released": "target.after.let-run",
    "ran": "target.after.flush-ran",
    "letting-go": "source.before.destroy-source",
}
"""Where a migration can be stopped (``entourage.testpoints``), in the order it gets there."""

_EXPECTED: Final = {
    # test armed opened prepare prepared pre-copy | stopped sync landed held
    # | go-said go-heard go-stands | released ran letting-go
    "entourage": "SSSSSS SSSS TTT TTT",
    "agent": "SSSSSS SSSS EST TTT",
    "entourage-frozen": "SSSSSS SSSS TTT TTT",
    "agent-frozen": "SSSSSS SSSE EET TTT",
    "ssh-frozen": "SSSSSS SSSE ETT TTT",
    "target-qemu-frozen": "....EE SETT TTT TTT",
    "ssh": "SSSSSS SSSS ETT TTT",
    "source-qemu": "ssssss seTT TTT TTT",
    "target-qemu": "....SS SSSS eSS ttt",
    "source-swtpm": "ssssss seTT TTT TTT",
    "target-swtpm": "....SS SSSS eSS ttt",
    "tool": "S..S.. SS.. ... ...",
    "source-host": "ssssss ssss eTT TTT",
    "target-host": "SSSSSS SSSS eSt ttt",
    "link-reset": "SSSSSS SSSS .TT TTT",
    "link-drop": "SSSSSS SSSS .TT TTT",
    "link-drop-to": "SSSSSS SSSS .TT TTT",
    "link-drop-fro": "SSSSSS SEET .TT TTT",
    "link-mended": "TTTTTT TTTT TTT TTT",
    "link-lossy": "EEEEEE EEEE ETT TTT",
    "link-flaps": "EEEEEE EEEE ETT TTT",
    "link-reorders": "TTTTTT TTTT TTT TTT",
    "strangers": "....TT TT.. ... ...",
    "disk-full": "SSSSEE EEET .TT TTT",
    "source-disk-full": "EEEEEE EEEE TTT TTT",
    "both-hosts": "ssssss ssss est ttt",
    "source-host-and-agent": "ssssss ssss esT TTT",
    "clock": "TTTTTT TTTT TTT TTT",
}

_CORE: Final = """
entourage: go-said
source-qemu: held
target-qemu: go-stands
target-host: go-stands
"""
"""Those that ``make test`` tries; ``make test-faults`` tries all."""


@dataclass(frozen=True)
class Case:
    """One fault at one point.

    Attributes:
        fault: What dies, or goes wrong.
        point: Where the migration stands at that moment, a key of ``POINTS``.
        expected: A letter, see above.
        core: Whether ``make test`` tries it.
    """

    fault: str
    point: str
    expected: str
    core: bool

    @property
    def owners(self) -> tuple[str, ...]:
        """Whose the guest may be afterwards: ``source``, ``target``."""
        one = {"s": ("source",), "t": ("target",)}
        return one.get(self.expected.lower(), ("source", "target"))

    @property
    def frozen(self) -> bool:
        """Whether nothing dies: a process stands still for a while, and then goes on."""
        return self.fault.endswith("-frozen")

    @property
    def in_budget(self) -> bool:
        """Whether the guest must not stand still for longer than ``--max-blackout`` and a second.

        Once the deadman is disarmed, nobody but the target knows who may run the guest; and that
        the agent is frozen is not known in the milliseconds from there to GO. Where it may end on
        the target, that may take as long as its part of it stands still.
        """
        last = "held" if self.fault == "entourage-frozen" else "landed"
        return (
            self.frozen
            and self.expected == "S"
            and list(POINTS).index(self.point) < list(POINTS).index(last)
        )

    @property
    def survives(self) -> bool:
        """Whether the guest must live on."""
        return self.expected.isupper()

    def __str__(self) -> str:
        return f"{self.fault}-{self.point}"


def cases() -> list[Case]:
    """All of them, fault by fault."""
    chosen = {
        (fault, point)
        for line in _CORE.strip().splitlines()
        for fault, _, points in [line.partition(":")]
        for point in points.split()
    }
    return [
        Case(fault, point, letter, (fault, point) in chosen)
        for fault, letters in _EXPECTED.items()
        for point, letter in zip(POINTS, letters.replace(" ", ""), strict=True)
        if letter != "."
    ]
