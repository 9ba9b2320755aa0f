"""What happened, typed; one stream of it feeds the display, ``--json`` and the report.

Every event is a frozen value. ``at`` is seconds since the migration began, on the source's
monotonic clock; what happened on the target has been put on that clock. ``--json`` prints one event
a line, as ``{"event": "device-step-done", "at": 1.25, …}``; fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from entourage.steps import Planned, Step


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=False):
    """Something that happened at ``at`` seconds into the migration."""

    at: float


Kind: TypeAlias = Literal["move", "save", "checkpoint", "restore"]
"""What is done with a domain: it moves to a host, into a directory, or out of one."""


class MigrationStarted(Event, frozen=True, tag="migration-started"):
    """The command has read the domain and reached the target."""

    migration: str
    domain: str
    uuid: str
    source: str
    target: str
    hypervisor: str
    devices: tuple[str, ...]
    time: str
    """Wall-clock time of the source, ISO 8601 with offset."""
    kind: Kind = "move"
    """``save``: the target is the directory of a save; ``checkpoint``: the same, and the guest goes
    on here; ``restore``: the source is such a directory."""


class DeviceRefused(Event, frozen=True, tag="device-refused"):
    """TEST found a reason why a device cannot move. All of them come before ``finished``."""

    device: str
    host: str
    reason: str
    remedy: str


class PlannedDevice(Planned, frozen=True, kw_only=True):
    """What will be done with a device, ``definition`` or ``memory``.

    See ``entourage.steps.Planned``.
    """

    device: str


class MigrationPlanned(Event, frozen=True, tag="planned"):
    """TEST is done: what will be done with all that is not refused; definition and memory last.

    ``address`` and ``ports`` say where memory and disks go by TCP: the target's address, and the
    first and last port of those that it takes them at. Empty where they go through ssh, or the
    hypervisor alone knows. ``encrypted`` says whether they travel so, as far as TEST has found out:
    null where that shows only once it has begun, and of a save, where nothing travels.

    Each of ``devices`` has a ``device`` and an ``action``: ``in-place`` (both hosts see it, or have
    the same), ``copied``, ``with-memory`` (its state is in the hypervisor's stream), ``remade``
    (made anew on the target), ``replugged`` (unplugged here, another one is plugged in there) or
    ``by-tool``; ``definition``, by which the domain is started again, ``handed-on`` (the target
    writes it down) or ``left-here`` (its user has it, and is to copy it). ``here`` and ``there``
    are what it is on either host, ``size`` is about how many bytes are copied, ``erased`` what is
    deleted on the source afterwards, and ``tool`` the external tool that is called; each is empty,
    or 0, where there is nothing to say.
    """

    devices: tuple[PlannedDevice, ...]
    address: str
    ports: tuple[int, ...]
    encrypted: bool | None


class StepStarted(Event, frozen=True, tag="step-started"):
    """All devices begin a step."""

    step: Step


class StepDone(Event, frozen=True, tag="step-done"):
    """All devices have come through a step."""

    step: Step
    seconds: float


class DeviceStepStarted(Event, frozen=True, tag="device-step-started"):
    """One device begins a step."""

    device: str
    step: Step


class DeviceStepDone(Event, frozen=True, tag="device-step-done"):
    """One device has come through a step, or failed in it (``error`` is not empty)."""

    device: str
    step: Step
    seconds: float
    error: str = ""


class CopyProgress(Event, frozen=True, tag="copy-progress"):
    """How far a disk or the memory has come. Bytes, bytes a second.

    Of a disk, ``done``, ``total`` and ``rate`` count its holes and zeros as well, which are not
    sent: QEMU tells how far a copy is, and not how much was sent for it.
    """

    what: str
    """``memory``, or a device as ``block/disk0``."""
    done: int
    total: int
    rate: float = 0.0
    dirty_rate: float = 0.0
    iteration: int = 0
    sent: int = 0
    """Bytes that were sent of memory, whose pages of zeros cost next to nothing; 0: not known."""
    eta: float | None = None
    """Seconds until it is done, at this rate; null where that cannot be said."""


class PolicyChanged(Event, frozen=True, tag="policy-changed"):
    """The convergence policy went one stage on."""

    stage: int
    downtime_limit: float
    throttle: bool


class GuestStopped(Event, frozen=True, tag="guest-stopped"):
    """The guest has stopped on the source: the blackout begins."""


class MemoryLanded(Event, frozen=True, tag="memory-landed"):
    """Source and target both say that memory and CPU state are all there."""


class GoSent(Event, frozen=True, tag="go-sent"):
    """The hand-over: from here the source never runs the domain unless the target declines."""


class GuestResumed(Event, frozen=True, tag="guest-resumed"):
    """The guest runs: the blackout ends. ``host`` says where, ``blackout`` how long (seconds)."""

    host: str
    blackout: float


class SpanDone(Event, frozen=True, tag="span-done"):
    """A named stretch of the blackout, from ``start`` to ``at``."""

    name: str
    host: str
    start: float


class ToolSaid(Event, frozen=True, tag="tool-said"):
    """A line that an external tool printed."""

    device: str
    step: Step
    line: str


class Warned(Event, frozen=True, tag="warned"):
    """Something that the user should know and that stops nothing."""

    message: str
    device: str = ""
    host: str = ""


class RollbackStarted(Event, frozen=True, tag="rollback-started"):
    """The migration failed before the hand-over; everything goes back."""

    reason: str
    device: str = ""
    host: str = ""
    step: Step | None = None


class DeviceRecovered(Event, frozen=True, tag="device-recovered"):
    """One device was put back, told the last step that it came through well."""

    device: str
    last_good: Step
    seconds: float
    error: str = ""


Outcome: TypeAlias = Literal[
    "moved",
    "saved",
    "can-move",
    "refused",
    "rolled-back",
    "guest-ended",
    "clean-up-incomplete",
    "in-doubt",
    "failed",
]


class Finished(Event, frozen=True, tag="finished"):
    """The last event. ``outcome`` is what the exit status says.

    ``moved`` 0, ``saved`` (a checkpoint) 0, ``can-move`` (a dry run) 0, ``failed`` 1 to 3,
    ``refused`` 3, ``rolled-back`` 4, ``clean-up-incomplete`` 5, ``in-doubt`` 6, ``guest-ended`` 7.
    """

    outcome: Outcome
    seconds: float
    runs_on: str
    """The host that runs the domain now, or the directory that it is saved in; empty where that is
    not known."""
    blackout: float | None = None
    message: str = ""
    problems: tuple[str, ...] = ()
    """What could not be cleaned up or put back, each a sentence with its remedy."""
    remedy: str = ""
    """What to do, where ``message`` does not say it."""


AnyEvent: TypeAlias = (
    MigrationStarted
    | DeviceRefused
    | MigrationPlanned
    | StepStarted
    | StepDone
    | DeviceStepStarted
    | DeviceStepDone
    | CopyProgress
    | PolicyChanged
    | GuestStopped
    | MemoryLanded
    | GoSent
    | GuestResumed
    | SpanDone
    | ToolSaid
    | Warned
    | RollbackStarted
    | DeviceRecovered
    | Finished
)
Listener: TypeAlias = Callable[[AnyEvent], None]
