"""Which faults come in a seed's simulation, and where."""

from __future__ import annotations

import dataclasses
import random

KINDS = {
    "kill-source": 10,
    "kill-agent": 10,
    "kill-deadman": 3,
    "power-a": 8,
    "power-b": 8,
    "freeze-source": 6,
    "freeze-agent": 6,
    "freeze-deadman": 2,
    "cut": 6,
    "silent": 8,
    "slow": 4,
    "fails-a": 9,
    "fails-b": 9,
    "hangs-a": 5,
    "hangs-b": 5,
    "late-a": 6,
    "late-b": 6,
    "disk-a": 4,
    "disk-b": 4,
    "guest-ends": 5,
    "crash-a": 5,
    "crash-b": 7,
    "unheard-a": 4,
    "full-a": 3,
    "full-b": 3,
    "readonly-a": 2,
    "readonly-b": 2,
    "io-a": 4,
    "io-b": 4,
    "torn-a": 5,
    "torn-b": 5,
    "sigint": 6,
    "sigterm-agent": 3,
    "recover-a": 3,
    "recover-b": 3,
}
TOGETHER = (
    ("torn-b", "power-b"),
    ("torn-a", "power-a"),
    ("kill-agent", "power-a"),
    ("kill-source", "recover-a"),
    ("kill-source", "recover-b"),
    ("kill-agent", "recover-b"),
    ("cut", "fails-a"),
    ("cut", "recover-b"),
    ("fails-b", "fails-a"),
    ("fails-a", "fails-a"),
    ("freeze-agent", "recover-a"),
    ("freeze-source", "recover-b"),
    ("sigterm-agent", "hangs-a"),
    ("silent", "hangs-b"),
    ("power-a", "power-b"),
    ("freeze-agent", "kill-source"),
    ("hangs-b", "crash-a"),
    ("kill-agent", "fails-b"),
    ("fails-b", "hangs-a"),
    ("silent", "sigint"),
    ("freeze-agent", "sigint"),
    ("crash-a", "fails-b"),
    ("fails-b", "hangs-b"),
    ("late-b", "power-b"),
)
"""Faults that are worse together: a part of all seeds has such a pair, one soon after the other."""
NAMES = (
    *(
        f"source.{when}.{what}"
        for when in ("before", "after")
        for what in (
            "flush-armed",
            "disarm-deadman",
            "send-go",
            "resume-source",
            "flush-back",
            "flush-gone",
            "send-gone",
            "destroy-source",
            "undo-resources",
            "clean",
        )
    ),
    *(
        f"target.{when}.{what}"
        for when in ("before", "after")
        for what in (
            "flush-open",
            "send-landed",
            "sync-devices",
            "flush-go",
            "let-run",
            "flush-ran",
            "send-ran",
            "flush-never",
            "send-never",
            "kill-target",
            "undo-resources",
            "flush-owns",
            "clean",
        )
    ),
    *("ask.abort", "does.abort", "ask.run", "does.run", "done.run", "ask.release", "does.release"),
    *(
        f"ask.{what}"
        for what in ("kill", "undo.disk", "undo.machine", "tpm.persist", "persist-definition")
    ),
    *(
        "ask.finish-arrival",
        "ask.thing.plug",
        "ask.thing.sync",
        "ask.attach",
        "ask.reattach",
        "ask.tpm.unlock",
    ),
    *("ask.landed", "does.landed", "GoSent", "MemoryLanded", "GuestStopped", "GuestResumed"),
)
"""Points at which much is decided: a part of all faults come there."""
SCENES = (
    (("fails-a", "ask.disarm-deadman"), ("fails-a", "ask.abort"), ("fails-a", "ask.abort")),
    (("cut", "GuestStopped"), ("full-a", "does.abort")),
    (("fails-b", "target.before.send-landed"), ("io-b", "target.before.flush-never")),
    (("freeze-source", "source.after.send-go"), ("crash-b", "target.before.flush-go")),
    (("freeze-agent", "target.after.send-landed"), ("recover-a", "GoSent")),
    (("freeze-agent", "target.before.flush-go"), ("kill-source", "GoSent")),
    (("kill-source", "source.after.send-go"), ("torn-b", "target.before.flush-go")),
    (("kill-agent", "target.after.let-run"), ("power-a", "GoSent")),
    (("io-b", "target.before.flush-go"), ("kill-source", "GoSent")),
    (("sigint", "make.machine"),),
    (("sigint", "make.disk"),),
    (("sigint", "GuestStopped"), ("fails-b", "ask.undo.disk")),
    (("kill-agent", "GuestStopped"), ("fails-b", "ask.undo.disk")),
    (("cut", "source.before.flush-gone"), ("fails-a", "ask.release")),
    (("fails-a", "ask.thing.put-back"), ("cut", "MemoryLanded")),
    (("sigterm-agent", "ask.tpm.lock"), ("hangs-a", "ask.tpm.lock")),
    (("kill-agent", "target.after.flush-ran"), ("crash-b", "target.after.send-ran")),
)
"""Faults at named points that are known to be worse together: a part of all seeds has one."""
LATE = (
    "kill-recover",
    "torn-recover",
    "power-a",
    "power-b",
    "kill-agent",
    "cut",
    "fails-a",
    "fails-b",
)
"""What goes wrong while ``recover`` runs."""
LATE_NAMES = (
    *("ask.attach", "ask.reattach", "ask.kill", "ask.undo.disk", "ask.undo.machine"),
    *("ask.abort", "ask.release", "ask.run", "ask.persist-definition", "ask.disk.delete"),
)
"""And at which points."""
OFTEN_LATE = 0.15
"""And how often."""
ANSWERED = frozenset(
    {
        *("abort", "build", "disarm-deadman", "kill", "persist-definition", "release", "run"),
        *("start", "disk.cancel", "disk.complete", "disk.delete", "disk.make", "disk.mirror"),
        *("thing.plug", "thing.put-back", "thing.take-out", "tpm.erase", "tpm.lock"),
        *("tpm.persist", "tpm.unlock", "undo.disk", "undo.machine"),
    }
)
"""Calls whose answer may be lost; others are as good as not asked then."""
USUAL_POINTS, USUAL_STEPS = 170, 900


@dataclasses.dataclass
class Fault:
    """One fault.

    Attributes:
        kind: One of ``KINDS``.
        by, at: It comes at this point or callback of the simulation, or at this second.
        lasts: Seconds, where it ends by itself.
        name: It comes at the first point of this name, wherever that is.
    """

    kind: str
    by: str
    at: float
    lasts: float
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} at {self.by} {self.name or f'{self.at:g}'} for {self.lasts:.2f} s"


def planned(seed: int) -> list[Fault]:
    """The faults of a seed."""
    rng = random.Random(f"faults {seed}")  # noqa: S311 - it must repeat
    if rng.random() < 0.1:
        scene, lasts = rng.choice(SCENES), rng.choice((0.5, 12.0, 40.0))
        return [Fault(kind, "name", 0, lasts * (0.5 + rng.random()), at) for kind, at in scene]
    count = rng.choices((0, 1, 2, 3), (2, 50, 36, 12))[0]
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=count)
    if rng.random() < 0.25:
        kinds = [*rng.choice(TOGETHER), *kinds[2:]]
    found: list[Fault] = []
    for number, kind in enumerate(kinds):
        by = rng.choices(("point", "name", "step", "time"), (45, 35, 12, 8))[0]
        most = {"point": USUAL_POINTS, "step": USUAL_STEPS, "time": 8, "name": 1}[by]
        name = rng.choice(NAMES) if by == "name" else ""
        at = rng.uniform(0, most)
        if number and rng.random() < 0.5:  # soon after the one before
            before = found[-1]
            by, name, near = before.by, before.name, rng.choice((0, 2, 10, most / 20))
            at = before.at + rng.uniform(0, near)
        lasts = rng.choice((0.05, 0.5, 3.0, 12.0, 40.0, 90.0)) * (0.5 + rng.random())
        found.append(Fault(kind, by, at if by == "time" else int(at), lasts, name))
    return found
