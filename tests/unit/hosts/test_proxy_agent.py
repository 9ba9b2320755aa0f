"""Who answers for a target without Entourage: found, started, and asked again after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path
from types import NoneType
from typing import Any

import pytest

from entourage import messages
from entourage.admission import arrival_generation
from entourage.cli.options import destination
from entourage.clock import Clock
from entourage.domain import Domain
from entourage.errors import HypervisorError, LinkLost, NoAgent
from entourage.handover.values import Message, MessageKind, Record, Role
from entourage.hosts.child import linked
from entourage.hosts.frames import Question
from entourage.hosts.proxy_agent import proxy_settings
from entourage.hosts.route import Route
from entourage.hypervisors.agents import agent_link
from entourage.hypervisors.backend import Elsewhere
from entourage.hypervisors.libvirt.connection import installed
from entourage.hypervisors.libvirt.descriptor import USUAL as LIBVIRT_URI
from entourage.hypervisors.libvirt.uri import agentless_name, parse_agentless
from entourage.hypervisors.registry import elsewhere, name_elsewhere, open_hypervisor
from entourage.journal.details import SourceDetails, TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.recovery import recover, status
from entourage.settings.model import PathSettings, Settings
from entourage.source.greeting import greet
from entourage.target.reattach import reattach_target
from entourage.version import __version__

NOBODY = "qemu+unix:///system?socket=/nowhere/there.sock"
UUID = "5b6e6d0e-0000-4000-8000-000000000001"
with_libvirt = pytest.mark.skipif(not installed(), reason="libvirt's Python module is missing")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    places = {name: str(tmp_path / name) for name in ("state", "run", "log")}
    return Settings(paths=PathSettings(**places))


# Where to


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("b", Route(host="b")),
        (
            "qemu+ssh://root@b/system",
            Route(host="root@b", there=LIBVIRT_URI, agentless="qemu+ssh://root@b/system"),
        ),
        ("qemu+unix://b/system", Route(host="b", there=LIBVIRT_URI)),
        (
            "qemu+tls://b/system",
            Route(
                host="b", there=LIBVIRT_URI, agentless="qemu+tls://b/system", by_ssh="if-it-answers"
            ),
        ),
        (NOBODY, Route(host=NOBODY, there=NOBODY, agentless=NOBODY, by_ssh="no")),
    ],
)
def test_a_route(text: str, route: Route) -> None:
    where = destination(text)
    assert where.route == route
    assert ("BatchMode=yes" in where.ssh_options) == (route.by_ssh == "if-it-answers")


def test_what_a_uri_says_of_ssh_reaches_it() -> None:
    where = destination("qemu+ssh://b:2222/system?keyfile=/root/k")
    assert where.ssh_options == ("Port=2222", 'IdentityFile="/root/k"')


def test_the_name_of_a_hypervisor_afar() -> None:
    name = agentless_name("qemu+tls://b/system", "some-uuid/b")
    assert elsewhere(name) == Elsewhere(uri="qemu+tls://b/system", address="b")
    assert name_elsewhere("qemu+tls://b/system") == agentless_name("qemu+tls://b/system")
    assert parse_agentless(name) == ("qemu+tls://b/system", "some-uuid/b")
    assert parse_agentless(agentless_name("qemu+tls://b/system")) == ("qemu+tls://b/system", "")
    assert elsewhere(LIBVIRT_URI) is None
    assert elsewhere("qemu") is None
    assert open_hypervisor(Settings(), name).name == name


# The link


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("echo 'sh: 1: entourage: not found' >&2; exit 127", NoAgent),
        ("exit 255", LinkLost),
        ("echo 'entourage: /run/x: No such file or directory' >&2; exit 1", LinkLost),
    ],
)
async def test_last_words_give_the_error_its_kind(script: str, kind: type[LinkLost]) -> None:
    from entourage.hosts.ssh import _explained  # noqa: PLC0415 # pyright: ignore[reportPrivateUsage]

    async with linked(
        ["sh", "-c", script],
        peer="b",
        silence=10,
        explain=lambda status, said: _explained("b", status, said),
        remedy="",
    ) as link:
        with pytest.raises(LinkLost) as caught:
            await link.call(Question("hello", NoneType, str), None)
    assert type(caught.value) is kind


async def test_a_stand_in_keeps_a_journal_of_its_own(settings: Settings) -> None:
    """It is started, says who it stands in for, and asks nobody before it must."""
    name = agentless_name("qemu+tls://b.example/system")
    hello = messages.Hello(
        version=__version__, protocol=messages.OLDEST, migration="m", source="a", hypervisor=name
    )
    async with agent_link("b.example", name, settings) as link:
        welcome = await greet(link, Clock(), hello)
    kept = Path(proxy_settings(settings).paths.state, "journal.db")
    assert kept.is_relative_to(settings.paths.state)
    with Journal.open(kept) as journal:
        assert welcome.journal == journal.uuid
    assert (welcome.host, welcome.address) == ("b.example", "b.example")
    assert not Path(settings.paths.state, "journal.db").exists()


async def test_a_stand_in_is_not_taken_from_where_its_user_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = tmp_path / "download" / "entourage"
    strange.mkdir(parents=True)
    (strange / "__init__.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(strange.parent)
    await test_a_stand_in_keeps_a_journal_of_its_own(settings)


# Coming back


@pytest.mark.parametrize(
    ("there", "said", "gets"),
    [
        (agentless_name("qemu+tls://b/system"), 1, 4),
        (agentless_name("qemu+tls://b/system"), 4, 4),
        ("qemu", 1, 1),  # refused, then: one of the two journals has forgotten something
    ],
)
def test_who_comes_back_from_afar_is_not_too_old(
    tmp_path: Path, there: str, said: int, gets: int
) -> None:
    departure = Decision(
        migration="m",
        role=Role.SOURCE,
        domain=UUID,
        name="web1",
        generation=3,
        record=Record.ARMED,
        details=SourceDetails(hypervisor_there=there),
    )
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.begin(departure)
        assert arrival_generation(journal, UUID, said) == gets


# After a crash


def begun(record: Record) -> Decision:
    domain = Domain(name="web1", uuid=UUID, memory=1 << 28)
    return Decision(
        migration="m",
        role=Role.TARGET,
        domain=UUID,
        name="web1",
        generation=1,
        record=record,
        peer_host="a",
        peer_journal="S",
        details=TargetDetails(domain=domain, hypervisor=agentless_name(NOBODY, "x/b")),
    )


@pytest.fixture
def kept(settings: Settings) -> Generator[Journal]:
    path = Path(proxy_settings(settings).paths.state, "journal.db")
    with Journal.open(path) as journal:
        journal.begin(begun(Record.OPEN))
        yield journal


@with_libvirt
def test_what_was_never_let_go_need_not_be_looked_at(settings: Settings, kept: Journal) -> None:
    """Its libvirt is out of reach, and yet NEVER can be said: no GO was ever written down."""
    said: list[Message] = []

    async def reattach() -> list[str]:
        async with reattach_target(kept, proxy_settings(settings), "m", send=said.append) as side:
            return side.problems

    problems = asyncio.run(reattach())
    assert said == [Message(MessageKind.NEVER, "m")]
    assert kept.record("m", Role.TARGET) is Record.NEVER
    assert "half-built machine is left" in problems[0]
    decision = kept.decision("m", Role.TARGET)
    assert decision is not None
    assert not decision.settled


@with_libvirt
def test_what_was_let_go_must_be_looked_at(settings: Settings, kept: Journal) -> None:
    assert kept.advance("m", Role.TARGET, expected={Record.OPEN}, new=Record.GO)
    said: list[Message] = []

    async def reattach() -> Any:
        async with reattach_target(kept, proxy_settings(settings), "m", send=said.append):
            pass

    with pytest.raises(HypervisorError):
        asyncio.run(reattach())
    assert said == []
    assert kept.record("m", Role.TARGET) is Record.GO


@with_libvirt
def test_status_and_recover_know_of_what_stand_ins_keep(settings: Settings, kept: Journal) -> None:
    assert kept.advance("m", Role.TARGET, expected={Record.OPEN}, new=Record.NEVER)
    [standing] = asyncio.run(status(settings))
    assert f"kept here for {NOBODY}" in standing.meaning
    assert standing.remedy == "entourage recover web1"
    [done] = asyncio.run(recover(settings))
    assert not done.settled
    assert done.problems


@with_libvirt
def test_who_is_declared_off_is_not_the_source(settings: Settings, kept: Journal) -> None:
    """What a proxy agent knows of GO and RAN is settled by its source's record alone."""
    for record in (Record.GO, Record.RAN):
        standing = kept.record("m", Role.TARGET)
        assert standing is not None
        assert kept.advance("m", Role.TARGET, expected={standing}, new=record)
        assert asyncio.run(recover(settings, "web1", target_is_fenced=True)) == []
        assert kept.record("m", Role.TARGET) is record
