"""An Entourage one version older is talked to, on either side.

``data/protocol-2-source.bin`` and ``…-agent.bin`` are what both ends of a link said in a whole
migration of a domain with a NIC and a TPM, of which each was made by code of protocol 2; heartbeats
are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from entourage import messages
from entourage.clock import Clock
from entourage.devices.base import Controller, There
from entourage.domain import Domain
from entourage.errors import PeerVersionError, UsageError
from entourage.hosts.frames import Answer, Call, Fault, Frame, Question, Tell
from entourage.hosts.link import Link
from entourage.hosts.parts import HostPart
from entourage.hypervisors.base import Plan, Ticket, TpmFacts
from entourage.hypervisors.seams import IncomingSeams
from entourage.journal.journal import Journal
from entourage.settings.model import PathSettings, Settings
from entourage.source.greeting import greet
from entourage.steps import Refusal
from entourage.target import agent as agent_module
from entourage.target.agent import Agent
from entourage.target.caller import Caller
from entourage.version import __version__

DATA = Path(__file__).with_name("data")
FACTS = TpmFacts(program="swtpm", version=(0, 7, 1), capabilities=frozenset({"tpm-2.0"}))
GO = Tell("handover", {"verb": "go", "migration": "m-1"})
LANDED = Tell("handover", {"verb": "landed", "migration": "m-1"})
WITHIN = 20.0


def frames(who: str) -> list[Any]:
    """What an end has said, frame by frame."""
    data, found = (DATA / f"protocol-2-{who}.bin").read_bytes(), list[Frame]()
    while data:
        length = int.from_bytes(data[:4], "big")
        found.append(msgspec.msgpack.decode(data[4 : 4 + length], type=Frame))
        data = data[4 + length :]
    return found


def plain(body: Any) -> Any:
    """A body as the other end sees it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(body))


def assert_understood(said: Any, of_old: Any, where: str) -> None:
    """Check that an old end finds in ``said`` all that it looks for, in the form that it had."""
    assert isinstance(said, of_old.__class__), where
    if isinstance(of_old, dict):
        old, new = cast("dict[str, Any]", of_old), cast("dict[str, Any]", said)
        if where.endswith(".boot"):  # whose fields have had the default None from the beginning
            old = {key: value for key, value in old.items() if value is not None}
        assert set(old) <= set(new), where
        for key in old:
            assert_understood(new[key], old[key], f"{where}.{key}")


class Incoming(IncomingSeams):
    """A fake: a machine that is built at once, and runs."""

    def __init__(self) -> None:
        self.plan: Any = None
        self.cookie = b""

    @property
    def tpm(self) -> Incoming:
        return self

    async def facts(self) -> TpmFacts:
        return FACTS

    async def sync(self, tpm: Any) -> None:
        pass

    async def offers(self) -> dict[str, str]:
        return {"tls": "b.example"}

    async def build(self, domain: Domain, plane: Any, plan: Plan) -> None:
        self.plan = msgspec.msgpack.decode(plan)

    async def listen(self) -> Ticket:
        return Ticket(uri="tcp:10.0.0.2:49152", cookie=b"c\0")

    async def landed(self) -> None:
        pass

    async def died(self) -> str:
        return await asyncio.get_running_loop().create_future()

    async def parts_of_cookie(self, cookie: bytes) -> list[HostPart]:
        for _ in range(10):  # what GO must wait for
            await asyncio.sleep(0)
        return []

    def accept_cookie(self, cookie: bytes) -> None:
        self.cookie = cookie

    async def run(self, *, paused: bool) -> int:
        assert self.cookie
        return 77

    async def finish_arrival(self) -> None:
        pass

    async def persist_definition(self) -> None:
        pass

    async def kill(self) -> None:
        pass


class Hypervisor:
    """A fake."""

    name = "qemu:///system"

    def __init__(self) -> None:
        self.made = Incoming()

    def incoming(self, _domain: Domain, _ledger: Any) -> Incoming:
        return self.made

    async def test_incoming(self, domain: Domain, host: str, facts: Any) -> list[Refusal]:
        await asyncio.sleep(0)  # a real one asks its host, and others are heard meanwhile
        return []

    async def host_parts(self, facts: Any) -> list[HostPart]:
        return []


class Old:
    """An end of a link that says what was recorded, and shows what it hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def say(self, frame: Frame) -> None:
        data = msgspec.msgpack.encode(frame)
        self._writer.write(len(data).to_bytes(4, "big") + data)

    async def hear(self) -> Any:
        """Return the next frame that is no heartbeat."""
        while True:
            length = int.from_bytes(await self._reader.readexactly(4), "big")
            frame = msgspec.msgpack.decode(await self._reader.readexactly(length), type=Frame)
            if isinstance(frame, Answer | Fault | Tell | Call):
                return frame

    def close(self) -> None:
        self._writer.close()


@contextlib.asynccontextmanager
async def ends() -> AsyncGenerator[tuple[Old, Link]]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    old = Old(*await asyncio.open_connection(sock=theirs))
    link = Link(reader, writer, peer="the other", silence=WITHIN)
    async with asyncio.timeout(WITHIN):
        yield old, link
    old.close()
    link.close()


async def test_a_source_of_protocol_2_moves_a_domain_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypervisor = Hypervisor()

    def opened(_settings: Settings, _name: str) -> Hypervisor:
        return hypervisor

    came_from: set[str] = set()

    async def finish_arrival(_self: Any, there: There) -> None:
        came_from.add(there.source)

    monkeypatch.setattr(Controller, "finish_arrival", finish_arrival)
    monkeypatch.setattr(agent_module, "open_hypervisor", opened)
    paths = {name: str(tmp_path / name) for name in ("state", "run", "log")}
    settings = Settings(paths=PathSettings(**paths))
    answers = {one.number: one.body for one in frames("agent") if isinstance(one, Answer)}
    tells = [one for one in frames("agent") if isinstance(one, Tell)]
    heard: list[Tell] = []
    with Journal.open(tmp_path / "journal.db") as journal:
        async with ends() as (old, link):
            running = asyncio.create_task(Agent(link, settings, journal, Caller()).run())
            for frame in frames("source"):
                while frame == GO and not any(one == LANDED for one in heard):
                    heard.append(await old.hear())
                old.say(frame)
                while isinstance(frame, Call):
                    answer = await old.hear()
                    if isinstance(answer, Tell):
                        heard.append(answer)
                        continue
                    assert isinstance(answer, Answer), answer
                    assert_understood(answer.body, answers[frame.number], frame.verb)
                    break
                while frame == GO and len(heard) < len(tells):
                    heard.append(await old.hear())
            old.close()
            await running
        assert [one.record.value for one in journal.decisions()] == ["owns"]
    for said, of_old in zip(heard, tells, strict=True):
        assert said.verb == of_old.verb
        assert_understood(said.body, of_old.body, said.verb)
    assert hypervisor.made.plan["cookie"] == b"b\0"
    assert hypervisor.made.cookie == b"last\0"
    assert came_from == {"a"}


async def test_the_agent_of_protocol_2_is_asked_in_its_words() -> None:
    """What this source says has all that it looks for, and its answers are understood."""
    asked = {one.verb: one for one in frames("source") if isinstance(one, Call | Tell)}
    numbers = {one.number: one.verb for one in frames("source") if isinstance(one, Call)}
    answers = {numbers[one.number]: one for one in frames("agent") if isinstance(one, Answer)}
    hello = messages.Hello(
        version=__version__,
        protocol=messages.OLDEST,
        newest=messages.NEWEST,
        migration="m-1",
        source="a",
        hypervisor="qemu:///system",
    )
    async with ends() as (old, link):
        serving = asyncio.create_task(link.serve())

        async def agent() -> None:
            while True:
                frame = await old.hear()
                assert_understood(frame.body, asked[frame.verb].body, frame.verb)
                # It compares for equality, and knows of no range.
                assert frame.verb != messages.HELLO.name or frame.body["protocol"] == 2
                old.say(Answer(frame.number, answers[frame.verb].body))

        answering = asyncio.create_task(agent())
        welcome = await greet(link, Clock(), hello)
        assert (welcome.protocol, welcome.host) == (2, "b")
        for kind in (messages.TEST, messages.OPEN, messages.DEVICE):
            body: Any = msgspec.convert(asked[kind.name].body, kind.request)
            await link.call(cast("Question[Any, Any]", kind), body)
        plan = Plan(msgspec.msgpack.encode(asked[messages.BUILD.name].body))
        await link.call(messages.BUILD, plan)
        for kind in (messages.LISTEN, messages.BYE, messages.ABORT):
            await link.call(cast("Question[None, Any]", kind), None)
        assert not answering.done()
        answering.cancel()
        serving.cancel()


@pytest.mark.parametrize(
    ("oldest", "newest", "agreed"),
    [
        (2, 0, 2),  # knows of no range
        (2, 3, 3),
        (2, 4, 4),
        (2, 2, 2),
        (3, 3, 3),
        (4, 9, 5),
        (1, 0, None),
        (6, 9, None),
    ],
)
def test_ranges_meet_or_do_not(oldest: int, newest: int, agreed: int | None) -> None:
    hello = messages.Hello(
        version="9", protocol=oldest, newest=newest, migration="m", source="a", hypervisor="qemu"
    )
    assert hello.agreed == agreed


async def test_two_opens_at_once_open_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked at for a while; the second must not undo what the first has begun."""

    def opened(_settings: Settings, _name: str) -> Hypervisor:
        return Hypervisor()

    def on(_verb: str, _handler: Any) -> None:
        """Nothing: it is not called by the link."""

    monkeypatch.setattr(agent_module, "open_hypervisor", opened)
    paths = {name: str(tmp_path / name) for name in ("state", "run", "log")}
    settings = Settings(paths=PathSettings(**paths))
    openings = [frame.body for frame in frames("source") if frame.verb == "open"] * 2
    openings[1] = openings[1] | {
        "domain": openings[1]["domain"]
        | {"name": "web2", "uuid": "5b6e6d0e-0000-4000-8000-00000000000f"}
    }
    [hello] = {
        msgspec.msgpack.encode(frame.body) for frame in frames("source") if frame.verb == "hello"
    }
    with Journal.open(tmp_path / "journal.db") as journal:
        link: Any = SimpleNamespace(on=on)
        agent = cast("Any", Agent(link, settings, journal, Caller()))
        await agent._on_hello(msgspec.msgpack.decode(hello, type=messages.Hello))
        done = await asyncio.gather(
            *(agent._on_open(msgspec.convert(one, messages.Open)) for one in openings),
            return_exceptions=True,
        )
        assert [type(one).__name__ for one in done] == ["Opened", "UsageError"]
        assert [(one.name, one.record.value) for one in journal.decisions()] == [
            (openings[0]["domain"]["name"], "open")
        ]
        await agent._held.aclose()


async def test_what_is_given_up_while_it_is_looked_at_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would undo it: what gives it up has been and gone."""

    def opened(_settings: Settings, _name: str) -> Hypervisor:
        return Hypervisor()

    def on(_verb: str, _handler: Any) -> None:
        """Nothing: it is not called by the link."""

    monkeypatch.setattr(agent_module, "open_hypervisor", opened)
    paths = {name: str(tmp_path / name) for name in ("state", "run", "log")}
    [opening] = [frame.body for frame in frames("source") if frame.verb == "open"]
    hello = next(frame.body for frame in frames("source") if frame.verb == "hello")
    with Journal.open(tmp_path / "journal.db") as journal:
        link: Any = SimpleNamespace(on=on)
        agent = cast("Any", Agent(link, Settings(paths=PathSettings(**paths)), journal, Caller()))
        await agent._on_hello(msgspec.convert(hello, messages.Hello))
        asked = asyncio.create_task(agent._on_open(msgspec.convert(opening, messages.Open)))
        await asyncio.sleep(0)
        assert await agent._on_abort(None) == []
        with pytest.raises(UsageError, match="called off"):
            await asked
        assert journal.decisions() == []
        await agent._held.aclose()


async def test_ranges_that_do_not_meet_are_refused_by_name(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.db") as journal:

        def on(verb: str, handler: Any) -> None:
            """Nothing: it is not called by the link."""

        link: Any = SimpleNamespace(on=on)
        agent = cast("Any", Agent(link, Settings(), journal, Caller()))
        hello = messages.Hello(
            version="9.0", protocol=7, newest=9, migration="m", source="a", hypervisor="qemu"
        )
        with pytest.raises(PeerVersionError) as refused:
            await agent._on_hello(hello)
    assert "speaks protocols 2 to 5, 9.0 on a speaks protocols 7 to 9" in refused.value.message
    assert refused.value.remedy


async def test_an_agent_that_chooses_what_was_not_offered_is_refused() -> None:
    async with ends() as (old, link):
        serving = asyncio.create_task(link.serve())

        async def agent() -> None:
            while True:
                frame = await old.hear()
                welcome = messages.Welcome(
                    version="9.0", protocol=9, host="b", journal="j", address="", clock=0
                )
                old.say(Answer(frame.number, plain(welcome)))

        answering = asyncio.create_task(agent())
        hello = messages.Hello(
            version="1", protocol=2, newest=3, migration="m", source="a", hypervisor="qemu"
        )
        with pytest.raises(PeerVersionError, match="speaks protocol 9"):
            await greet(link, Clock(), hello)
        answering.cancel()
        serving.cancel()
