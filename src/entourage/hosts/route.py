"""How the target of a migration is reached."""

from __future__ import annotations

from typing import Literal

import msgspec

from entourage.errors import UsageError


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


def checked_host_of(place: str) -> str:
    """As ``host_of``, of what somebody has typed.

    Raises:
        UsageError: It could mean either.
    """
    host = host_of(place)
    if not host and ":" in place.split("/", maxsplit=1)[0]:
        raise UsageError(
            f"{place!r} is no directory to save in",
            remedy="HOST:/DIRECTORY on another host, ./NAME:… here",
        )
    return host
