"""What a source asks of a target to prove the way, and what it believes; the target is a fake."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entourage import messages
from entourage.domain import Domain
from entourage.errors import EntourageError, LinkLost
from entourage.hosts.dataway import Awaited
from entourage.hypervisors.seams import MachineSeams
from entourage.settings.model import MigrationSettings, Settings, SshSettings
from entourage.source.plan import MovePlan
from entourage.steps import Planned

HERE = "127.0.0.1"
RANGE = (43000, 43999)
COPIED = ("block/disk0", Planned(action="copied", here="/a", there="/a", size=1))


class Link:
    """A target that listens really, or answers what it is told to."""

    def __init__(self, answer: Any = None) -> None:
        self.asked: list[messages.Way] = []
        self.awaited: Awaited | None = None
        self._answer = answer

    async def call(self, kind: Any, way: messages.Way) -> messages.WayAwaited:
        assert kind is messages.WAY
        self.asked.append(way)
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer is not None:
            return self._answer
        self.awaited = await Awaited.open(way.address, way.ports, way.connections, way.token)
        return messages.WayAwaited(ports=self.awaited.ports, range=way.ports)


class Machine(MachineSeams):
    """A machine that is asked what it is, and which knows what a target needs for encryption."""

    domain = Domain(name="web1", memory=1 << 30)

    @property
    def definition(self) -> Planned:
        return Planned(action="handed-on", here="/d", erased="/d")

    def encrypts(self, offers: Mapping[str, str] | None, *, wanted: bool) -> bool | None:
        return None if offers is None else wanted and bool(offers.get("tls"))


def plan(link: Link, *devices: Any, protocol: int = 4, address: str | None = HERE) -> MovePlan:
    session = SimpleNamespace(
        kind="move",
        link=link,
        source="a",
        target="b",
        is_agentless=False,
        welcome=SimpleNamespace(address="", protocol=protocol),
        machine=Machine(),
        settings=Settings(
            migration=MigrationSettings(ports=RANGE, data_address=address),
            ssh=SshSettings(options=("-F", "/dev/null")),
        ),
        address="",
    )
    return MovePlan(session=cast("Any", session), devices=list(devices))


@pytest.mark.parametrize(("devices", "connections"), [((), 1), ((COPIED,), 2)])
async def test_as_many_ports_are_proven_as_will_be_needed(devices: Any, connections: int) -> None:
    link = Link()
    made = plan(link, *devices)
    assert await made.prove_way() == []
    assert link.awaited is not None
    await link.awaited.close()
    assert [way.connections for way in link.asked] == [connections]
    event = made.event(0.5)
    assert (event.address, event.ports) == (HERE, RANGE)
    assert [one.device for one in event.devices][-2:] == ["definition", "memory"]


@pytest.mark.parametrize(
    "answer",
    [
        messages.WayAwaited(ports=(), range=RANGE),
        messages.WayAwaited(ports=(43000, 43001), range=RANGE),
        messages.WayAwaited(ports=(22,), range=RANGE),
        messages.WayAwaited(ports=(22,), range=(1, 65535)),
        messages.WayAwaited(ports=(5432,), range=(70000, 1)),
    ],
)
async def test_a_target_that_names_other_ports_is_not_followed(answer: Any) -> None:
    [refusal] = await plan(Link(answer)).prove_way()
    assert "was asked for 1 of 43000 to 43999" in refusal.reason
    assert "look at that host" in refusal.remedy


async def test_a_range_of_the_hypervisors_own_is_used_and_named() -> None:
    there = await Awaited.open(HERE, (44000, 44999), 1, bytes(32))
    await there.close()
    [refusal] = await plan(
        Link(messages.WayAwaited(ports=there.ports, range=(44000, 44999)))
    ).prove_way()
    assert f"no connection to {HERE}:{there.ports[0]}: connection refused" in refusal.reason
    assert "let a reach TCP ports 44000 to 44999 of b" in refusal.remedy
    assert "qemu.conf" in refusal.remedy


async def test_what_needs_no_ports_needs_no_address() -> None:
    link = Link(messages.WayAwaited())
    assert await plan(link, address="no-such-name.invalid").prove_way() == []
    assert plan(link).event(0).ports == ()


@pytest.mark.parametrize(
    ("offers", "encrypted"), [(None, None), ({}, False), ({"tls": ""}, False), ({"tls": "b"}, True)]
)
async def test_what_is_encrypted_is_what_the_target_can(offers: Any, encrypted: object) -> None:
    link = Link(messages.WayAwaited(offers=offers))
    made = plan(link)
    assert await made.prove_way() == []
    assert made.event(0).encrypted is encrypted
    elsewhere = plan(link, address="no-such-name.invalid")
    assert await elsewhere.prove_way() == []
    assert elsewhere.event(0).encrypted is encrypted


async def test_an_older_target_is_not_asked() -> None:
    link = Link()
    made = plan(link, protocol=3)
    assert await made.prove_way() == []
    assert made.session.address == HERE
    made = plan(link, protocol=3, address=None)  # b is an alias, and it may be a Xen host
    assert await made.prove_way() == []
    assert made.session.address == "b"
    assert link.asked == []


@pytest.mark.parametrize("address", [HERE, "no-such-name.invalid"])
async def test_ports_that_the_target_does_not_allow_are_a_refusal(address: str) -> None:
    """One beside all others, and no error that hides them."""
    no = EntourageError("the ports are not allowed here", host="b", remedy="set agent.ports there")
    [refusal] = await plan(Link(no), address=address).prove_way()
    assert refusal.host == "b"
    if address == HERE:
        assert (refusal.reason, refusal.remedy) == (no.message, no.remedy)


async def test_a_lost_link_is_no_refusal() -> None:
    with pytest.raises(LinkLost):
        await plan(Link(LinkLost("gone"))).prove_way()
