"""A libvirt domain that is being built here: the target's half of a migration.

    build    Prepare: libvirtd starts QEMU, paused. It ends it again when this process dies
    landed   QEMU's own word that its migration is completed
    run      Finish: libvirtd writes the definition down, then lets the guest run
    kill     Finish(cancelled)

What libvirtd was told is not believed but looked at: after an error in Finish only what is there
now says whether the guest has run. That it never has is known for certain where there is no machine
and no definition either: Finish writes the definition (PERSIST_DEST) before the guest may run, and
TEST has seen to it that there was none before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError, InDoubt
from entourage.handover.values import Guest
from entourage.hosts.parts import HostPart
from entourage.hosts.threads import in_thread
from entourage.hypervisors import swtpm
from entourage.hypervisors.backlog import keep_short
from entourage.hypervisors.base import DataPlane, DiskCopy, Plan, Ticket, TpmArrival
from entourage.hypervisors.libvirt import handed, tls, volumes
from entourage.hypervisors.libvirt.activation import not_while_paused, take_images
from entourage.hypervisors.libvirt.announcing import TargetAnnouncing
from entourage.hypervisors.libvirt.arrival import (
    finish,
    forget,
    make_way,
    put_back,
    sync_definitions,
)
from entourage.hypervisors.libvirt.arrival_notes import arrival_notes
from entourage.hypervisors.libvirt.arrival_state import look_at
from entourage.hypervisors.libvirt.connection import (
    Connection,
    LostError,
    RefusedError,
    ask,
    bindings,
    call,
    phases,
)
from entourage.hypervisors.libvirt.constants import NOT_FOR_TARGET, Parameter, State
from entourage.hypervisors.libvirt.emulators import Emulators
from entourage.hypervisors.libvirt.errors import SEE_LOGS, qemu_said
from entourage.hypervisors.libvirt.events import Feed, Known
from entourage.hypervisors.libvirt.guestagent import LibvirtGuestAgent
from entourage.hypervisors.libvirt.job import Disks, Parameters
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.process import check_ended, qemu_of, way_of
from entourage.hypervisors.libvirt.qemuconf import conf_of, migration_ports
from entourage.hypervisors.libvirt.tpm import STATES, TargetTpm, state_of
from entourage.hypervisors.seams import IncomingSeams

_SETTLES_WITHIN = 30.0  # seconds for a libvirtd that came back to make up its mind
_LOOK_AGAIN = 0.05
_ENDS_AFTER = 0.5  # seconds from a swtpm's end to word of that of its QEMU
_HEARD_WITHIN = 0.05  # seconds from Finish's return to the event that says when the guest ran
_ACTIVE_NETWORKS = 2
_ARRIVES = frozenset({"active", "completed", "failed"})
_LOGS = Path("/var/log/libvirt/qemu")
_NO_TPM = "its TPM emulator (swtpm) has ended"


class LibvirtIncoming(IncomingSeams):
    """A domain that is being built on this host.

    Args:
        uri: Of this host's libvirtd.
        domain: The domain; of what ``build`` is given only its identity is used here.
        notes: The file of what is to be done on arrival; None: it ends with this process.
    """

    _patience = 600.0
    """Seconds for a libvirtd that went away in the middle of GO to come back."""
    _ask_again = "`entourage recover` here"
    _on_this_host = True

    def __init__(self, uri: str, domain: Domain, notes: Path | None = None) -> None:
        self._notes = arrival_notes(notes)
        self._uri = uri
        self._domain = domain
        self._uuid = str(domain.uuid)
        self._connection: Connection | None = None
        self._emulators: Emulators | None = None
        self._feed: Feed | None = None
        self._plan = LibvirtPlan()
        self._parameters: Parameters = {}
        self._begun = False
        self._preparing: asyncio.Future[tuple[str, bytes]] | None = None
        self._cookie = b""
        self._offered: frozenset[str] = frozenset()
        self._released = False
        self._shortening: asyncio.Task[None] | None = None

    @property
    def takes(self) -> frozenset[DiskCopy]:
        """What Perform copies on the source."""
        return frozenset({Disks.way})

    @property
    def tpm(self) -> TpmArrival:
        """Its state comes with the memory."""
        return TargetTpm(self._domain)

    @property
    def guest_agent(self) -> LibvirtGuestAgent:
        """By its channel, which libvirt has."""

        async def raw() -> Any:
            return await (await self._connected()).domain(self._uuid)

        return LibvirtGuestAgent(raw, self._domain.name)

    @property
    def announcing(self) -> TargetAnnouncing:
        """QEMU announces the NICs by itself."""
        return TargetAnnouncing()

    async def offers(self) -> Mapping[str, str]:
        """By what name its TLS certificate is checked, and which QEMU builds the machine."""
        connection = await self._connected()
        qemu = str(await ask(connection.raw.getVersion))
        return {"tls": await in_thread(tls.can_take), "qemu": qemu}

    async def data_ports(
        self,
        address: str,
        ports: tuple[int, int],  # noqa: ARG002 - libvirt has a range of its own
    ) -> tuple[int, int] | None:
        """Those of libvirt's own settings."""
        if not self._on_this_host:
            return None
        handed.check_address(address)
        return await in_thread(migration_ports, conf_of(self._uri))

    async def networks(self) -> Mapping[str, str]:
        """Libvirt's networks that are up here: their bridge, by their name."""
        connection = await self._connected()

        def look() -> dict[str, str]:
            found: dict[str, str] = {}
            for network in connection.raw.listAllNetworks(_ACTIVE_NETWORKS):
                bridge = ""
                with contextlib.suppress(bindings().libvirtError):  # it has none
                    bridge = network.bridgeName()
                found[network.name()] = bridge
            return found

        return await ask(look)

    async def attach(self) -> Guest:
        """Take up a machine that another process was building here; what became of it.

        One that is gone and never left a definition never ran: it counts as STOPPED, and ``run``
        then says so.
        """
        connection = await self._connected()
        deadline = time.monotonic() + _SETTLES_WITHIN
        while True:
            raw = await connection.domain(self._uuid)
            seen = await look_at(raw)
            if not seen.under_way or time.monotonic() > deadline:
                return seen.guest
            await asyncio.sleep(_LOOK_AGAIN)

    async def host_parts(self, plan: Plan) -> Sequence[HostPart]:
        """What of this host the XML names that Prepare will be given."""
        connection = await self._connected()
        self._offered = await handed.emulators(connection)
        return await handed.planned(connection, _read_plan(plan), self._offered)

    async def parts_of_cookie(self, cookie: bytes) -> Sequence[HostPart]:
        """What of this host the definition names that Finish will write down."""
        handed.check_cookie(cookie, self._domain)
        # In the blackout: what may take long was asked for before.
        return await handed.defined(await self._connected(), cookie, self._offered)

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:
        """Prepare; what the domain opens exists."""
        self._begun = True
        self._domain, self._plan = domain, _read_plan(plan)
        handed.check_plan(self._plan, domain)
        handed.check_cookie(self._plan.cookie, domain)
        connection = await self._connected()
        if self._feed is None:
            self._feed = await Feed.open(self._uri, self._uuid, one_clock=self._on_this_host)
        self._parameters = dict(self._plan.parameters)
        if plane.address:  # else libvirt goes by the name that the host has for itself
            self._parameters[Parameter.URI] = handed.listening_at(plane.address)
        await make_way(await connection.domain(self._uuid), self._plan, self._notes)
        library = await in_thread(phases)
        self._preparing = call(
            library.prepare, connection.raw, self._parameters, self._plan.cookie, self._flags
        )
        await asyncio.shield(self._preparing)
        await self._watch_emulators()

    async def _watch_emulators(self) -> None:
        """Know of each swtpm that was started here; what it has of directories is on the disk."""
        if any(tpm.type == "emulator" for tpm in self._domain.tpm):
            self._emulators = await in_thread(Emulators, STATES / self._uuid)
        for tpm in self._domain.tpm:
            if (state := state_of(self._domain, tpm)).is_dir():
                await in_thread(swtpm.sync_parents, state)

    @property
    def _flags(self) -> int:
        return self._plan.flags & ~NOT_FOR_TARGET

    async def listen(self) -> Ticket:
        """Where Prepare has it wait for memory."""
        if self._preparing is None:
            raise HypervisorError("the machine is not built")
        uri, cookie = await asyncio.shield(self._preparing)
        if self._on_this_host:
            self._shortening = asyncio.create_task(self._shorten(way_of(uri)[1]))
        return Ticket(uri=uri, cookie=cookie)

    async def _shorten(self, port: int | None) -> None:
        """Once memory arrives, little of it is to wait for QEMU."""
        with contextlib.suppress(HypervisorError):
            await self._heard().until(lambda known: known.migration in _ARRIVES or None)
            process = qemu_of(self._domain.name) if port else None
            if port and process is not None:
                with contextlib.closing(process):
                    keep_short(process, port)

    async def landed(self) -> None:
        """Wait until QEMU says that its migration is completed."""
        await self._has_memory()

    async def _has_memory(self) -> None:
        """The same; raises HypervisorError, with what QEMU said last, where it has failed."""
        feed = self._heard()

        def over(known: Known) -> str | None:
            if known.ended:
                return known.ended
            return known.migration if known.migration in {"completed", "failed"} else None

        said = await feed.until(over)
        if said != "completed":
            raise HypervisorError(
                f"the machine being built has failed: {self._last_said() or said}",
                remedy=SEE_LOGS,
            )

    def accept_cookie(self, cookie: bytes) -> None:
        """Perform's cookie, which is Finish's."""
        self._cookie = cookie

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before.

        Before it is released, it ends with its libvirtd, and is of no use without its swtpm;
        afterwards it lives on without either.
        """
        machine = asyncio.create_task(self._machine_ended())
        parts = [
            machine,
            *([asyncio.create_task(self._emulators.ended())] if self._emulators else []),
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if not self._released and not machine.done():
                # A swtpm ends with its QEMU, too, and that is heard of a little later.
                await asyncio.wait({machine}, timeout=_ENDS_AFTER)
                if not machine.done():
                    return _NO_TPM
            return await machine
        finally:
            for part in parts:
                part.cancel()

    async def _machine_ended(self) -> str:
        feed = self._heard()

        def gone(known: Known) -> str | None:
            return known.ended or ("" if self._released else known.lost) or None

        try:
            reason = await feed.until(gone)
            return (self._last_said() if feed.known.ended else "") or reason
        except HypervisorError:
            return await asyncio.get_running_loop().create_future()

    async def run(self, *, paused: bool) -> int:
        """Finish: let the guest run (or stay as its user had paused it); ns of the clock.

        Raises:
            HypervisorError: It was refused, and the guest provably never ran.
            InDoubt: libvirtd went away in the middle of it, and has not come back.
        """
        connection, prepared = self._connection, self._preparing
        if connection is None or prepared is None:
            raise HypervisorError("the machine that was built here is gone, and never ran")
        if self._emulators is not None and self._emulators.one_has_ended:
            raise HypervisorError(_NO_TPM)
        feed = self._heard()
        feed.known.resumed_at = 0
        self._released = True
        parameters = {Parameter.DEST_NAME: self._domain.name}
        try:
            await ask(
                phases().finish,
                connection.raw, parameters, self._cookie, self._flags, cancelled=False,
            )  # fmt: skip
        except (LostError, RefusedError) as error:
            if not await self._has_run(paused=paused):
                raise HypervisorError(error.message, remedy=error.remedy) from error
        if not paused and not feed.known.resumed_at:
            with contextlib.suppress(TimeoutError, HypervisorError):
                async with asyncio.timeout(_HEARD_WITHIN):
                    await feed.until(lambda known: known.resumed_at or None)
        return feed.known.resumed_at or time.monotonic_ns()

    async def _has_run(self, *, paused: bool) -> bool:
        """After an error in Finish: whether the guest has run; False where it never has.

        Raises:
            InDoubt: libvirtd does not say.
        """
        try:
            if self._connection is None or not await self._connection.alive():
                self._connection = await self._open(self._patience)
            return await self._is_seen_to_run(paused=paused)
        except HypervisorError as error:
            raise InDoubt(
                f"libvirtd went away as it was to let {self._domain.name} run: {error.message}",
                remedy=f"once it is back: {self._ask_again}",
            ) from error

    async def _is_seen_to_run(self, *, paused: bool) -> bool:
        deadline = time.monotonic() + _SETTLES_WITHIN
        while True:
            raw = await (await self._connected()).domain(self._uuid)
            seen = await look_at(raw)
            if seen.guest is Guest.STOPPED and not seen.under_way:
                if self._on_this_host:
                    await check_ended(self._domain.name, self._uuid)
                return False
            # A libvirtd that came back ends what it finds paused; one that is meant to be is whole.
            if seen.guest is not Guest.STOPPED and (paused or not seen.paused):
                return True
            if time.monotonic() > deadline:
                if seen.guest is Guest.RUNNING:  # somebody has paused it since
                    return True
                # Unfinished, and nobody works on it any more: it never ran, and never will.
                await self._forget_unfinished()
                return False
            await asyncio.sleep(_LOOK_AGAIN)

    async def _forget_unfinished(self) -> None:
        """End a machine that Finish has not let run.

        What was set aside is put back only by ``kill``, once NEVER is on record: a definition that
        is here before that would be taken for Finish's.
        """
        connection = await self._connected()
        await forget(connection, self._domain, None, made=True, here=self._on_this_host)

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        connection = await self._connected()
        if not await connection.alive():  # libvirtd was restarted meanwhile
            self._connection = connection = await self._open(_SETTLES_WITHIN)
        raw = await connection.domain(self._uuid)
        if raw is not None:
            await ask(raw.suspend)

    async def persist_definition(self) -> None:
        """Finish wrote the definition down before the guest could run; now it is on the disk."""
        if self._on_this_host:
            await in_thread(sync_definitions)

    async def finish_arrival(self) -> None:
        """After the guest runs: what libvirt does not carry is made so here.

        Raises:
            HypervisorError: Not all of it could be.
        """
        connection = await self._connected()
        raw = await connection.domain(self._uuid)
        problems = await finish(raw, self._notes, here=self._on_this_host)
        if raw is not None and self._on_this_host and (await ask(raw.state, 0))[0] == State.PAUSED:
            try:
                await take_images(raw)
            except HypervisorError as error:
                name = self._domain.name
                problems.append(
                    f"{name} cannot be moved or saved while it is paused: {error.message}"
                    f" ({not_while_paused(name)})"
                )
        await in_thread(self._notes.remove)
        await volumes.refresh(connection, [disk.path for disk in self._domain.block])
        if problems:
            raise HypervisorError("; ".join(problems))

    async def kill(self) -> None:
        """End the machine, which never ran; returns when it and its definition are gone."""
        if self._shortening is not None:
            self._shortening.cancel()
        preparing = self._preparing
        if preparing is not None:
            await asyncio.wait({preparing})
            if preparing.exception() is None and not self._released:
                parameters = {Parameter.DEST_NAME: self._domain.name}
                connection = await self._connected()
                # That it was cancelled comes as an error as well.
                with contextlib.suppress(LostError, RefusedError):
                    await ask(
                        phases().finish,
                        connection.raw, parameters, b"", self._flags, cancelled=True,
                    )  # fmt: skip
        connection = await self._connected()
        if not await connection.alive():
            self._connection = connection = await self._open(_SETTLES_WITHIN)
        notes, here = await in_thread(self._notes.read), self._on_this_host
        if preparing is not None or not self._begun:  # else there is nothing of this migration's
            made = preparing is not None or notes is not None
            await forget(connection, self._domain, notes, made=made, here=here)
        await put_back(connection, self._domain, self._notes, here=here)

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await self._open()
        return self._connection

    async def _open(self, patience: float = 0) -> Connection:
        """Connect to libvirtd; within ``patience`` seconds, if it is not there at once."""
        if patience:
            return await Connection.open_again(self._uri, patience)
        return await Connection.open(self._uri)

    def _last_said(self) -> str:
        """What QEMU said before it failed; empty where it said nothing."""
        return qemu_said(_LOGS / f"{self._domain.name}.log")

    def _heard(self) -> Feed:
        if self._feed is None:
            raise HypervisorError("no machine is being built")
        return self._feed


def _read_plan(plan: Plan) -> LibvirtPlan:
    try:
        return msgspec.msgpack.decode(plan, type=LibvirtPlan)
    except (msgspec.DecodeError, RecursionError) as error:
        raise HypervisorError(f"the source's plan cannot be read: {error}") from error
