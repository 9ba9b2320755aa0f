"""How many migrations one source may have open at once, and how long a link may do nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from entourage import messages
from entourage.domain import Domain
from entourage.errors import Refused, UsageError
from entourage.handover.values import Input
from entourage.hosts.frames import Call
from entourage.hosts.link import Link
from entourage.hosts.parts import HostPart, Kind, PartsCheck
from entourage.hosts.slots import slot
from entourage.hypervisors.base import Plan
from entourage.hypervisors.values import LocalData
from entourage.journal.journal import Journal
from entourage.journal.lock import lock_holder
from entourage.settings.model import AgentSettings, MigrationSettings, PathSettings, Settings
from entourage.steps import Refusal
from entourage.target import agent as module
from entourage.target import checks
from entourage.target.agent import Agent
from entourage.target.caller import Caller, trusting
from tests.unit.test_protocol import Hypervisor, frames

SAID = {frame.verb: frame.body for frame in frames("source")}
HELLO = msgspec.convert(SAID["hello"], messages.Hello)
OPEN = msgspec.convert(SAID["open"], messages.Open)
Make = Callable[[Caller], Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    paths = {name: str(tmp_path / name) for name in ("state", "run", "log")}
    return Settings(
        paths=PathSettings(**paths),
        agent=AgentSettings(links=1),
        migration=MigrationSettings(test_timeout=0.01),
    )


@pytest.fixture
def hypervisor(monkeypatch: pytest.MonkeyPatch) -> Hypervisor:
    made = Hypervisor()

    def opened(_settings: Settings, _name: str) -> Hypervisor:
        return made

    monkeypatch.setattr(module, "open_hypervisor", opened)
    return made


@pytest.fixture
def journal(tmp_path: Path) -> Generator[Journal]:
    with Journal.open(tmp_path / "journal.db") as opened:
        yield opened


@pytest.fixture
def make(settings: Settings, hypervisor: Hypervisor, journal: Journal) -> Make:
    """An agent whose handlers are called by hand."""

    def on(_verb: Any, _handler: Any) -> None:
        """Nothing: there is no link."""

    def agent(caller: Caller) -> Any:
        return Agent(cast("Any", SimpleNamespace(on=on)), settings, journal, caller)

    return agent


@pytest.mark.parametrize("source", ["a", ""])
async def test_a_source_has_no_more_open_than_it_may(
    settings: Settings, make: Make, source: str
) -> None:
    caller = Caller(source=source)
    with slot(Path(settings.paths.run, "links"), caller.slots, 1):
        one = make(caller)
        await one._on_hello(HELLO)
        with pytest.raises(UsageError, match="there are 1 migrations of the source") as caught:
            await one._on_open(OPEN)
        assert "agent.links" in caught.value.remedy
        await one._held.aclose()
    again = make(caller)
    await again._on_hello(HELLO)
    await again._on_open(OPEN)
    await again._held.aclose()


@pytest.mark.parametrize("other", ["any", "unsourced", "source=a", "b"])
async def test_the_slots_of_others_are_not_its_own(
    settings: Settings, make: Make, other: str
) -> None:
    """Neither of a key without a source, nor of one whose source is called like the others."""
    callers = [Caller(), Caller(source=other), Caller(source="a")]
    assert len({caller.slots for caller in callers}) == 3
    with slot(Path(settings.paths.run, "links"), Caller(source=other).slots, 1):
        agent = make(Caller())
        await agent._on_hello(HELLO)
        await agent._on_open(OPEN)
        await agent._held.aclose()


async def test_whoever_only_reattaches_needs_no_slot(
    settings: Settings, make: Make, journal: Journal
) -> None:
    """All of them taken: what has become of a migration can be asked all the same."""
    with slot(Path(settings.paths.run, "links"), Caller().slots, 1):
        agent = make(Caller())
        said: list[Any] = []
        agent._send = said.append
        await agent._on_hello(HELLO)
        await agent._on_handover(messages.Say("ask", HELLO.migration))
        await agent._side.idle()
        assert said
        await agent._held.aclose()


async def test_only_this_hosts_own_processes_name_a_socket(
    settings: Settings, make: Make, tmp_path: Path
) -> None:
    """A stranger would have root listen, and make a file, at any path."""
    local = LocalData(socket=str(tmp_path / "here.sock"), generation=1, paused=False)
    plane = msgspec.structs.replace(OPEN.plane, local=local)
    agent = make(Caller())
    await agent._on_hello(HELLO)
    with pytest.raises(UsageError, match="for its own processes only"):
        await agent._on_open(msgspec.structs.replace(OPEN, plane=plane))
    await agent._held.aclose()
    assert not settings.agent.allow_unencrypted
    ours = trusting(settings).agent
    assert ours.allow_unencrypted
    assert ours.believe_shared


def shown(settings: Settings) -> str:
    """What ``status`` shows of what is done."""
    holder = lock_holder(Path(settings.paths.run), OPEN.domain.uuid or "")
    assert holder is not None
    return holder.doing


def say_nothing(_kind: Any, _body: Any) -> None:
    """Nothing: there is no link."""


async def test_status_shows_what_the_source_says_of_how_far_it_is(
    settings: Settings, make: Make
) -> None:
    agent = make(Caller())
    agent._tell = say_nothing
    await agent._on_progress(messages.Progress(doing="it is not open yet"))
    await agent._on_hello(msgspec.structs.replace(HELLO, newest=messages.NEWEST))
    await agent._on_open(OPEN)
    name = OPEN.domain.name
    assert shown(settings) == f"a migrates {name} to this host"
    await agent._on_progress(messages.Progress(doing="copying memory, 41 %\x1b[2J"))
    assert shown(settings) == f"a migrates {name} to this host: copying memory, 41 %\\x1b[2J"
    agent._resumed(messages.Resumed(heard=1, decided=2, runs=3))
    assert shown(settings) == "runs it; waits for a to let go of it"
    await agent._side.take(Input.ABORT)
    await agent._on_progress(messages.Progress(doing="copying what nobody wants any more"))
    assert "nobody wants" not in shown(settings)
    await agent._held.aclose()


async def test_of_an_older_source_status_says_where_to_look(settings: Settings, make: Make) -> None:
    agent = make(Caller())
    await agent._on_hello(HELLO)
    await agent._on_open(OPEN)
    assert shown(settings).endswith("`entourage status` on a shows how far it is")
    await agent._held.aclose()


async def test_where_there_is_no_room_for_a_lock(settings: Settings, make: Make) -> None:
    Path(settings.paths.run).mkdir()
    Path(settings.paths.run, "links").write_text("a file")
    agent = make(Caller())
    await agent._on_hello(HELLO)
    with pytest.raises(UsageError, match="links: file exists"):
        await agent._on_open(OPEN)
    await agent._held.aclose()


@pytest.mark.parametrize("opens", [False, True])
async def test_a_link_on_which_nothing_is_asked_ends_unless_a_migration_is_open(
    settings: Settings,
    hypervisor: Hypervisor,
    journal: Journal,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    opens: bool,
) -> None:
    monkeypatch.setattr(module, "_IDLES_FOR", 0.01)
    ours, theirs = socket.socketpair()
    link = Link(*await asyncio.open_connection(sock=ours), peer="a", silence=60)
    agent: Any = Agent(link, settings, journal, Caller())
    await agent._on_hello(HELLO)
    if opens:
        await agent._on_open(OPEN)
    running = asyncio.create_task(agent.run())
    with theirs:
        if opens:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(running), 0.1)
            assert not running.done()
            agent.end()
        await asyncio.wait_for(running, 20)
    assert ("nothing was asked" in caplog.text) is not opens


async def test_nothing_is_opened_once_the_link_has_ended(
    settings: Settings, hypervisor: Hypervisor, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last that a source has said arrives when it has long given up: late, after a silence."""
    ours, theirs = socket.socketpair()
    link = Link(*await asyncio.open_connection(sock=ours), peer="a", silence=60)

    settle, settling = link.settle, asyncio.Event()

    async def look(_domain: Domain, _host: str, _facts: Any) -> list[Refusal]:
        await settling.wait()
        return []

    async def wait_for_calls() -> None:
        """The agent knows that the link is lost, and waits for what it was asked before."""
        settling.set()
        await settle()

    monkeypatch.setattr(link, "settle", wait_for_calls)
    monkeypatch.setattr(hypervisor, "test_incoming", look)
    agent: Any = Agent(link, settings, journal, Caller())
    await agent._on_hello(HELLO)
    call = msgspec.msgpack.encode(Call(1, messages.OPEN.name, SAID["open"]))
    with theirs:
        theirs.sendall(len(call).to_bytes(4, "big") + call)
    await asyncio.wait_for(agent.run(), 20)
    assert journal.decisions() == []


async def test_a_device_that_hangs_in_test_does_not_keep_the_agent(
    settings: Settings, hypervisor: Hypervisor, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source gives up on it, and hangs up: nobody waits for its answer any more."""
    ours, theirs = socket.socketpair()
    link = Link(*await asyncio.open_connection(sock=ours), peer="a", silence=60)
    agent: Any = Agent(link, settings, journal, Caller())
    await agent._on_hello(HELLO)
    await agent._on_test(msgspec.convert(SAID["test"], messages.TestDomain))
    asked = asyncio.Event()

    async def hangs(_there: object, _request: object) -> list[Refusal]:
        asked.set()
        return await asyncio.get_running_loop().create_future()

    label, controller = next(iter(agent._controllers.items()))
    monkeypatch.setattr(controller, "test_there", hangs)
    ask = messages.AskDevice(device=label, half="test", request=None)
    call = msgspec.msgpack.encode(Call(1, messages.DEVICE.name, ask))
    running = asyncio.create_task(agent.run())
    with theirs:
        theirs.sendall(len(call).to_bytes(4, "big") + call)
        await asyncio.wait_for(asked.wait(), 20)
    await asyncio.wait_for(running, 20)


# What is asked before anything is made


async def test_what_another_hypervisor_knows_is_refused_and_not_opened(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only at TEST, which a stranger leaves out."""

    async def known(_settings: Settings, domain: Domain, name: str, host: str) -> list[Refusal]:
        return [Refusal("domain", host, f"{domain.name} is here, not of {name}", "delete it")]

    monkeypatch.setattr(checks, "known_to_others", known)
    agent = make(Caller())
    await agent._on_hello(HELLO)
    [told] = await agent._on_test(msgspec.convert(SAID["test"], messages.TestDomain))
    said = f"{OPEN.domain.name} is here, not of qemu:///system"
    assert told.reason == said
    with pytest.raises(Refused, match=said):
        await agent._on_open(OPEN)
    assert agent._side is None
    await agent._held.aclose()


async def test_a_configuration_that_comes_with_the_memory_is_asked_of_these_settings(
    make: Make, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is built, what will be asked of is given to whoever builds."""
    given: list[PartsCheck] = []
    built: list[int] = []

    async def build(_domain: Domain, _plane: Any, _plan: Any) -> None:
        built.append(len(given))

    monkeypatch.setattr(hypervisor.made, "check_with", given.append)
    monkeypatch.setattr(hypervisor.made, "build", build)
    agent = make(Caller())
    await agent._on_hello(HELLO)
    await agent._on_open(OPEN)
    await agent._on_build(Plan(msgspec.msgpack.encode(SAID["build"])))
    assert built == [1]
    with pytest.raises(Refused, match="pygrub is not among the devices"):
        await given[0]([HostPart(kind=Kind.PROGRAM, name="pygrub", place="b_info")])
    for task in agent._watch:
        task.cancel()
    await agent._held.aclose()


async def test_several_domains_are_tested_over_one_link(settings: Settings, make: Make) -> None:
    agent = make(Caller())
    first = msgspec.structs.replace(HELLO, newest=messages.NEWEST)
    second = msgspec.structs.replace(first, migration="m-2")
    test = messages.TestDomain(domain=OPEN.domain, facts={})
    await agent._on_hello(first)
    await agent._on_test(test)
    assert agent._there is not None
    await agent._on_hello(second)
    with pytest.raises(UsageError, match="after the domain"):  # nothing of the first is left
        await agent._on_way(messages.Way(ports=(1, 2), address="", connections=1, token=b""))
    await agent._on_test(test)
    assert agent._there.migration == "m-2"
    await agent._on_open(OPEN)
    with pytest.raises(UsageError, match="one link is about one migration"):
        await agent._on_hello(first)
    await agent._held.aclose()


async def test_an_older_source_has_one_domain_a_link(make: Make) -> None:
    agent = make(Caller())
    before = messages.TESTS_SEVERAL - 1
    await agent._on_hello(msgspec.structs.replace(HELLO, newest=before))
    with pytest.raises(UsageError, match="one link is about one migration"):
        await agent._on_hello(msgspec.structs.replace(HELLO, newest=before, migration="m-2"))
    await agent._held.aclose()
