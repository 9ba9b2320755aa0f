"""The four steps of a migration, and what a device can say in one.

The steps and their numbers are those of Xen's xend (April 2006, commit abd30192c0): an external
migration tool is called with them, so they are part of a contract and never change.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Literal

import msgspec


class Step(enum.IntEnum):
    """One of the four steps that every device goes through.

    ``NONE`` is what a device has finished before it began; it is never sent to a tool.
    """

    NONE = -1
    TEST = 0  # can it move? nothing is touched
    PREPARE = 1  # what can be done while the guest still runs
    TRANSFER = 2  # the guest has stopped: move the rest, beside the last memory pages
    SYNC = 3  # wait for all of it

    @property
    def before(self) -> Step:
        """The step before this one."""
        return Step(max(self - 1, Step.NONE))


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a device cannot move, and what would let it.

    Attributes:
        device: ``block/disk0``, or ``domain`` where it is not one device's.
        host: Where the reason lies.
        reason: What is wrong, in one sentence.
        remedy: What the user can do about it.
        no_way: True where the hypervisor has no way to move this device at all, so that an
            external tool configured for its class takes its place and lifts the refusal.
        only_warns: True where it can move all the same, and the user is only told.
    """

    device: str
    host: str
    reason: str
    remedy: str = ""
    no_way: bool = False
    only_warns: bool = False

    def __str__(self) -> str:
        """``block/disk0 on b: no such bridge (--net br0=…)``."""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{self.device} on {self.host}: {self.reason}{remedy}"


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration will do with a device, as TEST has found out.

    Attributes:
        action: ``in-place``: both hosts see it, or have the same; ``copied``; ``with-memory``: its
            state is in the hypervisor's stream; ``remade``: made anew on the target;
            ``replugged``: unplugged here, another one is plugged in there; ``by-tool``. Of the
            definition alone: ``handed-on``: the target writes it down; ``left-here``.
        here, there: What it is on either host: a path, a bridge, a device. Empty where it has no
            name there.
        size: About how many bytes are copied; 0 where none are, or it is not known.
        erased: What is deleted on the source afterwards; empty for nothing.
        tool: The external tool that is called; empty for none.
    """

    action: Literal[
        "in-place",
        "copied",
        "with-memory",
        "remade",
        "replugged",
        "by-tool",
        "handed-on",
        "left-here",
    ]
    here: str = ""
    there: str = ""
    size: int = 0
    erased: str = ""
    tool: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a device came through one step.

    Attributes:
        device: ``block/disk0``.
        step: The step.
        seconds: How long it took.
        error: Empty where it went well.
    """

    device: str
    step: Step
    seconds: float
    error: str = ""
