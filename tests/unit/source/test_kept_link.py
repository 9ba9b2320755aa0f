"""One link for several TESTs: who is greeted over which, and when another one is opened."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entourage import messages
from entourage.clock import Clock
from entourage.hosts.link import Link
from entourage.hosts.route import Route
from entourage.settings.model import Settings
from entourage.source import kept_link as module
from entourage.source import opening
from entourage.source.greeting import hello_of
from entourage.source.kept_link import KeptLink

B, C = Route(host="b"), Route(host="c")


class Agents:
    """Agents of a protocol, and what is said to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
        self.protocol = protocol
        self.links: list[Any] = []
        self.ended: list[Any] = []
        self.greeted: list[tuple[Any, str]] = []
        monkeypatch.setattr(opening, "agent_link", self.link)
        for each in (opening, module):
            monkeypatch.setattr(each, "greet", self.greet)

    @contextlib.asynccontextmanager
    async def link(self, host: str, *_: object) -> AsyncGenerator[Link]:
        made = SimpleNamespace(host=host, alive=True)
        self.links.append(made)
        yield cast("Link", made)
        self.ended.append(made)

    async def greet(self, link: Any, _: Clock, hello: messages.Hello) -> messages.Welcome:
        self.greeted.append((link, hello.migration))
        return messages.Welcome(
            version="1", protocol=self.protocol, host="b", journal="j", address="", clock=1
        )


async def reach(kept: KeptLink, route: Route, migration: str, there: str = "qemu") -> Any:
    hello = hello_of(migration, "a", there)
    async with kept._reach(route, there, hello, Settings(), Clock()) as found:  # pyright: ignore[reportPrivateUsage]
        return found.link


async def test_all_go_over_one_link(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = Agents(monkeypatch, messages.TESTS_SEVERAL)
    async with KeptLink() as kept:
        first = await reach(kept, B, "m1")
        assert await reach(kept, B, "m2") is first
        assert agents.greeted == [(first, "m1"), (first, "m2")]
        assert await reach(kept, C, "m3") is not first
        assert not agents.ended
    assert agents.ended == agents.links[::-1]


async def test_a_domain_of_another_hypervisor_has_a_link_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agents = Agents(monkeypatch, messages.TESTS_SEVERAL)
    async with KeptLink() as kept:
        first = await reach(kept, B, "m1", "qemu")
        assert await reach(kept, B, "m2", "qemu:///system") is not first
    assert len(agents.links) == 2


async def test_one_that_was_lost_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Agents(monkeypatch, messages.TESTS_SEVERAL)
    async with KeptLink() as kept:
        first = await reach(kept, B, "m1")
        first.alive = False
        second = await reach(kept, B, "m2")
        assert second is not first
        assert await reach(kept, B, "m3") is second


async def test_an_older_agent_is_about_one_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = Agents(monkeypatch, messages.TESTS_SEVERAL - 1)
    async with KeptLink() as kept:
        first = await reach(kept, B, "m1")
        assert agents.ended == [first]
        assert await reach(kept, B, "m2") is not first
