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

from entourage.domain import Block, Domain, Net, Tpm
from entourage.errors import EntourageError, HypervisorError, InDoubt
from entourage.hypervisors import swtpm
from entourage.hypervisors.base import DataPlane, Export, Plan, Ticket, TpmFacts, Verb
from entourage.hypervisors.libvirt import tls
from entourage.hypervisors.libvirt.connection import (
    Connection,
    LostError,
    RefusedError,
    ask,
    bindings,
    call,
    phases,
)
from entourage.hypervisors.libvirt.explain import qemu_said
from entourage.hypervisors.libvirt.feed import Feed, Known
from entourage.hypervisors.libvirt.machine import TPM_STATES, VERBS
from entourage.hypervisors.libvirt.words import NOT_FOR_TARGET, UNDEFINE_ALL, Parameter, State
from entourage.protocol import Guest

_BACK_WITHIN = 600.0  # seconds for a libvirtd that went away to come back, in the middle of GO
_SETTLES_WITHIN = 30.0  # seconds for a libvirtd that came back to make up its mind
_LOOK_AGAIN = 0.05
_HEARD_WITHIN = 0.05  # seconds from Finish's return to the event that says when the guest ran
_ACTIVE_NETWORKS = 2
_LOGS = Path("/var/log/libvirt/qemu")
_ACTIVE = frozenset({State.RUNNING, State.BLOCKED, State.PAUSED, State.SHUTDOWN, State.SUSPENDED})


class LibvirtIncoming:
    """A domain that is being built on this host.

    Args:
        uri: Of this host's libvirtd.
        domain: The domain; of what ``build`` is given only its identity is used here.
    """

    def __init__(self, uri: str, domain: Domain) -> None:
        self._uri = uri
        self._domain = domain
        self._uuid = str(domain.uuid)
        self._connection: Connection | None = None
        self._feed: Feed | None = None
        self._plan: Plan | None = None
        self._parameters: dict[str, str | int | list[str]] = {}
        self._preparing: asyncio.Future[tuple[str, bytes]] | None = None
        self._last_words = b""
        self._released = False

    @property
    def verbs(self) -> frozenset[Verb]:
        """Disks and TPM travel with the memory; QEMU announces the NICs by itself."""
        return VERBS

    async def tpm_facts(self) -> TpmFacts:
        """What this host's swtpm can do."""
        return await swtpm.facts()

    async def offers(self) -> Mapping[str, str]:
        """By what name its TLS certificate is checked."""
        return {"tls": await asyncio.to_thread(tls.can_take)}

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
            seen = await _look(raw)
            if not seen.under_way or time.monotonic() > deadline:
                return seen.guest
            await asyncio.sleep(_LOOK_AGAIN)

    async def build(self, domain: Domain, plane: DataPlane, plan: Plan) -> None:
        """Prepare; what the domain opens exists."""
        self._domain, self._plan = domain, plan
        connection = await self._connected()
        if self._feed is None:
            self._feed = await Feed.open(self._uri, self._uuid)
        host = f"[{plane.address}]" if ":" in plane.address else plane.address
        self._parameters = plan.parameters | {Parameter.URI: f"tcp://{host}"}
        library = await asyncio.to_thread(phases)
        self._preparing = call(
            library.prepare, connection.raw, self._parameters, plan.cookie, self._flags
        )
        await asyncio.shield(self._preparing)

    @property
    def _flags(self) -> int:
        return (self._plan.flags if self._plan else 0) & ~NOT_FOR_TARGET

    async def export(self, disk: Block) -> Export:
        """It does not: libvirt opens disks for each other by itself."""
        raise HypervisorError("libvirt exports no disk by itself", device=disk.label)

    async def listen(self) -> Ticket:
        """Where Prepare has it wait for memory."""
        if self._preparing is None:
            raise HypervisorError("the machine is not built")
        uri, cookie = await asyncio.shield(self._preparing)
        for tpm in self._domain.tpm:
            if (state := self._state_of(tpm)).is_dir():
                await asyncio.to_thread(swtpm.sync_parents, state)
        return Ticket(uri=uri, cookie=cookie)

    async def landed(self) -> None:
        """Wait until QEMU says that its migration is completed."""
        feed = self._heard()

        def over(known: Known) -> str | None:
            if known.ended:
                return known.ended
            return known.migration if known.migration in {"completed", "failed"} else None

        said = await feed.until(over)
        if said != "completed":
            raise HypervisorError(
                f"the machine being built has failed: {self._last_said() or said}"
            )

    def hear(self, last_words: bytes) -> None:
        """Perform's cookie, which is Finish's."""
        self._last_words = last_words

    async def died(self) -> str:
        """Returns, with the reason, when the machine is gone; never before.

        Before it is released, it ends with its libvirtd; afterwards it does not.
        """
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
        feed = self._heard()
        feed.known.resumed_at = 0
        self._released = True
        parameters = {Parameter.DEST_NAME: self._domain.name}
        try:
            await ask(
                phases().finish,
                connection.raw, parameters, self._last_words, self._flags, cancelled=False,
            )  # fmt: skip
        except (LostError, RefusedError) as error:
            await self._find_out(error, paused=paused)
        if not paused and not feed.known.resumed_at:
            with contextlib.suppress(TimeoutError, HypervisorError):
                async with asyncio.timeout(_HEARD_WITHIN):
                    await feed.until(lambda known: known.resumed_at or None)
        return feed.known.resumed_at or time.monotonic_ns()

    async def _find_out(self, error: EntourageError, *, paused: bool) -> None:
        """After an error in Finish: return where the guest has run, raise where it never has."""
        connection = self._connection
        if connection is None or not await connection.alive():
            try:
                self._connection = await Connection.open_again(self._uri, _BACK_WITHIN)
            except LostError as lost:
                raise InDoubt(
                    f"libvirtd went away as it was to let {self._domain.name} run: {lost.message}",
                    remedy="start it, then `entourage recover` here",
                ) from error
        deadline = time.monotonic() + _SETTLES_WITHIN
        while True:
            raw = await (await self._connected()).domain(self._uuid)
            seen = await _look(raw)
            if seen.guest is Guest.STOPPED and not seen.under_way:
                raise HypervisorError(error.message, remedy=error.remedy) from error
            # A libvirtd that came back ends what it finds paused; one that is meant to be is whole.
            if seen.guest is not Guest.STOPPED and (paused or not seen.paused):
                return
            if time.monotonic() > deadline:
                if seen.guest is Guest.RUNNING:  # somebody has paused it since
                    return
                # Unfinished, and nobody works on it any more: it never ran, and never will.
                await self.kill()
                raise HypervisorError(error.message, remedy=error.remedy) from error
            await asyncio.sleep(_LOOK_AGAIN)

    async def halt(self) -> None:
        """Stop the guest and keep it: it was found running without a right to."""
        raw = await (await self._connected()).domain(self._uuid)
        if raw is not None:
            await ask(raw.suspend)

    async def own(self) -> None:
        """Nothing: Finish wrote the definition down before the guest could run."""

    async def announce(self, nets: Sequence[Net]) -> None:
        """Nothing: QEMU has announced them by itself when memory had landed."""

    async def sync_tpm(self, tpm: Tpm) -> None:
        """Flush the TPM's state, file and directory, to this host's disk."""
        if (state := self._state_of(tpm)).is_dir():
            await asyncio.to_thread(swtpm.sync_state, state)

    def _state_of(self, tpm: Tpm) -> Path:
        return TPM_STATES / self._uuid / ("tpm1.2" if tpm.version == "1.2" else "tpm2")

    async def settle_in(self) -> None:
        """After the guest runs: one that had no definition on the source has none here either."""
        if self._plan is not None and self._plan.transient:
            raw = await (await self._connected()).domain(self._uuid)
            if raw is not None:
                with contextlib.suppress(RefusedError):
                    await ask(raw.undefine)

    async def kill(self) -> None:
        """End the machine, which never ran; returns when it and its definition are gone."""
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
            self._connection = connection = await Connection.open_again(self._uri, _SETTLES_WITHIN)
        raw = await connection.domain(self._uuid)
        if raw is None:
            return
        with contextlib.suppress(RefusedError):
            await ask(raw.destroy)
        with contextlib.suppress(RefusedError):
            await ask(raw.undefineFlags, UNDEFINE_ALL)

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = await Connection.open(self._uri)
        return self._connection

    def _last_said(self) -> str:
        """What QEMU said before it failed; empty where it said nothing."""
        return qemu_said(_LOGS / f"{self._domain.name}.log")

    def _heard(self) -> Feed:
        if self._feed is None:
            raise HypervisorError("no machine is being built")
        return self._feed


class _Seen:
    """What there is of a domain that was being built.

    Attributes:
        guest: See ``attach``.
        under_way: libvirtd still works on it, and may change it by itself.
        paused: It stands still, for whatever reason.
    """

    def __init__(self, guest: Guest, *, under_way: bool = False, paused: bool = False) -> None:
        self.guest = guest
        self.under_way = under_way
        self.paused = paused


async def _look(raw: Any) -> _Seen:
    """Look at what is there now."""
    if raw is None:
        return _Seen(Guest.STOPPED)

    def look() -> tuple[int, bool, bool]:
        state: int = raw.state(0)[0]
        working = state in _ACTIVE and bool(raw.jobInfo()[0])
        return state, bool(raw.isPersistent()), working

    try:
        state, defined, working = await ask(look)
    except RefusedError:  # it went away meanwhile
        return _Seen(Guest.STOPPED, under_way=True)
    if state in {State.RUNNING, State.BLOCKED}:
        return _Seen(Guest.RUNNING)
    if state not in _ACTIVE:
        return _Seen(Guest.DEAD if defined else Guest.STOPPED)
    if not defined:
        return _Seen(Guest.STOPPED, under_way=True)
    # Defined and paused: Finish is about to let it run, or its user has paused it since.
    return _Seen(Guest.RUNNING, under_way=working, paused=True)
