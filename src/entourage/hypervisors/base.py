"""What a hypervisor can be asked to do; the only way in which the layers above know one.

A backend has three classes: a ``Hypervisor`` (this host's domains), a ``Machine`` (a domain that
runs here: the source's half of a migration, its carrier included) and an ``Incoming`` (a domain
that is being built here: the target's half). Both halves record a resource in a ledger before they
make it. What not every backend can do is a seam, a part of the machine that is None where it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.handover.values import Guest
from entourage.hosts.parts import HostPart, PartsCheck
from entourage.hosts.resources import Ledger
from entourage.hypervisors.agentless import Agentless
from entourage.hypervisors.seams import (
    Announcing,
    DiskCarrying,
    DiskCopy,
    DiskExports,
    DiskMirroring,
    GuestAgent,
    Plugging,
    Publishing,
    TpmArrival,
    TpmState,
    Unplugging,
)
from entourage.hypervisors.values import (
    DataPlane,
    Definition,
    DomainState,
    Export,
    MemoryProgress,
    Plan,
    Secret,
    Ticket,
    TpmFacts,
)
from entourage.steps import Planned, Refusal

__all__ = [
    "DataPlane",
    "DomainState",
    "Export",
    "Hypervisor",
    "Incoming",
    "Machine",
    "MemoryProgress",
    "Plan",
    "Secret",
    "Ticket",
    "TpmFacts",
]


class Machine(Protocol):
    """A domain that runs on this host: the source's half, and the carrier's six operations.

    Every method raises HypervisorError where the hypervisor says no, with the device where one is
    concerned. None has a deadline of its own: the caller sets it.
    """

    @property
    def domain(self) -> Domain:
        """The running configuration: everything that was left open is filled in."""
        ...

    @property
    def non_live(self) -> bool:
        """Whether the guest can be stopped before its memory is copied (``start``)."""
        ...

    @property
    def mirroring(self) -> DiskMirroring | None:
        """None: it copies no disk while the guest writes to it, but for what it carries."""
        ...

    @property
    def carrying(self) -> DiskCarrying | None:
        """None: no disk travels with the memory."""
        ...

    @property
    def tpm(self) -> TpmState | None:
        """None: no TPM's state travels with the memory."""
        ...

    @property
    def announcing(self) -> Announcing | None:
        """None: the network learns from the guest itself that it is back."""
        ...

    @property
    def unplugging(self) -> Unplugging | None:
        """None: the host's own devices cannot be taken out of a running guest."""
        ...

    @property
    def guest_agent(self) -> GuestAgent | None:
        """None: nothing can be run in the guest."""
        ...

    @property
    def saving(self) -> Machine | None:
        """The same machine, where its backend saves it otherwise than it moves it; else None.

        Both share what is open, and only the one that is used is closed.
        """
        ...

    @property
    def sending(self) -> Machine | None:
        """Of what ``saving`` is: the same machine, where memory that is passed on is another's.

        That is memory of a save that is compressed, encrypted or on another host. None: it is
        saved as any other.
        """
        ...

    @property
    def generation(self) -> int:
        """Of a machine that was saved: the domain's, then, as the journals count it; else 0."""
        ...

    @property
    def was_running(self) -> bool:
        """False where the user had paused the guest before: it stays paused on the target."""
        ...

    @property
    def after_abort(self) -> str:
        """What ``abort`` has left otherwise than it was, and what to do; empty: nothing."""
        ...

    async def keep_definition(self) -> None:
        """The domain stays here: what is written down of it is as it was before the migration.

        Its guest runs, or has ended; it may be asked again.

        Raises:
            HypervisorError: It is not.
        """
        ...

    async def check_stood_still(self, until: int) -> None:
        """Raise if the guest may have run between ``stopped`` and a later moment.

        Args:
            until: That moment, ns of the monotonic clock.

        Raises:
            HypervisorError: Somebody may have let it run: its memory is older than all else.
        """
        ...

    def stay_paused(self) -> None:
        """Have its guest stay as it is, stopped, where ``abort`` would let it run."""
        ...

    async def reattach(self, *, was_running: bool) -> Guest:
        """Reattach to a migration that another process began; returns the guest's state here.

        Args:
            was_running: What ``was_running`` was when the migration began.
        """
        ...

    async def close(self) -> None:
        """Close the connections to the machine without changing it."""
        ...

    async def facts(self) -> Mapping[str, str]:
        """What a target must know to judge whether it can build this machine.

        In the backend's own words (its version, the CPU's flags, digests of boot files); meant
        for ``Hypervisor.test_incoming`` of the same backend on the target.
        """
        ...

    async def blockers(self) -> Sequence[Refusal]:
        """What the hypervisor itself marks as not migratable, by device where it says which."""
        ...

    async def go_on(self) -> None:
        """A save was given up: a guest goes on that full storage has stopped meanwhile.

        Its disks may be on the storage of the save, which has been removed by now. Does nothing for
        one that runs, that its user has paused, or that was stopped by another error.
        """
        ...

    def begin_to_examine(self) -> None:
        """In TEST, where a migration follows it: begin to see to what takes long (``examine``)."""
        ...

    async def examine(self) -> Sequence[Refusal]:
        """In TEST, where nothing follows it or something would be written over: what takes long.

        Else it is seen to while memory is on its way, and ``landed`` raises it.
        """
        ...

    async def at_fault(self) -> HypervisorError | None:
        """The migration has failed: what is wrong with what was sent, where that is known soon."""
        ...

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        ...

    # The carrier's six operations

    async def arm(
        self,
        plane: DataPlane,
        *,
        downtime_limit: float | None = None,
        throttle: bool = False,
        lock: int | None = None,
        budget: float | None = None,
        offers: Mapping[str, str] = ...,
    ) -> None:
        """Everything that can be set up before pre-copy: keys, capabilities, the moment of stop.

        Comes before ``DiskMirroring.mirror``, which needs the keys. Where the backend's machine
        would stay stopped if this process died, the deadman is armed here as well: a small process
        that lets the guest run again when this one dies.

        Args:
            plane: How the data travels.
            downtime_limit: What ``tune`` would say first, for a backend that can be told before
                ``start``: it may look once before it hears of it otherwise. None: nothing.
            throttle: Whether ``tune(throttle=True)`` may come later.
            lock: A descriptor (the domain's lock) that the deadman keeps open as long as it may
                still act, so that nobody begins anew before it has spoken.
            budget: Seconds that the guest may stand still before ``disarm_deadman``: after them the
                deadman acts also where this process lives, and is frozen. None: without limit.
            offers: What the target's half said in ``offers``.
        """
        ...

    @property
    def definition(self) -> Planned | None:
        """In TEST: what becomes of that by which the domain is started again; None: it has none."""
        ...

    def encrypts(self, offers: Mapping[str, str] | None, *, wanted: bool) -> bool | None:
        """In TEST: whether memory and disks will travel encrypted.

        Args:
            offers: What the target's half says in ``offers``; None where it has not been heard.
            wanted: What was asked for.

        Returns:
            None where that shows only once the migration has begun.
        """
        ...

    @property
    def in_the_clear(self) -> str:
        """Once armed: why memory will travel unencrypted though it was not asked for; or empty."""
        ...

    async def plan(self, target: Domain) -> Plan:
        """After every device's ``prepare``: what the target needs to build the machine.

        Args:
            target: The domain as it is to be there.
        """
        ...

    async def start(self, ticket: Ticket, *, live: bool) -> None:
        """Copy the disks that it is to carry, then begin pre-copy; returns when that is up.

        ``live=False`` stops the guest first.
        """
        ...

    async def progress(self) -> MemoryProgress:
        """How far pre-copy has come."""
        ...

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        """Change how much blackout is accepted (seconds), and whether the guest is slowed."""
        ...

    async def stopped(self) -> int:
        """Wait until the guest has stopped; returns that moment in ns of the monotonic clock.

        Memory is held back from here until ``continue_switchover``. Raises HypervisorError
        where the migration ended otherwise.
        """
        ...

    async def pre_switchover(self) -> str:
        """Wait until the hypervisor itself is done with its disks: only then they can settle.

        Returns:
            What it did meanwhile, for the timeline; empty where it had nothing to do.
        """
        ...

    async def continue_switchover(self) -> None:
        """Disks are settled: send the last memory pages and the devices' state."""
        ...

    @property
    def before_memory(self) -> bytes:
        """What the target must know to take the last memory, once that was begun to be sent.

        It goes to the target's ``accept_cookie``; empty where all was said by ``plan``.
        """
        ...

    async def landed(self) -> bytes:
        """Wait until the source says that all has been sent and taken.

        Returns:
            The end-of-stream cookie for the target's ``accept_cookie``; empty where there is none.
        """
        ...

    async def disarm_deadman(self) -> None:
        """GO may be sent next: from when this returns, nothing resumes the guest by itself.

        It is in the blackout, between ``landed`` and GO: one small message that is acknowledged.
        Raises HypervisorError where the deadman does not acknowledge: then GO must not be sent.
        """
        ...

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        ...

    async def release(self) -> None:
        """The domain runs on the target: end the copy here and free what it held."""
        ...

    async def abort(self) -> None:
        """Give the migration up at whatever point: the guest runs here again (or stays paused).

        Returns when the guest runs; what is left to tidy up is done beside what the caller does
        next, and ``close`` waits for it. Never called after GO may have been sent, unless the
        target has durably said that it never ran the guest.

        Raises:
            GoneError: The guest has ended by itself.
            HypervisorError: It may stand still, and could not be let run.
        """
        ...


class Incoming(Protocol):
    """A domain that is being built on this host: the target's half."""

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """The ways of copying a disk that this host's hypervisor knows the other end of."""
        ...

    @property
    def exports(self) -> DiskExports | None:
        """None: disks that are mirrored cannot come here."""
        ...

    @property
    def tpm(self) -> TpmArrival | None:
        """None: no TPM's state is taken."""
        ...

    @property
    def announcing(self) -> Announcing | None:
        """None: the network learns from the guest itself that it is here."""
        ...

    @property
    def plugging(self) -> Plugging | None:
        """None: none of the host's own devices can be plugged in."""
        ...

    @property
    def guest_agent(self) -> GuestAgent | None:
        """None: nothing can be run in the guest."""
        ...

    @property
    def publishing(self) -> Publishing | None:
        """None: what has landed is let run, or removed."""
        ...

    @property
    def is_save(self) -> bool:
        """Whether it is saved in a directory, and no guest will run of it as it is."""
        ...

    @property
    def agentless(self) -> Agentless | None:
        """What else the hypervisor is asked; None where Entourage is on the host it builds on."""
        ...

    async def attach(self) -> Guest:
        """Reattach to a machine that another process was building here; returns its guest's state.

        ``STOPPED``: it stands, and its guest was never released. ``RUNNING``: it was released.
        """
        ...

    async def offers(self) -> Mapping[str, str]:
        """What this host has that the source must know before it plans; its backend's own words."""
        ...

    async def data_ports(self, address: str, ports: tuple[int, int]) -> tuple[int, int] | None:
        """The range of TCP ports that memory and disks are taken at; None where they use none.

        Args:
            address: This host's, as the source will use it.
            ports: The range that the source wants.
        """
        ...

    async def networks(self) -> Mapping[str, str]:
        """The networks that the hypervisor itself runs here: their bridge, by their name."""
        ...

    async def host_parts(self, plan: Plan) -> Sequence[HostPart]:
        """What of this host a plan names, beside what the domain does: before ``build``.

        Args:
            plan: What ``Machine.plan`` of the same backend said on the source; not trusted.
        """
        ...

    async def parts_of_cookie(self, cookie: bytes) -> Sequence[HostPart]:
        """The same of the source's end-of-stream cookie: before ``accept_cookie``."""
        ...

    def check_with(self, check: PartsCheck) -> None:
        """Before ``build``: what to ask of a configuration that comes only with the memory.

        Args:
            check: To be waited for before anything is made of it.
        """
        ...

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:
        """Make the machine, paused, from the running configuration; what it opens exists.

        Args:
            domain: The domain as it is to be here.
            plane: How the data travels.
            plan: What ``Machine.plan`` of the same backend said on the source; not trusted.
        """
        ...

    async def listen(self) -> Ticket:
        """Wait for memory; returns where."""
        ...

    async def landed(self) -> None:
        """Wait until memory has landed, then close the exports: all that is left is ``run``."""
        ...

    def accept_cookie(self, cookie: bytes) -> None:
        """Take what the source's carrier says late; called before GO, only if it is not empty.

        That is its ``before_memory``, perhaps before ``landed`` has returned, or the end-of-stream
        cookie.
        """
        ...

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before."""
        ...

    async def run(self, *, paused: bool) -> int:
        """Let the guest run (or stay as its user had paused it); ns of the monotonic clock.

        Raises HypervisorError where the hypervisor refused and the guest provably never ran. Where
        the machine dies before it has answered, the guest may have run: this returns as if it had,
        and ``died`` tells the rest.
        """
        ...

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        ...

    async def finish_arrival(self) -> None:
        """After RAN is durable: remove keys and all else that only an arrival needs.

        May follow ``attach`` instead of ``run``, and then where it has been done already.
        """
        ...

    async def persist_definition(self) -> None:
        """Persist the domain's definition on this host; durable when this returns.

        Comes before RAN, on which the source forgets the domain; also where the machine died right
        after GO and nothing of it is left but what ``incoming`` was given.
        """
        ...

    async def kill(self) -> None:
        """End the machine, which never ran; returns when its processes are gone."""
        ...

    @property
    def after_kill(self) -> str:
        """What ``kill`` has left of what was made for it, and what to do; empty: nothing."""
        ...


class Hypervisor(Protocol):
    """This host's hypervisor."""

    name: str

    async def domains(self) -> Sequence[DomainState]:
        """All domains of this host that this hypervisor knows."""
        ...

    async def find(self, name: str) -> Domain:
        """The running (or last known) configuration; raises UsageError where there is none."""
        ...

    async def machine(self, name: str) -> Machine:
        """Open a running domain; raises UsageError where there is none, or it does not run."""
        ...

    async def reattach_machine(self, domain: Domain) -> Machine:
        """What is left here of a domain whose migration another process began; see ``reattach``.

        Never fails because its machine has died: then ``reattach`` says so, ``release`` and
        ``abort`` clear away what is left of it, and ``erase_tpm`` works all the same.
        """
        ...

    def incoming(self, domain: Domain, ledger: Ledger) -> Incoming:
        """A machine to be built here."""
        ...

    async def test_incoming(
        self, domain: Domain, host: str, facts: Mapping[str, str]
    ) -> Sequence[Refusal]:
        """What speaks against building this domain here: machine type, CPU, boot files, version.

        Args:
            domain: The running configuration.
            host: What this host is called in refusals.
            facts: What ``Machine.facts`` said on the source.
        """
        ...

    async def host_parts(self, facts: Mapping[str, str]) -> Sequence[HostPart]:
        """What of this host the domain names, beside what it is as a ``Domain``.

        Args:
            facts: What ``Machine.facts`` said on the source; not trusted.
        """
        ...

    async def start(self, domain: Domain) -> None:
        """Start a domain here from what a user wrote."""
        ...

    async def stop(self, name: str, *, force: bool, patience: float) -> None:
        """Shut a domain down (ACPI), or end it at once with ``force``."""
        ...


@runtime_checkable
class HasNotes(Protocol):
    """A hypervisor that has something to say to whoever starts a domain."""

    def notes(self, domain: Domain) -> Sequence[str]:
        """What the user should know of how this domain runs here, a sentence each."""
        ...


@runtime_checkable
class HasDefinitions(Protocol):
    """A hypervisor that keeps domains that are off, and can hand one to another host."""

    async def definition(self, name: str) -> Definition:
        """A domain that is off; raises UsageError where there is none, or it is not off."""
        ...

    async def define(self, definition: Definition) -> None:
        """Have a domain here, off; on the disk when this returns. Had before is no error."""
        ...

    async def undefine(self, definition: Definition) -> None:
        """Forget a domain that is off, for good when this returns; its disks stay.

        Forgotten before is no error.

        Raises:
            DomainBusy: It was started meanwhile; it is kept.
            HypervisorError: It could not be forgotten.
        """
        ...
