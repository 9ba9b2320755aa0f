"""The source of an offline move: in which order it lets go, and what it does where it must not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from entourage.admission import manual_access
from entourage.domain import Domain
from entourage.errors import (
    DomainBusy,
    EntourageError,
    HypervisorError,
    InDoubt,
    JournalError,
    LinkLost,
    Refused,
    UsageError,
)
from entourage.handover.values import Record, Role
from entourage.hosts.frames import Question
from entourage.hosts.route import Route
from entourage.hypervisors.values import Definition, DomainState
from entourage.journal.details import SourceDetails
from entourage.journal.journal import Decision, Journal
from entourage.offline import leaving
from entourage.offline import source as module
from entourage.offline.leaving import Asked
from entourage.offline.source import move
from entourage.offline.source import test as ask_first
from entourage.offline.values import Claimed
from entourage.settings.model import PathSettings, Settings
from entourage.steps import Refusal

UUID = "a241103c-2c3e-4756-88b0-63e73f621ee2"
DOMAIN = Domain(name="rests", uuid=UUID, memory=1 << 30)


def fails(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


class Here:
    """A host that has the domain, off; and the link to its target.

    Attributes:
        did: What was done, in its order.
        answers: What is to happen at a question, by its name.
    """

    name = "qemu"

    def __init__(self, path: Path) -> None:
        paths = PathSettings(state=str(path / "state"), run=str(path / "run"))
        self.settings = Settings(paths=paths)
        self.journal = path / "state" / "journal.db"
        with Journal.open(self.journal):
            pass
        self.did: list[str] = []
        self.refusals: list[Refusal] = []
        self.answers: dict[str, Callable[[], Any]] = {}
        self.definitions = [Definition(domain=DOMAIN)]
        self.has = True
        self.elsewhere: EntourageError | None = None
        self.told: list[str] = []

    def asked(self, host: str = "b", *, certain: bool = False) -> Asked:
        return Asked(
            "rests", Route(host=host), None, self.settings, certain=certain, told=self.told.append
        )

    async def call(self, kind: Question[Any, Any], body: Any) -> Any:
        if kind.name != "offline-look":
            self.did.append(kind.name)
        if kind.name in self.answers:
            return self.answers[kind.name]()
        if kind.name == "offline-adopt" and body.certain:
            self.did[-1] += ", certain"
        return {
            "offline-test": self.refusals,
            "offline-claim": Claimed(journal="of-b"),
            "offline-look": [],
            "offline-adopt": True,
        }.get(kind.name)

    async def definition(self, _name: str) -> Definition:
        if "definition" in self.answers and "offline-claim" in self.did:
            self.answers["definition"]()
        return self.definitions.pop(0) if len(self.definitions) > 1 else self.definitions[0]

    async def domains(self) -> Sequence[DomainState]:
        if "domains" in self.answers:
            self.answers["domains"]()
        return [DomainState(name="rests", uuid=UUID, state="shut off")] if self.has else []

    async def define(self, _definition: Definition) -> None:
        raise NotImplementedError

    async def undefine(self, _definition: Definition) -> None:
        self.did.append(f"undefine, {self.record}")
        if "undefine" in self.answers:
            self.answers["undefine"]()
        self.has = False

    @property
    def record(self) -> Record | None:
        """What the journal says of the last move."""
        with Journal.open(self.journal, read_only=True) as journal:
            found = journal.decisions(UUID)
        assert all(one.settled for one in found)
        return next((one.record for one in found), None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here(tmp_path)

    async def find_domain(_settings: Settings, name: str, _connect: str | None) -> Any:
        if not here.has:
            raise UsageError(f"there is no domain {name!r} on this host")
        return here, DOMAIN

    async def check_lacks(
        _settings: Settings, uuid: str, *, must_say: Collection[str] = (), **_: str
    ) -> None:
        assert uuid == UUID
        here.did.append(" ".join(["lacks", *must_say]))
        if here.elsewhere is not None:
            raise here.elsewhere

    def open_hypervisor(_settings: Settings, _name: str) -> Here:
        return here

    @contextlib.asynccontextmanager
    async def start_agent(*_: object) -> AsyncGenerator[Here]:
        yield here

    monkeypatch.setattr(leaving, "find_domain", find_domain)
    for one in (module, leaving):
        monkeypatch.setattr(one, "check_lacks", check_lacks)
    monkeypatch.setattr(module, "open_hypervisor", open_hypervisor)
    monkeypatch.setattr(module.ssh, "start_agent", start_agent)
    return here


async def test_it_is_claimed_let_go_forgotten_and_only_then_defined_there(here: Here) -> None:
    await move(here.asked())
    assert here.did == [
        "offline-test", "lacks", "offline-claim", "undefine, gone", "offline-adopt",
    ]  # fmt: skip


async def test_a_dry_run_touches_nothing(here: Here) -> None:
    here.refusals = [Refusal("net/net0", "b", "there is no bridge br9")]
    assert await ask_first(here.asked()) == here.refusals
    assert (here.did, here.record) == (["offline-test"], None)
    here.refusals = []
    assert await ask_first(here.asked()) == []
    assert (here.did[1:], here.record) == (["offline-test", "lacks"], None)


async def test_what_is_refused_stays(here: Here) -> None:
    """By the target; or for what of it is this host's."""
    here.definitions = [Definition(domain=DOMAIN, objections=(("tpm/tpm0", "its state", "start"),))]
    with pytest.raises(Refused) as refused:
        await move(here.asked())
    assert [one.device for one in refused.value.refusals] == ["tpm/tpm0"]
    assert (here.did, here.record) == (["offline-test"], None)


async def test_what_was_changed_since_is_not_let_go(here: Here) -> None:
    here.definitions += [Definition(domain=DOMAIN, autostart=True)]
    with pytest.raises(DomainBusy, match="changed meanwhile"):
        await move(here.asked())
    assert here.did == ["offline-test", "lacks", "offline-claim", "offline-drop"]
    assert here.record is None


@pytest.mark.parametrize(
    ("at", "how"),
    [
        ("definition", fails(UsageError("rests is not off"))),
        ("definition", fails(HypervisorError("libvirt is gone"))),
        ("begin", fails(JournalError("no space left"))),
        ("begin", fails(asyncio.CancelledError())),
        ("offline-claim", fails(LinkLost("link lost"))),
    ],
)
async def test_what_fails_before_it_is_let_go_leaves_no_claim(
    here: Here, monkeypatch: pytest.MonkeyPatch, at: str, how: Callable[[], Any]
) -> None:
    """Also where the link is lost then: what is told is why."""
    here.answers["offline-drop"] = fails(LinkLost("it does not hear that"))
    here.answers[at] = how
    if at == "begin":

        def begin(*_: object) -> None:
            how()

        monkeypatch.setattr(Journal, "begin", begin)
    expected: BaseException | None = None
    try:
        how()
    except BaseException as error:  # noqa: BLE001 - what is to be told
        expected = error
    assert expected is not None
    with pytest.raises(type(expected)) as caught:
        await move(here.asked())
    assert str(caught.value) == str(expected)
    assert here.did[-1] == "offline-drop"
    assert (here.has, here.record) == (True, None)


async def test_what_was_started_since_is_kept(here: Here) -> None:
    here.answers["undefine"] = fails(DomainBusy("it was started"))
    with pytest.raises(DomainBusy):
        await move(here.asked())
    assert here.did[-1] == "offline-drop"
    assert here.record is Record.BACK


@pytest.mark.parametrize("drop", ["heard", "lost"])
async def test_what_the_hypervisor_does_not_forget_is_this_hosts_again(
    here: Here, drop: str
) -> None:
    """Nothing has it defined there by an older move, whatever became of the claim."""
    here.answers["undefine"] = fails(HypervisorError("no space left"))
    if drop == "lost":
        here.answers["offline-drop"] = fails(LinkLost("link lost"))
    with pytest.raises(HypervisorError):
        await move(here.asked())
    assert (here.did[-1], here.record) == ("offline-drop", Record.BACK)
    here.has = False
    with pytest.raises(UsageError, match="there is no domain"):
        await move(here.asked())
    assert "offline-adopt" not in here.did


async def test_what_may_be_forgotten_or_not_stays_given_away(here: Here) -> None:
    """Its hypervisor is silent: to drop the claim might lose the domain."""
    here.answers["undefine"] = here.answers["domains"] = fails(HypervisorError("it hangs"))
    with pytest.raises(HypervisorError):
        await move(here.asked())
    assert (here.did[-1], here.record) == ("undefine, gone", Record.GONE)


async def test_a_hypervisor_of_this_host_that_may_have_it_too(here: Here) -> None:
    """Before anything is claimed; and before it is defined there by an older move."""
    here.elsewhere = DomainBusy("libvirt has it")
    for command in (move, ask_first):
        with pytest.raises(DomainBusy):
            await command(here.asked())
        assert (here.did, here.record) == (["offline-test", "lacks"], None)
        here.did.clear()
    here.elsewhere = None
    here.answers["offline-adopt"] = fails(LinkLost("link lost"))
    with pytest.raises(LinkLost):
        await move(here.asked())
    here.did.clear()
    here.elsewhere = HypervisorError("libvirt does not answer")
    for command in (move, ask_first):
        with pytest.raises(HypervisorError, match="does not answer"):
            await command(here.asked())
    assert here.did == ["lacks qemu", "lacks qemu"]


async def test_a_host_that_is_this_one(here: Here) -> None:
    with Journal.open(here.journal) as journal:
        own = Claimed(journal=journal.uuid)
    here.answers["offline-claim"] = lambda: own
    with pytest.raises(UsageError, match="b is this host"):
        await move(here.asked())
    assert here.did[-1] == "offline-drop"
    assert here.record is None


AGAIN = "`entourage migrate --offline rests b` again"


def cancelled() -> Any:
    raise asyncio.CancelledError


@pytest.mark.parametrize("at", ["undefine", "offline-adopt"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (fails(LinkLost("link lost", remedy="see the network")), "link lost"),
        (cancelled, "interrupted after rests was given to b"),
    ],
)
async def test_what_is_cut_after_the_source_has_let_go_says_what_to_type(
    here: Here, at: str, how: Callable[[], Any], said: str
) -> None:
    """Perhaps no host has it then; at the first attempt, and at the next."""
    here.answers[at] = how
    if at == "undefine":
        here.answers["domains"] = fails(HypervisorError("it hangs"))
    for _ in range(2):
        with pytest.raises(EntourageError) as caught:
            await move(here.asked())
        assert caught.value.message == said
        assert caught.value.remedy.endswith(AGAIN)
        assert here.record is Record.GONE
        here.did.clear()
        here.has = False
    settings = here.settings
    with (
        pytest.raises(DomainBusy) as busy,
        manual_access(settings, "rests", UUID, "starts it", starts=True),
    ):
        pass
    assert AGAIN in busy.value.remedy


async def test_where_the_target_keeps_nothing_of_it_to_type_it_again_is_not_advised(
    here: Here,
) -> None:
    here.answers["offline-adopt"] = fails(UsageError("nothing of it is kept here"))
    with pytest.raises(UsageError) as caught:
        await move(here.asked())
    assert caught.value.remedy == ""


async def test_what_was_let_go_is_defined_there_by_the_same_command(here: Here) -> None:
    """To no other host than the one that has the claim."""
    here.answers["offline-adopt"] = fails(LinkLost("link lost"))
    with pytest.raises(LinkLost):
        await move(here.asked())
    assert not here.has
    del here.answers["offline-adopt"]
    here.did.clear()
    with pytest.raises(UsageError, match="rests was given to b") as caught:
        await move(here.asked("c"))
    assert caught.value.remedy.endswith(f"there; if that was cut, {AGAIN}")
    assert here.did == []
    await move(here.asked())
    assert here.did == ["lacks qemu", "undefine, gone", "offline-adopt"]  # it is on the disk


LIBVIRT = "qemu:///system"
CERTAIN = "`entourage migrate --offline --no-host-has-it rests b`"


class _Killed(BaseException):
    """The process was killed here."""


@pytest.mark.parametrize("hypervisor", ["qemu", LIBVIRT])
@pytest.mark.parametrize("at", ["offline-gone", "undefine", "note"])
async def test_what_somebody_may_have_taken_away_is_in_doubt(
    here: Here, monkeypatch: pytest.MonkeyPatch, hypervisor: str, at: str
) -> None:
    """It was killed before it had written down that it was forgotten; then it is found nowhere.

    `virsh migrate` takes libvirt's domains to a third host without a word; Entourage's own do not
    go without one.
    """
    here.name = hypervisor

    def killed(*_: object) -> None:
        raise _Killed

    with monkeypatch.context() as patched:
        if at == "note":
            patched.setattr(Journal, "detail", killed)
        elif at == "undefine":
            here.answers["undefine"] = fails(HypervisorError("no space left"))
            patched.setattr(module, "_take_back", killed)
        else:
            here.answers["undefine"] = killed
        with pytest.raises(_Killed):
            await move(here.asked())
    here.answers.clear()
    here.has = False
    here.did.clear()
    if hypervisor == "qemu":
        await move(here.asked())
        assert here.did[-1] == "offline-adopt"
        return
    for command in (ask_first, move):
        with pytest.raises(InDoubt) as caught:
            await command(here.asked())
        assert CERTAIN in caught.value.remedy
        assert AGAIN not in caught.value.remedy
    assert "offline-adopt" not in here.did
    await move(here.asked(certain=True))
    assert here.did[-1] == "offline-adopt, certain"


async def test_what_was_written_down_as_forgotten_is_in_no_doubt(here: Here) -> None:
    here.name = LIBVIRT
    here.answers["offline-adopt"] = fails(LinkLost("link lost"))
    for _ in range(2):
        with pytest.raises(LinkLost):
            await move(here.asked())
    del here.answers["offline-adopt"]
    await move(here.asked())
    assert here.did[-1] == "offline-adopt"


async def test_who_interrupts_while_it_is_being_forgotten_leaves_no_doubt(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is done to its end, and written down, and then it is over."""
    here.name = LIBVIRT
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def undefine(_definition: Definition) -> None:
        begun.set()
        await may_end.wait()
        here.has = False

    with monkeypatch.context() as patched:
        patched.setattr(here, "undefine", undefine)
        moving = asyncio.create_task(move(here.asked()))
        await begun.wait()
        moving.cancel()
        _, waits = await asyncio.wait({moving}, timeout=0.05)
        assert waits == {moving}
        may_end.set()
        with pytest.raises(EntourageError, match="interrupted after rests was given to b"):
            await moving
    assert "offline-adopt" not in here.did
    await move(here.asked())
    assert here.did[-1] == "offline-adopt"


async def test_what_the_target_may_have_had_is_in_doubt(here: Here) -> None:
    here.answers["offline-adopt"] = lambda: False
    for _ in range(2):
        with pytest.raises(InDoubt, match="has been on b since is not known") as caught:
            await move(here.asked())
        assert CERTAIN in caught.value.remedy
        assert AGAIN not in caught.value.remedy
        assert here.record is Record.GONE


async def test_each_step_is_told(here: Here) -> None:
    await move(here.asked())
    assert here.told == [
        "nothing speaks against it, here or on b",
        "b keeps its definition, and cannot start it yet",
        "this host's journal says that it is b's",
        "qemu here has forgotten it",
        "b has it, off",
    ]


@pytest.mark.parametrize("drop", ["heard", "lost"])
async def test_who_interrupts_while_it_is_taken_back_is_told_so(
    here: Here, monkeypatch: pytest.MonkeyPatch, drop: str
) -> None:
    """It was not forgotten: it is this host's, and the target is to keep nothing of it."""
    begun, may_end = asyncio.Event(), asyncio.Event()
    if drop == "lost":
        here.answers["offline-drop"] = fails(LinkLost("link lost"))

    async def undefine(_definition: Definition) -> None:
        begun.set()
        await may_end.wait()
        raise DomainBusy("it was started meanwhile", remedy="move it as it runs")

    monkeypatch.setattr(here, "undefine", undefine)
    moving = asyncio.create_task(move(here.asked()))
    await begun.wait()
    moving.cancel()
    may_end.set()
    with pytest.raises(DomainBusy, match="it was started meanwhile") as caught:
        await moving
    assert caught.value.remedy == "move it as it runs"
    assert (here.did[-1], here.record) == ("offline-drop", Record.BACK)


async def test_who_interrupts_what_then_fails_is_told_what_to_type(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was forgotten is not known."""
    begun, may_end = asyncio.Event(), asyncio.Event()
    here.answers["domains"] = fails(HypervisorError("it hangs"))

    async def undefine(_definition: Definition) -> None:
        begun.set()
        await may_end.wait()
        raise HypervisorError("it hangs")

    monkeypatch.setattr(here, "undefine", undefine)
    moving = asyncio.create_task(move(here.asked()))
    await begun.wait()
    moving.cancel()
    may_end.set()
    with pytest.raises(EntourageError, match="interrupted after rests was given to b") as caught:
        await moving
    assert caught.value.remedy == AGAIN
    assert here.record is Record.GONE


@pytest.mark.parametrize("how", ["as it ran", "not settled"])
async def test_what_has_moved_as_it_ran_is_no_offline_move_to_go_on_with(
    here: Here, how: str
) -> None:
    """Then b has it, and nothing of it is kept there to be defined."""
    here.has = False
    with Journal.open(here.journal) as journal:
        journal.begin(
            Decision(
                migration="m0",
                role=Role.SOURCE,
                domain=UUID,
                name="rests",
                generation=1,
                record=Record.ARMED,
                peer_host="b",
                peer_journal="of-b",
                details=SourceDetails(hypervisor="qemu"),
            )
        )
        journal.advance("m0", Role.SOURCE, expected=(Record.ARMED,), new=Record.GONE)
        if how == "as it ran":
            told = SourceDetails(hypervisor="qemu", peer_was_told=True)
            journal.detail("m0", Role.SOURCE, told)
            journal.clean("m0", Role.SOURCE)
    for command in (move, ask_first):
        with pytest.raises(UsageError, match="there is no domain 'rests' on this host; it") as one:
            await command(here.asked())
        if how == "as it ran":
            assert one.value.message.endswith("; it moved to b as it ran")
            assert one.value.remedy == "see `entourage list --all` on b"
        else:
            assert one.value.message.endswith("; its move to b is not settled")
            assert one.value.remedy == "`entourage recover rests`"
    assert here.did == []
