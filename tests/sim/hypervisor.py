"""The simulated hypervisor: a `Machine` that leaves, an `Incoming` that arrives, their stream.

It does as QEMU does where that matters: the memory's stream runs by itself, whether anybody looks
or not; a stream that breaks before all was sent lets the source's guest run again by itself; what
was released once is never incoming any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError, UsageError
from entourage.handover.values import Guest as Seen
from entourage.hypervisors.backend import Backend
from entourage.hypervisors.base import DomainState, MemoryProgress, Plan, Ticket
from entourage.hypervisors.seams import IncomingSeams, MachineSeams
from entourage.steps import Refusal
from tests.sim.deadman import Deadman
from tests.sim.guest import FREE, INCOMING, At, Copy
from tests.sim.seams import Here, Time

NAME = "sim"
_PLAN = Plan(msgspec.msgpack.encode({}))


class Bell:
    """Somebody who waits for the next change; the list is of those who do."""

    def __init__(self, waiting: list[Callable[[], None]]) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(self._ring)

    def _ring(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def rung(self) -> None:
        await self._future


async def changed(copy: Copy) -> None:
    """Wait until a copy does something else."""
    await Bell(copy.on_change).rung()


class Stream:
    """The memory's way from one copy to the other; the network and the hypervisors drive it."""

    def __init__(self, world: Any, source: Copy, target: Copy | None, *, live: bool) -> None:
        self.world, self.source, self.target = world, source, target
        self.state = "active"
        self.stopped_at = 0
        self.accepted = 0.0
        self.waiting: list[Callable[[], None]] = []
        source.stream = self
        if target is not None:
            target.stream = self
        world.net.on_change.append(self._network)
        if not live:
            self._hold()
        world.loop.after(0.2 + 2.0 * world.loop.rng.random(), self._converged)

    def _tell(self, state: str) -> None:
        self.state = state
        self.world.trace("stream", state)
        waiting, self.waiting = self.waiting, []
        for tell in waiting:
            tell()

    async def until(self, *states: str) -> str:
        """Wait for one of these states, or a failure."""
        while self.state not in (*states, "failed"):
            await Bell(self.waiting).rung()
        return self.state

    def _hold(self) -> None:
        self.source.stop()
        self.stopped_at = int((self.world.loop.now + self.source.host.booted) * 1e9)

    def _converged(self) -> None:
        if self.state != "active":
            return
        if self.world.net.silent:
            self.world.loop.after(0.5, self._converged)
            return
        self._hold()
        self._tell("pre-switchover")

    def go_on(self) -> None:
        """The disks are settled: the last pages go."""
        if self.state != "pre-switchover":
            return
        if self.world.guest.mirror is not None:
            self.world.violated("the last memory is sent before a disk is settled")
        self._tell("device")
        loop = self.world.loop
        loop.after(0.001 + 0.05 * loop.rng.random(), self._land)
        loop.after(0.001 + 0.05 * loop.rng.random(), self._complete)

    def _land(self) -> None:
        target = self.target
        if self.state not in {"device", "completed"} or target is None or not target.alive:
            return
        if self.world.net.silent:
            self.world.loop.after(0.2, self._land)
            return
        target.memory = self.source.memory
        target.host.tpm_arrived()
        target.become(At.LANDED)

    def _complete(self) -> None:
        if self.state == "device" and not self.world.net.silent:
            self._tell("completed")
        elif self.state == "device":
            self.world.loop.after(0.2, self._complete)

    def _network(self) -> None:
        if self.state in {"active", "pre-switchover", "device"} and not self.world.net.silent:
            self.fail()
        elif self.state in {"active", "pre-switchover", "device"}:
            # TCP gives up late, if at all.
            self.world.loop.after(5 + 30 * self.world.loop.rng.random(), self._still_silent)

    def _still_silent(self) -> None:
        if self.world.net.silent and self.state in {"active", "pre-switchover", "device"}:
            self.fail()

    def fail(self) -> None:
        """It breaks: the source goes on by itself, unless all was sent; the target cannot land."""
        if self.state in {"completed", "failed"}:
            if self.target is not None and self.target.at is At.BUILD:
                self._tell_target()
            return
        self._tell("failed")
        self._tell_target()
        if self.source.at is At.HELD:
            self.source.run()

    def _tell_target(self) -> None:
        target = self.target
        if target is not None:
            waiting, target.on_change = target.on_change, []
            for tell in waiting:
                tell()


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
            raise HypervisorError("the machine has ended")
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
        while self.copy.alive:
            await changed(self.copy)
        return self.copy.why

    async def arm(
        self,
        plane: Any,
        *,
        downtime_limit: float | None = None,
        throttle: bool = False,
        lock: int | None = None,
        offers: Any = None,
    ) -> None:
        await self.host.asked("arm")
        self.deadman = Deadman(self.host, self._standing(), Here.loop.current, lock)

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
        return b""

    async def disarm_deadman(self) -> None:
        if self.deadman is None:
            raise HypervisorError("nothing would resume the guest if this process died")
        await self.host.asked("disarm-deadman")
        await self.deadman.disarm()

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
        await self.host.takes(0.005)
        self._standing().run()
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
        if host.copy is not None and host.copy.alive:
            host.world.violated(f"a second machine is built on {host.name}")
        host.copy = self.copy = Copy(host.world.guest, host, At.BUILD, marker)
        await host.takes(0.2)
        self._standing()

    async def listen(self) -> Ticket:
        await self.host.asked("listen")
        uri = f"sim:{self.host.world.count()}"
        self.host.world.listening[uri] = self._standing()
        return Ticket(uri=uri)

    async def landed(self) -> None:
        copy = self._standing()
        while copy.at is At.BUILD and not (copy.stream and copy.stream.state == "failed"):
            await changed(copy)
        await self.host.asked("landed-there")
        if copy.at is not At.LANDED:
            raise HypervisorError("the machine being built has failed")

    def accept_cookie(self, cookie: bytes) -> None:
        """There is none."""

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
        copy.run()
        await self.host.answers("run")
        return Time.monotonic_ns()

    async def halt(self) -> None:
        await self.host.asked("halt")
        self._standing().stop()

    async def finish_arrival(self) -> None:
        await self.host.asked("finish-arrival")

    async def persist_definition(self) -> None:
        await self.host.asked("persist-definition")
        self.host.defined = True

    async def kill(self) -> None:
        await self.host.asked("kill")
        self.host.end_incoming()


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
