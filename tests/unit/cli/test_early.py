"""The agent of a save or a restore is started before it is known what it is to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from entourage.__main__ import main
from entourage.checkpoint import requests
from entourage.cli import migrate
from entourage.cli.early import for_restore, for_save
from entourage.clock import Clock
from entourage.hosts.link import Link
from entourage.hosts.proxy_agent import THIS_HOST
from entourage.hypervisors import agents
from entourage.hypervisors.agents import EarlyAgent
from entourage.settings.load import load_settings
from entourage.settings.model import Settings
from entourage.source.greeting import greet, hello_of
from entourage.target import serve
from entourage.target.caller import Caller
from tests.unit.cli.test_migrate import FakeMigration
from tests.unit.report.test_samples import success


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """This host's, with its journal elsewhere."""
    for variable, where in (("ENTOURAGE_STATE_DIR", "state"), ("ENTOURAGE_RUN_DIR", "run")):
        monkeypatch.setenv(variable, str(tmp_path / where))
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    return load_settings(None)


def agents_here() -> set[int]:
    """The agents that this process has started."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if _is_child(process) and b"\0agent\0" in _words(process):
                found.add(int(process.name))
    return found


def _is_child(process: Path) -> bool:
    """Whether it runs and this process has started it."""
    state, parent = (process / "stat").read_text().rsplit(")", 1)[1].split()[:2]
    return state != "Z" and int(parent) == os.getpid()


def _words(process: Path) -> bytes:
    """Its command line. A child may still be amid ``execve`` when it counts as started.

    ``vfork`` returns once the old memory is gone, a moment before the kernel knows the new words.
    """
    while not (words := (process / "cmdline").read_bytes()) and _is_child(process):
        os.sched_yield()
    return words


async def welcome_of(link: Link, hypervisor: str) -> str:
    """What an agent calls its journal."""
    return (await greet(link, Clock(), hello_of("0" * 32, "a", hypervisor))).journal


@pytest.mark.parametrize("saves", [True, False])
async def test_it_is_the_one_that_is_asked(
    settings: Settings, tmp_path: Path, *, saves: bool
) -> None:
    """By the name that is known then; it ends with the link."""
    host = str(tmp_path / "saved") if saves else THIS_HOST
    hypervisor = f"save:{host}" if saves else "qemu"
    async with for_save(None, "saved") if saves else for_restore(None) as early:
        started = agents_here()
        assert len(started) == 1
        async with early.link(host, hypervisor, settings) as link:
            assert link.peer == host
            assert await welcome_of(link, hypervisor)
            assert agents_here() == started
        assert agents_here() == set()
        async with early.link(host, hypervisor, settings) as link:  # as after a link was lost
            assert await welcome_of(link, hypervisor)
            assert agents_here() != started


async def test_one_that_has_ended_meanwhile_is_started_again(settings: Settings) -> None:
    """As after a suspend: an agent that hears nothing of its source ends."""
    async with for_restore(None) as early:
        [agent] = agents_here()
        os.kill(agent, signal.SIGKILL)
        link = early._link  # pyright: ignore[reportPrivateUsage]
        assert link is not None
        await link.lost()
        async with early.link(THIS_HOST, "qemu", settings) as link:
            assert await welcome_of(link, "qemu")


async def test_where_it_was_not_needed_it_ends(settings: Settings) -> None:
    """As where what was typed is wrong."""
    assert settings.paths.run
    async with for_restore(None):
        assert len(agents_here()) == 1
    assert agents_here() == set()


async def test_one_on_another_host_is_started_by_ssh(settings: Settings) -> None:
    """Once it is known that it is needed: ssh may ask for a password."""
    assert settings.paths.run
    async with for_save(None, "b:/backup/web1"):
        assert agents_here() == set()


async def test_settings_that_are_wrong_are_told_by_who_needs_it(
    settings: Settings, tmp_path: Path
) -> None:
    """Here they are only read for where an agent's journal is."""
    wrong = tmp_path / "entourage.toml"
    wrong.write_text("[migration]\ntlss = true\n")
    async with for_restore(wrong) as early:
        assert agents_here() == set()
        async with early.link(THIS_HOST, "qemu", settings) as link:
            assert await welcome_of(link, "qemu")


@pytest.mark.parametrize("command", ["save", "restore"])
def test_the_commands_ask_the_one_that_they_have_started(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It is there before their request is made, and what opens their session has it."""
    assert settings.paths.run
    seen: list[set[int]] = []

    class Asked:
        live = False

    async def request(*_: Any, **__: Any) -> Any:
        seen.append(agents_here())
        return Asked()

    async def play(migration: FakeMigration) -> Any:
        opening = cast("partial[Any]", migration.opening)
        link_to = opening.keywords["reach"].keywords["link_to"]
        async with link_to(THIS_HOST, "qemu", settings) as link:
            await welcome_of(link, "qemu")
            seen.append(agents_here())
        return success()[-1]

    class Engine(FakeMigration):
        requests: list[Any] = []  # noqa: RUF012 - of this test only

    Engine.play = play
    monkeypatch.setattr(migrate, "Migration", Engine)
    monkeypatch.setattr(requests, f"{command}_request", request)
    assert main([command, *(["web1"] if command == "save" else []), "/srv/saved"]) == 0
    assert len(seen[0]) == 1
    assert seen[1] == seen[0]
    assert agents_here() == set()


@pytest.mark.parametrize(
    ("caller", "reads"),
    [
        (Caller(local=True), True),
        (Caller(local=True, proxy=True), False),  # a save is taken by no hypervisor of this host
        (Caller(), False),
    ],
)
async def test_an_agent_that_restores_reads_ahead(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caller: Caller, *, reads: bool
) -> None:
    """While who has started it finds out what to ask."""
    read: list[Settings] = []

    class Quiet:
        def __init__(self, *_: Any) -> None:
            """An agent that is asked nothing."""

        def end(self) -> None:
            """It ends by itself."""

        async def run(self) -> None:
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def link(_settings: Settings) -> AsyncGenerator[None]:
        yield

    monkeypatch.setattr(serve, "agents_link", link)
    monkeypatch.setattr(serve, "Agent", Quiet)
    monkeypatch.setattr(serve, "read_ahead", read.append)
    await serve.serve(settings, caller)
    assert len(read) == reads


async def test_nothing_started_is_as_without(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes a link is asked for one."""
    asked: list[str] = []

    def agent_link(host: str, hypervisor: str, _settings: Settings) -> EarlyAgent:
        asked.append(f"{host} {hypervisor}")
        return EarlyAgent(None)

    monkeypatch.setattr(agents, "agent_link", agent_link)
    async with EarlyAgent(None) as early, early.link("b", "qemu", settings):
        assert asked == ["b qemu"]
