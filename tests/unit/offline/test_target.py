"""The target of an offline move: what it claims, defines and writes down."""

from __future__ import annotations

import dataclasses
import errno
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage import cordon, durable
from entourage.domain import Boot, Domain, Net
from entourage.errors import DomainBusy, EntourageError, HypervisorError, Refused, UsageError
from entourage.handover.values import Record, Role
from entourage.hypervisors.values import Definition, DomainState
from entourage.journal.details import SourceDetails, TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.offline import target as module
from entourage.offline.target import Target
from entourage.offline.values import Offer, Released
from entourage.settings.model import AgentSettings, PathSettings, Settings
from entourage.steps import Refusal
from entourage.target import checks, room
from entourage.target.caller import Caller

UUID = "a241103c-2c3e-4756-88b0-63e73f621ee2"
DOMAIN = Domain(name="rests", uuid=UUID, memory=1 << 30)
RELEASED = Released(migration="m1", uuid=UUID)


class _Killed(Exception):  # noqa: N818 - no error, but the end
    """The process was killed here."""


class Hypervisor:
    """Has what it was told to define.

    Attributes:
        half: It takes a definition, and fails then.
        state: Of what it has.
        autostart: Of those that it has.
    """

    name = "qemu"

    def __init__(self) -> None:
        self.has: list[str] = []
        self.objections: list[Refusal] = []
        self.fails = self.silent = self.half = False
        self.state = "shut off"
        self.autostart: dict[str, bool] = {}
        self.defined = 0

    async def domains(self) -> Sequence[DomainState]:
        if self.silent:
            raise HypervisorError("it hangs")
        return [DomainState(name="rests", uuid=one, state=self.state) for one in self.has]

    async def host_parts(self, _facts: object) -> Sequence[object]:
        return ()

    async def test_incoming(self, *_: object) -> Sequence[Refusal]:
        return self.objections

    async def definition(self, _name: str) -> Definition:
        raise NotImplementedError

    async def define(self, definition: Definition) -> None:
        if self.fails:
            raise HypervisorError("no space left")
        self.defined += 1
        if definition.domain.uuid not in self.has:
            self.has.append(str(definition.domain.uuid))
        if self.half:
            raise HypervisorError("it cannot be started with the host")
        self.autostart[str(definition.domain.uuid)] = definition.autostart

    async def undefine(self, _definition: Definition) -> None:
        raise NotImplementedError


class Link:
    """Is told what is answered, and asks nothing."""

    def on(self, _kind: object, _handler: object) -> None:
        pass


class Here:
    """A target, and what it has kept."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paths = PathSettings(state=str(path / "state"), run=str(path / "run"))
        self.settings = Settings(paths=paths)
        self.hypervisor = Hypervisor()
        self.journal = Journal.open(path / "state" / "journal.db")
        self.link: Any = Link()
        self.target = Target(self.link, self.settings, self.journal, Caller())
        self.claim = path / "state" / "claims" / f"{UUID}.json"

        async def others(*_: Any) -> list[Refusal]:
            return []

        async def all_domains(_: Settings) -> Sequence[DomainState]:
            return await self.hypervisor.domains()

        def open_hypervisor(_settings: Settings, _name: str) -> Hypervisor:
            return self.hypervisor

        monkeypatch.setattr(module, "open_hypervisor", open_hypervisor)
        monkeypatch.setattr(checks, "known_to_others", others)
        monkeypatch.setattr(module, "all_domains", all_domains)
        monkeypatch.setattr(room, "all_domains", all_domains)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    here = Here(tmp_path, monkeypatch)
    yield here
    here.journal.close()


LIBVIRT = "qemu:///system"


def offer(
    migration: str = "m1",
    domain: Domain = DOMAIN,
    generation: int = 1,
    hypervisor: str = "qemu",
) -> Offer:
    return Offer(
        migration=migration,
        source="a",
        journal="of-a",
        generation=generation,
        hypervisor=hypervisor,
        definition=Definition(domain=domain, autostart=True),
    )


async def test_a_claim_is_defined_once_the_source_has_let_go(here: Here) -> None:
    claimed = await here.target.claim(offer())
    assert claimed.journal == here.journal.uuid
    assert (here.hypervisor.has, here.claim.exists()) == ([], True)
    await here.target.adopt(RELEASED)
    assert (here.hypervisor.has, here.claim.exists()) == ([UUID], False)
    (decision,) = here.journal.decisions(UUID)
    assert (decision.role, decision.record, decision.settled) == (Role.TARGET, Record.OWNS, True)
    await here.target.adopt(RELEASED)  # the source was killed before it had heard of that
    assert here.hypervisor.has == [UUID]


async def test_a_definition_that_fails_leaves_the_claim(here: Here) -> None:
    await here.target.claim(offer())
    here.hypervisor.fails = True
    with pytest.raises(HypervisorError):
        await here.target.adopt(RELEASED)
    assert here.claim.exists()
    here.hypervisor.fails = False
    await here.target.adopt(RELEASED)
    assert here.hypervisor.has == [UUID]


@pytest.mark.parametrize("killed", ["before the journal", "after it"])
async def test_who_was_killed_while_it_was_defined_goes_on(
    here: Here, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    await here.target.claim(offer())

    def fail(*_: Any, **__: Any) -> Any:
        raise _Killed

    with monkeypatch.context() as patched:
        if killed.startswith("before"):
            patched.setattr(Journal, "begin", fail)
        else:
            patched.setattr(durable, "remove", fail)
        with pytest.raises(_Killed):
            await here.target.adopt(RELEASED)
    assert here.claim.exists()
    await here.target.adopt(RELEASED)
    assert [one.settled for one in here.journal.decisions(UUID)] == [True]
    assert not here.claim.exists()


def killed(*_: Any, **__: Any) -> Any:
    raise _Killed


@pytest.mark.parametrize("hypervisor", ["qemu", LIBVIRT])
@pytest.mark.parametrize("others", [True, False])
async def test_what_others_may_have_taken_away_is_not_defined_again(
    here: Here, monkeypatch: pytest.MonkeyPatch, hypervisor: str, *, others: bool
) -> None:
    """It was defined, and who did that killed before he had written it down.

    `virsh migrate` has taken it to a third host since; Entourage's own go by no such way.
    """
    await here.target.claim(offer(hypervisor=hypervisor))
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "begin", killed)
        with pytest.raises(_Killed):
            await here.target.adopt(RELEASED)
    if others:
        here.hypervisor.has.clear()
    here.hypervisor.defined = 0
    known = hypervisor == "qemu" or not others
    for _ in range(2):
        assert await here.target.adopt(RELEASED) == known
    assert here.hypervisor.defined == int(known)
    assert here.claim.exists() != known
    assert bool(here.journal.decisions(UUID)) == known
    if not known:
        assert await here.target.adopt(msgspec.structs.replace(RELEASED, certain=True))
        assert (here.hypervisor.has, here.claim.exists()) == ([UUID], False)


async def test_what_was_certainly_not_defined_is_tried_again(here: Here) -> None:
    """Its hypervisor says so at once; where that is silent, nobody knows."""
    await here.target.claim(offer(hypervisor=LIBVIRT))
    here.hypervisor.fails = True
    for _ in range(2):
        with pytest.raises(HypervisorError, match="no space left"):
            await here.target.adopt(RELEASED)
    here.hypervisor.silent = True
    with pytest.raises(HypervisorError, match="no space left"):
        await here.target.adopt(RELEASED)
    here.hypervisor.silent = here.hypervisor.fails = False
    assert not await here.target.adopt(RELEASED)
    assert here.hypervisor.has == []


async def test_a_source_that_has_forgotten_migrations_after_it_has_let_go(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something was touched by then: it is not told as a refusal."""
    await here.target.claim(offer())
    why = Refusal("domain", "b", "this host knows a newer migration of it: m9", "see the docs")

    def outdated(*_: object) -> list[Refusal]:
        return [why]

    monkeypatch.setattr(Target, "_outdated", outdated)
    with pytest.raises(EntourageError, match="a newer migration of it: m9; the claim stays") as one:
        await here.target.adopt(RELEASED)
    assert not isinstance(one.value, Refused)
    assert str(here.claim) in one.value.remedy
    assert one.value.remedy.startswith("see the docs; ")
    assert (here.hypervisor.has, here.claim.exists()) == ([], True)


async def test_what_has_come_and_left_is_not_defined_again(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was killed before it had removed the claim; the domain has moved on since."""

    def fail(*_: Any) -> Any:
        raise _Killed

    await here.target.claim(offer())
    with monkeypatch.context() as patched:
        patched.setattr(durable, "remove", fail)
        with pytest.raises(_Killed):
            await here.target.adopt(RELEASED)
    here.hypervisor.has.clear()
    with pytest.raises(UsageError, match="is kept here"):
        await here.target.adopt(RELEASED)
    assert (here.hypervisor.has, here.claim.exists()) == ([], False)


def decided(record: Record, *, clean: bool, generation: int = 1) -> Decision:
    """What the journal has of the domain's going to c."""
    return Decision(
        migration="m9",
        role=Role.SOURCE,
        domain=UUID,
        name="rests",
        generation=generation,
        record=record,
        clean=clean,
        peer_host="c",
        peer_journal="of-c",
        details=SourceDetails(),
    )


async def test_what_has_left_since_it_was_claimed_is_not_defined(here: Here) -> None:
    """It was defined here; who did that was killed before it was written down."""
    await here.target.claim(offer(generation=7))
    here.journal.begin(decided(Record.GONE, clean=True))
    with pytest.raises(UsageError, match="is kept here"):
        await here.target.adopt(RELEASED)
    assert (here.hypervisor.has, here.claim.exists()) == ([], False)


async def test_an_arrival_that_is_not_decided_keeps_the_claim(here: Here) -> None:
    await here.target.claim(offer())
    arrival = decided(Record.OPEN, clean=False)
    here.journal.begin(dataclasses.replace(arrival, role=Role.TARGET, details=TargetDetails()))
    with pytest.raises(DomainBusy, match="not settled: open"):
        await here.target.adopt(RELEASED)
    assert (here.hypervisor.has, here.claim.exists()) == ([], True)


async def test_a_source_that_has_forgotten_migrations_is_refused_before_it_lets_go(
    here: Here,
) -> None:
    """Its journal was restored: which of two is the newer domain is not known."""
    here.journal.begin(decided(Record.GONE, clean=True, generation=3))
    for generation in (2, 3):
        (found,) = await here.target.test(offer(generation=generation))
        assert "this host knows a newer migration of it: m9" in found.reason
        with pytest.raises(Refused):
            await here.target.claim(offer(generation=generation))
    assert not here.claim.exists()
    await here.target.claim(offer(generation=4))


async def test_it_is_this_hosts_though_it_had_left_before(here: Here) -> None:
    """What the journal says of its leaving is older."""
    left = Decision(
        migration="m0",
        role=Role.SOURCE,
        domain=UUID,
        name="rests",
        generation=1,
        record=Record.ARMED,
        peer_host="a",
        peer_journal="of-a",
        details=SourceDetails(),
    )
    here.journal.begin(left)
    here.journal.advance("m0", Role.SOURCE, expected=(Record.ARMED,), new=Record.GONE)
    here.journal.clean("m0", Role.SOURCE)
    await here.target.claim(offer(generation=2))
    await here.target.adopt(RELEASED)
    newest = max(here.journal.decisions(UUID), key=lambda one: one.began)
    assert newest.record is Record.OWNS


async def test_a_source_that_is_not_taken_here(here: Here) -> None:
    """And what a guest of another host's may not have here."""
    odd = msgspec.structs.replace(DOMAIN, boot=Boot(kernel="/etc/shadow"))
    assert "/etc/shadow" in " ".join(map(str, await here.target.test(offer(domain=odd))))
    agent = AgentSettings(sources=("c",))
    settings = msgspec.structs.replace(here.settings, agent=agent)
    here.target = Target(here.link, settings, here.journal, Caller())
    with pytest.raises(UsageError, match="machines of 'a' are not taken here"):
        await here.target.claim(offer())
    here.target = Target(here.link, here.settings, here.journal, Caller(source="c"))
    for ask in (here.target.test, here.target.claim):
        with pytest.raises(UsageError, match="machines of 'a' are not taken here"):
            await ask(offer())


async def test_another_moves_claim_is_not_taken_for_it(here: Here) -> None:
    await here.target.claim(offer("m2"))
    with pytest.raises(UsageError, match="is kept here"):
        await here.target.adopt(RELEASED)
    await here.target.drop(RELEASED)
    assert here.claim.exists()
    await here.target.drop(msgspec.structs.replace(RELEASED, migration="m2"))
    assert not here.claim.exists()


async def test_what_speaks_against_it(here: Here) -> None:
    """A cordon, a bridge, the hypervisor, one of that UUID; then nothing is claimed."""
    nic = msgspec.structs.replace(DOMAIN, net=(Net(id="net0", bridge="nowhere9"),))
    here.hypervisor.objections = [
        Refusal("domain", "b", "QEMU is not installed"),
        Refusal("domain", "b", "its firmware differs", only_warns=True),
    ]
    cordon.put_up(here.settings, "evacuate-1", "")
    with pytest.raises(Refused) as refused:
        await here.target.claim(offer(domain=nic))
    reasons = " ".join(str(one) for one in refused.value.refusals)
    assert "there is no bridge nowhere9" in reasons
    assert "QEMU is not installed" in reasons
    assert "it takes no domains (cordon evacuate-1" in reasons
    assert "firmware" not in reasons
    assert not here.claim.exists()
    cordon.lift(here.settings, "evacuate-1")
    here.hypervisor.objections = []
    here.hypervisor.has = [UUID.upper()]
    (found,) = await here.target.test(offer())
    assert "of that UUID here already" in found.reason


@pytest.mark.parametrize("hypervisor", ["qemu", LIBVIRT])
async def test_what_was_half_defined_is_defined_to_its_end(here: Here, hypervisor: str) -> None:
    """libvirt has taken its XML, and has not been told yet that it is started with the host."""
    await here.target.claim(offer(hypervisor=hypervisor))
    here.hypervisor.half = True
    with pytest.raises(HypervisorError, match="with the host; the claim stays"):
        await here.target.adopt(RELEASED)
    assert (here.hypervisor.has, here.journal.decisions(UUID)) == ([UUID], [])
    here.hypervisor.half = False
    assert await here.target.adopt(RELEASED)
    assert here.hypervisor.autostart == {UUID: True}
    assert [one.record for one in here.journal.decisions(UUID)] == [Record.OWNS]


async def test_what_was_started_since_it_was_defined_is_left_as_it_is(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.target.claim(offer(hypervisor=LIBVIRT))
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "begin", killed)
        with pytest.raises(_Killed):
            await here.target.adopt(RELEASED)
    here.hypervisor.state, here.hypervisor.defined = "running", 0
    assert await here.target.adopt(RELEASED)
    assert here.hypervisor.defined == 0


async def test_a_full_disk_once_the_source_has_let_go_is_no_wrong_command(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a UsageError its source would not say that the same command goes on."""
    await here.target.claim(offer())

    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write", full)
        with pytest.raises(
            EntourageError, match="no space left on device; the claim stays"
        ) as caught:
            await here.target.adopt(RELEASED)
    assert not isinstance(caught.value, UsageError)
    assert caught.value.remedy == "make room on that filesystem"
    assert await here.target.adopt(RELEASED)


async def test_a_full_disk_is_no_wrong_command_of_who_claims_either(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(EntourageError, match="no space left on device") as caught:
        await here.target.claim(offer())
    assert not isinstance(caught.value, UsageError)


async def test_a_hypervisor_that_is_none_any_more_is_no_wrong_command(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.target.claim(offer())

    def gone(_settings: Settings, name: str) -> Hypervisor:
        raise UsageError(f"{name} is not on this host", remedy="install it")

    monkeypatch.setattr(module, "open_hypervisor", gone)
    with pytest.raises(EntourageError, match="the claim stays") as caught:
        await here.target.adopt(RELEASED)
    assert not isinstance(caught.value, UsageError)
    assert (caught.value.remedy, here.claim.exists()) == ("install it", True)


HANGS = """
    import asyncio, contextlib, os, signal, sys, threading

    from entourage.hosts.threads import in_thread
    from entourage.offline import target
    from entourage.settings.model import PathSettings, Settings
    from entourage.target.caller import Caller

    class Link:
        def on(self, _kind, _handler):
            pass

        async def serve(self):
            if sys.argv[2] == "told":
                os.kill(os.getpid(), signal.SIGTERM)
            else:  # it is lost, and who ends processes comes later
                asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
                return
            await asyncio.Event().wait()

        async def settle(self):
            await asyncio.wait({self.task})

    async def answering():
        asked = in_thread(threading.Event().wait)
        while not asked.done():  # as what asks a libvirtd that hangs, which is not to be cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({asked})

    @contextlib.asynccontextmanager
    async def agents_link(_settings):
        link = Link()
        link.task = asyncio.create_task(answering())
        yield link

    target.agents_link, target._SETTLES_WITHIN = agents_link, 0.05
    paths = PathSettings(state=sys.argv[1], run=sys.argv[1])
    asyncio.run(target.serve(Settings(paths=paths), Caller()))
"""


@pytest.mark.parametrize("how", ["told", "lost"])
def test_a_hypervisor_that_hangs_does_not_keep_who_is_told_to_end(tmp_path: Path, how: str) -> None:
    words = [sys.executable, "-c", textwrap.dedent(HANGS), str(tmp_path), how]
    ended = subprocess.run(words, timeout=30, check=False)
    assert ended.returncode == -signal.SIGTERM
