"""How long TEST takes: from the first question about the domain until the plan stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from bench.guests import OWN, Entourage, Shape, Traveller
from bench.virsh import OnLibvirt
from lab.delay import Delay
from lab.hosts import Lab

Log = Callable[[str], None]
EACH_WAY = 0.001
"""Seconds for which what the hosts send each other is under way."""


def test_times(shape: Shape, count: int, log: Log) -> dict[str, Any]:
    """Seconds of so many TESTs, of a machine of Entourage's own and of one of libvirt's.

    Args:
        shape: What the guest consists of.
        count: How often.
        log: Takes a line for each.

    Returns:
        By the hypervisor: the parts and ``all``, TEST by TEST.
    """
    found: dict[str, Any] = {"seconds each way": EACH_WAY}
    kinds: list[tuple[str, Callable[[Lab], Traveller]]] = [
        ("own", lambda lab: Entourage(lab, shape, 0))
    ]
    if shutil.which("libvirtd") is not None:
        kinds.append(("libvirt", lambda lab: OnLibvirt(lab, shape, 0, "entourage")))
    for kind, make in kinds:
        with Lab.up(name=f"bench-test-{kind}") as lab:
            traveller = make(lab)
            traveller.start()
            with Delay.between(lab, "a", "b", EACH_WAY):
                found[kind] = [_one(traveller) for _ in range(count)]
        for one in found[kind]:
            log(", ".join([kind, *(f"{name} {seconds:.3f} s" for name, seconds in one.items())]))
    return found


def _one(traveller: Traveller) -> dict[str, float]:
    """Seconds of each part of one TEST."""
    argv = ["entourage", "check", "--json", traveller.name, traveller.target.name]
    done = traveller.source.run(argv, env=OWN)
    return parts([json.loads(line) for line in done.stdout.splitlines()])


def parts(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the events of a ``check`` tell: when each part of TEST was done, in order.

    Args:
        events: All of them.

    Returns:
        ``domain`` (the machine and the target's hypervisor), ``devices`` (step 0), ``way`` (the
        proof of the data's way), and ``all``.
    """
    at = {event["event"]: event["at"] for event in events}
    began, asked, answered = at["migration-started"], at["step-started"], at["step-done"]
    return {
        "domain": asked - began,
        "devices": answered - asked,
        "way": at["planned"] - answered,
        "all": at["planned"] - began,
    }
