"""After a save that was killed: which guest goes on that full storage has stopped."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.handover.values import Guest, Record, Role
from entourage.hypervisors.saved.descriptor import save_name
from entourage.journal.details import SourceDetails
from entourage.journal.journal import Decision, Journal
from entourage.journal.lock import domain_lock
from entourage.settings.model import PathSettings, Settings
from entourage.source import going_on
from tests.unit.decisions import ARMED

DOMAIN = Domain(name="web1", uuid=ARMED.domain, memory=1 << 28)


class Host:
    """This host's hypervisor, and the one machine that it has."""

    def __init__(self, guest: Guest = Guest.RUNNING) -> None:
        self.guest, self.did = guest, list[str]()
        self.fails: Exception | None = None
        self.hangs = False

    async def reattach_machine(self, domain: Domain) -> Any:
        assert domain == DOMAIN
        return self

    async def reattach(self, *, was_running: bool) -> Guest:
        assert was_running
        return self.guest

    async def go_on(self) -> None:
        self.did.append("go on")
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.fails is not None:
            raise self.fails

    async def close(self) -> None:
        self.did.append("close")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A host whose journal has that save."""
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.begin(ARMED)
        journal.advance("m-1", Role.SOURCE, expected={Record.ARMED}, new=Record.BACK)
        journal.clean("m-1", Role.SOURCE)
    return Settings(paths=PathSettings(state=str(tmp_path), run=str(tmp_path / "run")))


def save(tmp_path: Path, *, was_running: bool = True, hypervisor: str = "qemu") -> Decision:
    """A save that came back."""
    directory = tmp_path / "saved"
    details = SourceDetails(
        domain=DOMAIN,
        was_running=was_running,
        hypervisor=hypervisor,
        hypervisor_there=save_name(str(directory)),
    )
    return replace(ARMED, record=Record.BACK, clean=True, peer_host=str(directory), details=details)


def use(monkeypatch: pytest.MonkeyPatch, host: Host, *, kept: bool = False) -> None:
    def opened(_settings: Settings, _name: str) -> Host:
        return host

    def is_of(_directory: Path, domain: Domain, generation: int | None) -> bool:
        assert (domain, generation) == (DOMAIN, ARMED.generation)
        return kept

    monkeypatch.setattr(going_on, "open_hypervisor", opened)
    monkeypatch.setattr(going_on, "is_of", is_of)


async def test_it_goes_on(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    use(monkeypatch, host)
    assert await going_on.have_go_on(settings, save(tmp_path)) == []
    assert host.did == ["go on", "close"]


async def test_one_that_is_none_of_a_save_that_came_back_is_not_touched(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, back = Host(), save(tmp_path)
    use(monkeypatch, host)
    for other in (
        replace(back, record=Record.GONE),
        replace(back, record=Record.ARMED, clean=False),
        replace(back, clean=False),
        replace(back, peer_host="b"),  # a migration
        replace(back, peer_host=f"b:{tmp_path}/saved"),
        save(tmp_path, was_running=False),  # its user had paused it
    ):
        assert await going_on.have_go_on(settings, other) == []
    assert host.did == []


async def test_a_checkpoint_that_was_kept_has_taken_its_room_for_good(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    use(monkeypatch, host, kept=True)
    assert await going_on.have_go_on(settings, save(tmp_path)) == []
    assert host.did == []


async def test_one_that_has_ended_or_is_worked_on_is_left(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(Guest.DEAD)
    use(monkeypatch, host)
    assert await going_on.have_go_on(settings, save(tmp_path)) == []
    assert host.did == ["close"]
    with domain_lock(Path(settings.paths.run), ARMED.domain, "migrates web1"):
        assert await going_on.have_go_on(settings, save(tmp_path)) == []
    assert host.did == ["close"]


@pytest.mark.parametrize("record", [Record.ARMED, Record.GONE, Record.BACK])
async def test_one_with_which_something_was_begun_since_is_left(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, *, record: Record
) -> None:
    """A later migration may have given it away, or will."""
    with Journal.open(tmp_path / "journal.db") as journal:
        [known] = journal.decisions(ARMED.domain)
        later = replace(ARMED, migration="m-2", generation=2)
        journal.begin(later)
        if record is not Record.ARMED:
            journal.advance("m-2", Role.SOURCE, expected={Record.ARMED}, new=record)
    host = Host()
    use(monkeypatch, host)
    decision = replace(save(tmp_path), began=known.began)
    assert await going_on.have_go_on(settings, decision) == []
    assert host.did == []


async def test_what_was_before_it_does_not_matter(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.open(tmp_path / "journal.db") as journal:
        journal.begin(replace(ARMED, migration="m-2", generation=2))
        journal.advance("m-2", Role.SOURCE, expected={Record.ARMED}, new=Record.BACK)
        journal.clean("m-2", Role.SOURCE)
        latest = next(one for one in journal.decisions() if one.migration == "m-2")
    host = Host()
    use(monkeypatch, host)
    decision = replace(save(tmp_path), migration="m-2", began=latest.began)
    assert await going_on.have_go_on(settings, decision) == []
    assert host.did == ["go on", "close"]


@pytest.mark.parametrize(
    ("hypervisor", "remedy"),
    [
        ("qemu", "say `cont` to the QEMU of web1"),
        ("qemu:///system", "`virsh -c qemu:///system resume web1`"),
    ],
)
async def test_what_keeps_it_from_that_is_told_with_what_to_do(
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    hypervisor: str,
    remedy: str,
) -> None:
    host = Host()
    use(monkeypatch, host)
    host.fails = HypervisorError("QEMU refuses cont")
    [told] = await going_on.have_go_on(settings, save(tmp_path, hypervisor=hypervisor))
    assert told.startswith("whether web1 stands still for want of room is not known: QEMU refuses")
    assert remedy in told
    assert host.did == ["go on", "close"]
    monkeypatch.setattr(going_on, "GOES_ON_WITHIN", 0.01)
    host.hangs = True
    [told] = await going_on.have_go_on(settings, save(tmp_path, hypervisor=hypervisor))
    assert "there was no answer within 0.01 s" in told
    assert remedy in told
    await asyncio.sleep(0)  # it is cancelled; what hangs is not waited for once more
    assert host.did[2:] == ["go on"]
