"""The simulated hypervisor: a `Machine` that leaves, and an `Incoming` that arrives.

It does as QEMU does where that matters: the memory's stream runs by itself, whether anybody looks
or not; a stream that breaks before all was sent lets the source's guest run again by itself; what
was released once is never incoming any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError, InDoubt, UsageError
from entourage.handover.values import Guest as Seen
from entourage.hypervisors.backend import Backend
from entourage.hypervisors.base import DomainState, MemoryProgress, Plan, Ticket
from entourage.hypervisors.seams import IncomingSeams, MachineSeams
from entourage.steps import Refusal
from tests.sim.deadman import Deadman
from tests.sim.guest import FREE, INCOMING, At, Copy
from tests.sim.seams import Here, Time
from tests.sim.stream import Stream, changed

NAME = "sim"
_PLAN = Plan(msgspec.msgpack.encode({}))
_COOKIE = b"the source's last word, without which the target's machine is not whole"


class SimHypervisor:
    """A host's hypervisor."""

    name = NAME

    def __init__(self, host: Any) -> None:
        self.host = host

    async def domains(self) -> Sequence[DomainState]:
        await self.host.asked("domains")
        copy = self.host.copy
        if copy is None or not copy.alive:
            return []
        domain = self.host.world.domain
        return [DomainState(name=domain.name, uuid=domain.uuid, state=copy.at.value)]

    async def find(self, name: str) -> Domain:
        await self.host.asked("find")
        copy = self.host.copy
        if copy is None or not copy.alive or name != self.host.world.domain.name:
            raise UsageError(f"there is no domain {name!r} on this host")
        return self.host.world.domain

    async def machine(self, name: str) -> SimMachine:
        copy = self.host.copy
        await self.find(name)
        if copy is None or copy.at in INCOMING:
            raise UsageError(f"{name} does not run")
        return SimMachine(self.host, copy)

    async def reattach_machine(self, domain: Domain) -> SimMachine:
        await self.host.asked("reattach-machine")
        return SimMachine(self.host, self.host.copy)

    def incoming(self, domain: Domain, ledger: Any) -> SimIncoming:
        return SimIncoming(self.host, ledger)

    async def test_incoming(self, domain: Domain, host: str, facts: Any) -> Sequence[Refusal]:
        await self.host.asked("test-incoming")
        return []

    async def host_parts(self, facts: Any) -> Sequence[Any]:
        return []

    async def start(self, domain: Domain) -> None:
        raise NotImplementedError

    async def stop(self, name: str, *, force: bool, patience: float) -> None:
        raise NotImplementedError


class SimMachine(MachineSeams):
    """The source's half."""

    non_live = True

    def __init__(self, host: Any, copy: Copy | None) -> None:
        self.host = host
        self.copy = copy
        self.was_running = not host.world.guest.paused
        self.deadman: Deadman | None = None
        self.stream: Stream | None = copy.stream if copy else None

    @property
    def domain(self) -> Domain:
        return self.host.world.domain

    @property
    def in_the_clear(self) -> str:
        return ""

    def _standing(self) -> Copy:
        if self.copy is None or not self.copy.alive:
            raise GoneError("the machine has ended")
        return self.copy

    async def reattach(self, *, was_running: bool) -> Seen:
        await self.host.asked("reattach")
        self.was_running = was_running
        if self.copy is None or not self.copy.alive:
            return Seen.DEAD
        return Seen.RUNNING if self.copy.at in FREE else Seen.STOPPED

    async def close(self) -> None:
        if self.deadman is not None:
            self.deadman.parent_died()

    async def facts(self) -> Mapping[str, str]:
        await self.host.asked("facts")
        self._standing()
        return {}

    async def blockers(self) -> Sequence[Refusal]:
        await self.host.asked("blockers")
        return ()

    async def died(self) -> str:
        if self.copy is None:
            return "it is gone"
        while self.copy.alive or self.copy.unheard:
            await changed(self.copy)
        return self.copy.why

    async def arm(
        self,
        plane: Any,
        *,
        downtime_limit: float | None = None,
        throttle: bool = False,
        lock: int | None = None,
        budget: float | None = None,
        offers: Any = None,
    ) -> None:
        await self.host.asked("arm")
        parent = Here.loop.current
        self.deadman = Deadman(self.host, self._standing(), parent, lock=lock, budget=budget)

    @property
    def definition(self) -> None:
        """It has none: the plan is not looked at here."""
        return None

    def encrypts(self, offers: Any, *, wanted: bool) -> bool:
        del offers
        return wanted

    async def plan(self, target: Domain) -> Plan:
        await self.host.asked("plan")
        self._standing()
        return _PLAN

    async def start(self, ticket: Ticket, *, live: bool) -> None:
        await self.host.asked("start")
        world, copy = self.host.world, self._standing()
        target = world.listening.get(ticket.uri)
        if world.net.silent or target is None or not target.alive:
            raise HypervisorError("nobody takes the memory")
        self.stream = Stream(world, copy, target, live=live)
        await self.host.answers("start")

    async def progress(self) -> MemoryProgress:
        await self.host.asked("progress")
        self._standing()
        return MemoryProgress(remaining=1 << 20, total=1 << 30, dirty_rate=0, rate=1e9, iteration=1)

    async def tune(self, *, downtime_limit: float, throttle: bool) -> None:
        await self.host.asked("tune")
        self._standing()

    async def _until(self, *states: str) -> None:
        stream = self.stream
        if stream is None:
            raise HypervisorError("memory is not sent")
        if await stream.until(*states) == "failed":
            raise HypervisorError("the memory's stream has broken")
        self._standing()

    async def stopped(self) -> int:
        await self._until("pre-switchover")
        await self.host.asked("stopped")
        assert self.stream is not None
        return self.stream.stopped_at

    async def pre_switchover(self) -> str:
        await self.host.asked("pre-switchover")
        await self._until("pre-switchover")
        return "flushes disks"

    async def continue_switchover(self) -> None:
        await self.host.asked("continue-switchover")
        assert self.stream is not None
        self.stream.go_on()

    async def landed(self) -> bytes:
        await self._until("completed")
        await self.host.asked("landed")
        return _COOKIE

    async def disarm_deadman(self) -> None:
        if self.deadman is None:
            raise HypervisorError("nothing would resume the guest if this process died")
        await self.host.asked("disarm-deadman")
        await self.deadman.disarm()
        await self.host.answers("disarm-deadman")

    async def halt(self) -> None:
        await self.host.asked("halt")
        self._standing().stop()

    async def release(self) -> None:
        await self.host.asked("release")
        host = self.host
        if self.copy is not None and self.copy.alive:
            host.check_may_end(self.copy)
            self.copy.die("ended: moved")
        if host.copy is self.copy:
            host.copy = None
        host.disown()
        await host.answers("release")
        self._dismiss()

    async def abort(self) -> None:
        await self.host.asked("abort")
        copy, host = self._standing(), self.host
        if copy.at is At.HELD and host.locked_tpm and not host.excused_tpm:
            host.world.violated(f"{host.name} is let run with its TPM locked")
        if copy.stream is not None:
            copy.stream.fail()
            if copy.stream.source is copy:
                copy.stream = None
        host.end_mirror()
        await host.takes(0.005)
        self._standing().run()
        await host.answers("abort")
        self._dismiss()

    def _dismiss(self) -> None:
        if self.deadman is not None:
            self.deadman.dismiss()
            self.deadman = None


class SimIncoming(IncomingSeams):
    """The target's half."""

    def __init__(self, host: Any, ledger: Any) -> None:
        self.host = host
        self.ledger = ledger
        self.copy: Copy | None = None
        self.cookie: bytes | None = None
        """None where another process took the memory: what that was given is not known."""

    def _standing(self) -> Copy:
        if self.copy is None:
            raise HypervisorError("the machine is not built")
        if not self.copy.alive:
            raise HypervisorError(f"the machine has ended: {self.copy.why}")
        return self.copy

    async def attach(self) -> Seen:
        await self.host.asked("attach")
        self.copy = self.host.copy
        if self.copy is None or not self.copy.alive:
            return Seen.DEAD
        return Seen.RUNNING if self.copy.released else Seen.STOPPED

    async def offers(self) -> Mapping[str, str]:
        await self.host.asked("offers")
        return {}

    async def networks(self) -> Mapping[str, str]:
        return {}

    async def build(self, domain: Domain, plane: Any, plan: Plan) -> None:
        host = self.host
        await host.asked("build")
        marker = f"machine-{host.world.count()}"
        self.ledger.record("machine", marker=marker)
        host.world.point("make.machine")
        try:
            await host.takes(0.2)
        except asyncio.CancelledError:
            await host.ends(lambda: self._begin(marker))
            raise
        self._begin(marker)
        await host.takes(0.01)
        self._standing()
        await host.answers("build")

    def _begin(self, marker: str) -> None:
        host = self.host
        if host.copy is not None and host.copy.alive:
            host.world.violated(f"a second machine is built on {host.name}")
        host.copy = self.copy = Copy(host.world.guest, host, At.BUILD, marker)

    async def listen(self) -> Ticket:
        await self.host.asked("listen")
        uri = f"sim:{self.host.world.count()}"
        self.host.world.listening[uri] = self._standing()
        self.cookie = b""
        return Ticket(uri=uri)

    async def landed(self) -> None:
        copy = self._standing()
        while copy.at is At.BUILD and not (copy.stream and copy.stream.state == "failed"):
            await changed(copy)
        await self.host.asked("landed-there")
        if copy.at is not At.LANDED:
            raise HypervisorError("the machine being built has failed")

    @property
    def publishing(self) -> SimIncoming | None:
        return self if self.host.world.checkpoint else None

    async def publish(self) -> None:
        await self.host.asked("publish")
        copy = self._standing()
        if copy.at is not At.LANDED:
            self.host.world.violated(f"a checkpoint is kept of what is {copy.at}")
        await self.host.takes(self.host.world.rng.choice((0.01, 0.5, 5.0)))
        self.host.kept = True
        await self.host.answers("publish")

    def accept_cookie(self, cookie: bytes) -> None:
        self.cookie = cookie

    async def died(self) -> str:
        copy = self._standing()
        while copy.alive:
            await changed(copy)
        return copy.why

    async def run(self, *, paused: bool) -> int:
        await self.host.asked("run")
        copy = self._standing()
        if copy.at is not At.LANDED and not copy.released:
            raise HypervisorError("memory is not there")
        if paused is not self.host.world.guest.paused:
            self.host.world.violated("the target lets run what its user had paused, or not")
        if self.cookie not in {None, _COOKIE} and not copy.released:
            self.host.world.violated("the target's machine is let run without the source's cookie")
        copy.run()
        await self.host.answers("run", InDoubt)
        return Time.monotonic_ns()

    async def halt(self) -> None:
        await self.host.asked("halt")
        self._standing().stop()

    async def finish_arrival(self) -> None:
        await self.host.asked("finish-arrival")

    async def persist_definition(self) -> None:
        await self.host.asked("persist-definition")
        self.host.defined = True
        await self.host.answers("persist-definition")

    async def kill(self) -> None:
        await self.host.asked("kill")
        self.host.end_incoming()
        await self.host.answers("kill")


def backend() -> Backend:
    """What the registry is given."""
    return Backend(
        kind="simulated",
        names=NAME,
        usual=NAME,
        answers_to=lambda name: name == NAME,
        is_here=lambda: True,
        open=lambda _settings, _name: SimHypervisor(Here.loop.current.host),
        must_answer=True,
    )
