"""Which domains are attended, by a toolstack that shows what a test has it show."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import msgspec
import pytest

from entourage.attend import shown
from entourage.attend.domains import Domains
from entourage.domain import Domain, External
from entourage.errors import ConfigError, HypervisorError
from entourage.hypervisors.attended.switchover import SourceSwitchover
from entourage.hypervisors.attended.toolstack import Note, Shown
from entourage.journal.lock import domain_lock
from entourage.settings.model import AttendSettings, PathSettings, Settings

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
PLAIN = Domain(name="web1", uuid=UUID, memory=1 << 28)
OURS = msgspec.structs.replace(PLAIN, external=(External(id="dongle", type="x", tool="/bin/true"),))


class FakeToolstack:
    """One domain; notes what is put into it."""

    def __init__(self) -> None:
        self.now = Shown.RUNNING
        self.domain: Domain | Exception = OURS
        self.written: Note | None = None
        self.writes = 0
        self.objects = 0
        self.refuses = False

    async def shown(self, uuid: str) -> Shown:
        assert uuid == UUID
        return self.now

    async def running(self) -> list[str]:
        return [UUID] if self.now is Shown.RUNNING else []

    async def read(self, uuid: str) -> Domain:
        if isinstance(self.domain, Exception):
            raise self.domain
        return self.domain

    async def note(self, uuid: str) -> Note | None:
        return self.written

    async def write_note(self, uuid: str, note: Note | None) -> None:
        self.written = note
        self.writes += 1

    async def add_object(self, uuid: str, socket: str) -> None:
        if self.refuses:
            raise HypervisorError("QEMU takes no object")
        self.objects += 1

    async def remove_object(self, uuid: str) -> None:
        self.objects = 0


class Host:
    """A daemon's domains, and what they stand on."""

    def __init__(self, place: Path, unattended: str = "refuse") -> None:
        self.stack = FakeToolstack()
        self.again: list[str] = []
        self.settings = Settings(
            attend=msgspec.convert({"unattended": unattended}, AttendSettings),
            paths=PathSettings(run=str(place / "run"), state=str(place)),
        )
        self.domains = Domains(self.settings, self.stack, self.again.append)  # type: ignore[arg-type]
        self.domains.open()

    @property
    def shown(self) -> list[shown.AttendedDomain]:
        return shown.read_all(self.settings)


@pytest.fixture
def place() -> Generator[Path]:
    """Return a directory with a short name, as a socket's path must have."""
    with tempfile.TemporaryDirectory(prefix="at-") as directory:
        yield Path(directory)


@pytest.fixture
async def host(place: Path) -> AsyncGenerator[Host]:
    one = Host(place)
    yield one
    await one.domains.close()


async def test_a_domain_with_a_device_of_ours_is_attended(host: Host) -> None:
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    assert host.stack.written is not None
    assert host.stack.written.nonce == one.nonce
    assert host.stack.objects == 1
    assert one.path.is_socket()
    [told] = host.shown
    assert (told.domain, told.devices, told.problem) == ("web1", ("external/dongle",), "")


async def test_looking_again_changes_nothing(host: Host) -> None:
    await host.domains.look(UUID)
    before = host.stack.written
    await host.domains.look(UUID)
    assert host.stack.written == before
    assert host.stack.writes == 1


async def test_a_note_that_somebody_took_away_is_written_again(host: Host) -> None:
    await host.domains.look(UUID)
    host.stack.written = None
    await host.domains.look(UUID)
    assert host.stack.written is not None


async def test_a_domain_without_one_is_not_touched(host: Host) -> None:
    host.stack.domain = PLAIN
    await host.domains.look(UUID)
    assert (host.stack.writes, host.stack.objects, host.shown) == (0, 0, [])
    assert host.domains.get(UUID) is None


async def test_a_device_that_is_taken_out(host: Host) -> None:
    await host.domains.look(UUID)
    host.stack.domain = PLAIN
    await host.domains.look(UUID)
    assert (host.stack.written, host.stack.objects, host.shown) == (None, 0, [])


@pytest.mark.parametrize("now", [Shown.OFF, Shown.ABSENT])
async def test_a_domain_that_has_ended(host: Host, now: Shown) -> None:
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    host.stack.now = now
    await host.domains.look(UUID)
    assert host.domains.get(UUID) is None
    assert not one.path.exists()
    assert host.shown == []


async def test_what_cannot_be_read_is_told(host: Host) -> None:
    host.stack.domain = ConfigError("an unknown key", path="web1.toml")
    await host.domains.look(UUID)
    [told] = host.shown
    assert "an unknown key" in told.problem
    assert host.stack.writes == 0


async def test_a_qemu_that_takes_no_object_is_told(host: Host) -> None:
    host.stack.refuses = True
    await host.domains.look(UUID)
    assert "takes no object" in host.shown[0].problem
    host.stack.refuses = False
    await host.domains.look(UUID)
    assert host.shown[0].problem == ""


async def test_it_is_switched_off_and_on(host: Host) -> None:
    await host.domains.look(UUID)
    assert await host.domains.switch("web1", off=True) == "web1: not attended any more"
    assert (host.stack.written, host.stack.objects) == (None, 0)
    assert host.shown[0].off
    assert "no domain of that name" in await host.domains.switch("web 2", off=True)
    assert await host.domains.switch("web1", off=False) == "web1: attended again"
    assert host.stack.written is not None
    await host.domains.switch("*", off=True)
    assert host.stack.written is None
    await host.domains.switch("*", off=False)
    assert host.stack.written is not None


async def test_what_was_written_since_is_looked_for(host: Host) -> None:
    """A file about a domain that runs tells nobody that it has changed."""
    host.stack.domain = PLAIN
    await host.domains.look(UUID)
    host.stack.domain = OURS
    await host.domains.switch("web1", off=False)
    assert host.shown[0].devices == ("external/dongle",)


async def test_another_commands_domain_is_looked_at_later(host: Host) -> None:
    with domain_lock(Path(host.settings.paths.run), UUID, "migrates it"):
        await host.domains.look(UUID)
        assert host.again == [UUID]
        assert host.stack.writes == 0
    await host.domains.look(UUID)
    assert host.stack.writes == 1


async def test_a_migration_under_way_is_left_alone(host: Host) -> None:
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    one.source = SourceSwitchover(one.nonce)
    host.stack.now = Shown.ABSENT
    await host.domains.look(UUID)
    assert host.domains.get(UUID) is one
    one.source = None


async def test_who_did_not_come_is_forgotten(host: Host) -> None:
    one = host.domains.expect(UUID)
    await one.open()
    await host.domains.left_out(UUID)
    assert host.domains.get(UUID) is None
    assert not one.path.exists()


@pytest.mark.parametrize(("unattended", "left"), [("refuse", True), ("allow", False)])
async def test_when_the_daemon_ends(place: Path, unattended: str, *, left: bool) -> None:
    """Where nothing may be left behind, the object keeps the guest here meanwhile."""
    host = Host(place, unattended)
    await host.domains.look(UUID)
    assert host.stack.objects == int(left)
    await host.domains.close()
    assert (host.stack.written is not None) == left
    assert host.shown == []


async def test_a_save_that_nobody_prepared_is_refused(host: Host) -> None:
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    with pytest.raises(HypervisorError, match="nobody attends this migration"):
        await one.save()
    with pytest.raises(HypervisorError, match="nobody has announced"):
        await one.load(b"")
