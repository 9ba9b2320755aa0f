"""What a campaign was made of, and how it stands, as the store has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from entourage.fleet.campaign import OVER, Phase, Wish
from entourage.fleet.fleetfile import HostEntry
from entourage.fleet.placement import Style
from entourage.fleet.values import FleetDomain, Host, Limits, Plan, Value


class Spec(Value, frozen=True):
    """What a campaign was made of: enough to go on with it anywhere.

    Attributes:
        plan: What was planned.
        limits: How it goes.
        style: By which other targets are found.
        hosts: The targets, with what they had left when it was planned.
        domains: Those that move, and those that run on the targets.
        refused: What TEST said: UUID, host, reason, remedy.
        options: More of `entourage migrate`.
        besides: Its hosts that are in no fleet's file.
    """

    plan: Plan
    limits: Limits = Limits()
    style: Style = "pack"
    hosts: Sequence[Host] = ()
    domains: Sequence[FleetDomain] = ()
    refused: Sequence[tuple[str, str, str, str]] = ()
    options: Sequence[str] = ()
    besides: Sequence[HostEntry] = ()


class Summary(Value, frozen=True):
    """A campaign in a line.

    Attributes:
        created: Seconds since 1970.
        wish: What its user wants.
        phase: Where it is.
        reason: Why it stopped; empty where it has not.
        owner: The controller that runs it, or ran it last.
        counts: Its moves by status; those for which there is no place are not among them.
    """

    name: str
    created: float
    wish: Wish
    phase: Phase
    reason: str
    owner: str
    counts: Mapping[str, int]

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen any more unless it is tried again."""
        return self.phase in OVER
