"""``entourage room`` counts the host's own devices: a domain's, one's that arrives, free ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entourage.cli import room
from entourage.domain import Domain, Pci
from entourage.hypervisors.values import Definition, DomainState
from entourage.journal.journal import Journal
from entourage.journal.lock import domain_lock
from entourage.offline.claims import Claim, Claims
from entourage.offline.values import Offer
from entourage.settings.model import PathSettings, Settings
from tests.unit.hosts.test_owndevices import NIC, OTHER_NIC, Sys, here
from tests.unit.target.test_room import arrival

__all__ = ["here"]
UUID, COMING = "a241103c-2c3e-4756-88b0-63e73f621ee2", "b241103c-2c3e-4756-88b0-63e73f621ee2"


def test_devices_of_domains_of_those_that_arrive_and_free_ones(
    tmp_path: Path, here: Sys, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, place in enumerate((NIC, OTHER_NIC, "0000:5e:00.1")):
        here.pci(place, "8086:1572", driver="vfio-pci", group=str(number))
    web1 = Domain(name="web1", uuid=UUID, memory=1 << 30, pci=(Pci(id="nic", host=NIC),))
    app = Domain(
        name="app",
        uuid=COMING,
        memory=1 << 30,
        pci=(Pci(id="nic", host="0000:01:00.0", plug=OTHER_NIC),),
    )

    async def all_domains(_: Settings) -> list[DomainState]:
        return [DomainState(name="web1", uuid=UUID, state="running", memory=1 << 30)]

    async def find_domain(_: Settings, name: str) -> tuple[None, Domain]:
        assert name == "web1"
        return None, web1

    monkeypatch.setattr(room, "all_domains", all_domains)
    monkeypatch.setattr(room, "find_domain", find_domain)
    paths = PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run"))
    with Journal.open(tmp_path / "state" / "journal.db") as book:
        book.begin(arrival(app))
    with domain_lock(tmp_path / "run", COMING, "it arrives"):
        room.room(Settings(paths=paths), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["devices"]["pci:8086:1572"] == 1
    assert told["arriving"] == ["app"]
    assert told["domains"][0]["devices"] == {"pci:8086:1572": 1}


def test_what_offline_moves_are_about_to_give_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A controller that finds the domain on neither host knows by it that the move goes on."""

    async def all_domains(_: Settings) -> list[DomainState]:
        # It is defined while this host is asked: it is in one of the two.
        Claims(str(tmp_path)).remove(UUID)
        return []

    monkeypatch.setattr(room, "all_domains", all_domains)
    web1 = Domain(name="web1", uuid=UUID.upper(), memory=1 << 30)
    offer = Offer(
        migration="m1",
        source="a",
        journal="of-a",
        generation=1,
        hypervisor="qemu",
        definition=Definition(domain=web1),
    )
    Claims(str(tmp_path)).write(Claim(offer=offer, seen=0))
    room.room(Settings(paths=PathSettings(state=str(tmp_path))), as_json=True)
    assert json.loads(capsys.readouterr().out)["claimed"] == [UUID]
