"""The guest ends by itself while it moves: it is off, on the source, and nobody is in doubt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.e2e.world import World

_QEMU = "qemu-system-x86_64"
_SAID = {"poweroff": "was shut down from inside while it moved", "crash": "has ended ("}


@dataclass(frozen=True)
class Ending:
    """How a guest ends, and where the migration stands then."""

    how: Literal["poweroff", "crash"]
    point: str

    def __str__(self) -> str:
        return f"{self.how}-{self.point}"


def ends(
    world: World,
    case: Ending,
    *,
    options: Sequence[str] = (),
    meanwhile: Callable[[], bool] = lambda: False,
) -> None:
    """It may be started at once afterwards: there is nothing to recover.

    Args:
        world: The guest and its hosts.
        case: How it ends.
        options: Of ``entourage migrate``.
        meanwhile: Called again and again until that has ended; whether a daemon that would have
            known why had to be started again.
    """
    on_source, on_target = [case.point], list[str]()
    if case.point.startswith("target."):
        on_source, on_target = on_target, on_source
    with world.under(*on_source, options=options, on_target=on_target) as under:
        under.wait(case.point)
        if case.how == "poweroff":
            world.guest.poweroff()
        else:
            world.kill(world.here, _QEMU)
        under.open()
        why_is_lost = False
        while under.process.poll() is None:
            why_is_lost |= meanwhile()
            time.sleep(0.05)  # a daemon that dies tells nobody
        run = under.end()
    assert run.status == 7, str(run)
    assert run.finished["outcome"] == "guest-ended", str(run)
    said = run.finished["message"]
    assert _SAID[case.how] in said or (why_is_lost and _SAID["crash"] in said), str(run)
    assert not run.finished["problems"], str(run)
    world.is_clean(world.there)
    status = json.loads(world.here.run(["entourage", "status", "--json"]).stdout)
    assert not status, status
    world.restart()
