"""How the target of a migration is reached."""

from __future__ import annotations

from typing import Literal

import msgspec


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """How a target is reached.

    Attributes:
        host: What it is called; where ``by_ssh`` is not ``no``, as ssh knows it.
        there: The URI of its libvirtd, on it; None: its usual one, or no libvirt is meant.
        agentless: The URI by which that is reached from here, where no Entourage is on it; None:
            then it is none of our targets.
        by_ssh: Whether an agent is looked for: it must be there unless ``agentless`` is given; with
            ``if-it-answers`` a host that ssh does not reach counts as one without.
    """

    host: str
    there: str | None = None
    agentless: str | None = None
    by_ssh: Literal["yes", "if-it-answers", "no"] = "yes"


def host_of(place: str) -> str:
    """The host of a save's place, ``HOST:/DIRECTORY``; empty where that is on this one."""
    host, colon, path = place.partition(":/")
    return host if colon and "/" not in host and not path.startswith("/") else ""
