"""Which domains are attended, by a toolstack that shows what a test has it show."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import msgspec
import pytest

from entourage.attend import shown
from entourage.attend.domains import Domains
from entourage.domain import Domain, External
from entourage.errors import ConfigError, HypervisorError
from entourage.hypervisors.attended.switchover import (
    SourceSwitchover,
    TargetSwitchover,
    state_of,
)
from entourage.hypervisors.attended.toolstack import Shown
from entourage.journal.lock import domain_lock
from entourage.settings.model import AttendSettings, PathSettings, Settings
from tests.unit.attend.standins import StandInToolstack
from tests.unit.eventually import eventually, idle

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
PLAIN = Domain(name="web1", uuid=UUID, memory=1 << 28)
OURS = msgspec.structs.replace(PLAIN, external=(External(id="dongle", type="x", tool="/bin/true"),))


class Host:
    """A daemon's domains, and what they stand on."""

    def __init__(self, place: Path, unattended: str = "refuse") -> None:
        self.stack = StandInToolstack(UUID, domain=OURS)
        self.again: list[str] = []
        self.pauses: list[float] = []
        self.held = contextlib.ExitStack()
        self.settings = Settings(
            attend=msgspec.convert({"unattended": unattended}, AttendSettings),
            paths=PathSettings(run=str(place / "run"), state=str(place)),
        )
        self.held.enter_context(domain_lock(place / "run", shown.LOCK, "attends migrations"))
        self.begin()

    def begin(self) -> None:
        """Begin, as another daemon than before."""
        self.domains = Domains(self.settings, self.stack, self.look_again)
        self.domains.open()

    def look_again(self, uuid: str, pause: float) -> None:
        self.again.append(uuid)
        self.pauses.append(pause)

    async def end(self) -> None:
        await self.domains.close()
        self.held.close()

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
    await one.end()


async def test_a_domain_with_a_device_of_ours_is_attended(host: Host) -> None:
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    assert host.stack.written is not None
    assert host.stack.written.nonce == one.nonce
    assert len(host.stack.objects) == 1
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
    assert (host.stack.writes, host.stack.objects, host.shown) == (0, [], [])
    assert host.domains.get(UUID) is None


async def test_a_device_that_is_taken_out(host: Host) -> None:
    await host.domains.look(UUID)
    host.stack.domain = PLAIN
    await host.domains.look(UUID)
    assert (host.stack.written, host.stack.objects, host.shown) == (None, [], [])


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
    assert host.stack.cleared == 1


async def test_what_cannot_be_read_is_told(host: Host) -> None:
    host.stack.domain = ConfigError("an unknown key", path="web1.toml")
    await host.domains.look(UUID)
    [told] = host.shown
    assert "an unknown key" in told.problem
    assert host.stack.writes == 0


async def test_a_qemu_that_takes_no_object_is_told(host: Host) -> None:
    host.stack.refuses = HypervisorError("QEMU takes no object")
    await host.domains.look(UUID)
    assert "takes no object" in host.shown[0].problem
    host.stack.refuses = None
    await host.domains.look(UUID)
    assert host.shown[0].problem == ""


async def test_it_is_switched_off_and_on(host: Host) -> None:
    await host.domains.look(UUID)
    assert await host.domains.switch("web1", off=True) == "web1: not attended any more"
    assert (host.stack.written, host.stack.objects) == (None, [])
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
    assert len(host.stack.objects) == int(left)
    await host.end()
    assert (host.stack.written is not None) == left
    [told] = host.shown
    assert "no daemon runs" in told.problem


async def test_a_save_that_nobody_prepared_is_refused(host: Host) -> None:
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    with pytest.raises(HypervisorError, match="nobody attends this migration"):
        await one.save()
    with pytest.raises(HypervisorError, match="nobody has announced"):
        await one.load(b"")


async def test_how_long_its_qemu_waited_stands_in_the_log(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """It is what being attended adds to the blackout; also where nothing came of it."""
    caplog.set_level(logging.INFO)
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    one.source = SourceSwitchover("00ff")
    one.source.ready()
    saving = asyncio.create_task(one.save())
    await one.source.saved()
    one.source.go_on()
    await saving
    one.source = None
    one.target = TargetSwitchover("00ff")
    one.target.refuse("its devices did not come")
    with pytest.raises(HypervisorError, match="did not come"):
        await one.load(state_of("00ff"))
    assert "hand-over" not in "".join(caplog.messages)  # QEMU has its answer first
    await idle()
    line = re.compile(r"web1: QEMU waited [0-9.]+ ms for .*")
    assert len([each for each in caplog.messages if line.fullmatch(each)]) == 2, caplog.messages


async def test_one_of_them_is_attended_where_all_are_off(host: Host) -> None:
    await host.domains.look(UUID)
    await host.domains.switch("*", off=True)
    assert host.shown[0].off
    await host.domains.switch("web1", off=False)
    assert not host.shown[0].off
    assert host.stack.objects
    await host.domains.switch("web1", off=True)
    assert host.shown[0].off
    path = Path(host.settings.paths.state, "attend.off")
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_file_of_switches_that_cannot_be_read_is_told(host: Host) -> None:
    """Nobody knows then whom its user has let go."""
    Path(host.settings.paths.state, "attend.off").write_text("web1\n")
    await host.domains.look(UUID)
    assert host.again == [UUID]
    assert not host.stack.objects
    with pytest.raises(ConfigError, match=r"attend\.off"):
        await host.domains.switch("web1", off=False)


@pytest.mark.parametrize("what", ["shown", "read", "write", "show"])
async def test_what_fails_is_tried_again_later_and_later(host: Host, what: str) -> None:
    wrong = HypervisorError("not now")
    await host.domains.look(UUID)
    if what == "shown":
        host.stack.now = wrong
    elif what == "read":
        host.stack.domain = wrong
    elif what == "write":
        host.stack.written, host.stack.refuses = None, wrong
    else:
        place = shown.directory(host.settings)
        place.rename(f"{place}.away")
        place.write_text("no directory")
    for _ in range(9):
        await host.domains.look(UUID)
    assert host.again == [UUID] * 9
    assert host.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    if what == "show":
        place = shown.directory(host.settings)
        place.unlink()
        Path(f"{place}.away").rename(place)
    host.stack.now, host.stack.domain, host.stack.refuses = Shown.RUNNING, OURS, None
    await host.domains.look(UUID)
    assert len(host.again) == 9
    assert host.shown[0].problem == ""
    one = host.domains.get(UUID)
    assert one is not None
    assert host.stack.written is not None
    assert host.stack.written.nonce == one.nonce


async def test_a_note_that_could_not_be_written_is_none(host: Host) -> None:
    """Nor is it forgotten: that it failed need not mean that it is not there."""
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    old = one.nonce
    host.stack.written, host.stack.refuses = None, HypervisorError("not now")
    await host.domains.look(UUID)
    assert one.nonce == ""
    assert one.expects(old)
    assert len([each for each in one.nonces if each]) == 2
    assert not one.expects("")


async def test_a_migration_may_have_been_begun_before_the_note_changed(host: Host) -> None:
    """What is attended next is known by another nonce; who has read the last one is not refused."""
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    old = one.nonce
    one.renew()
    await host.domains.look(UUID)
    assert one.nonce
    assert one.nonce != old
    assert one.expects(old)


async def test_a_domain_that_libvirt_migrates_is_not_changed(host: Host) -> None:
    """libvirt would wait for its migration, and whoever attends that for this look."""
    host.stack.job = True
    await host.domains.look(UUID)
    assert (host.stack.writes, host.again) == (0, [UUID])


async def test_a_migration_that_begins_waits_for_a_look(host: Host) -> None:
    """Else the look would go on with what it has seen before."""
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    host.stack.looking, host.stack.now = asyncio.Event(), Shown.ABSENT
    before = host.stack.looks
    looking = asyncio.create_task(host.domains.look(UUID))
    await eventually(lambda: host.stack.looks > before)
    order: list[str] = []

    async def begin() -> None:
        async with host.domains.turn(UUID):
            order.append("begins")
            assert host.domains.get(UUID) is None

    beginning = asyncio.create_task(begin())
    looking.add_done_callback(lambda _: order.append("looked"))
    host.stack.looking.set()
    await asyncio.gather(looking, beginning)
    assert set(order) == {"begins", "looked"}
    assert not one.path.exists()


async def test_an_off_domain_whose_note_stays_is_tried_again(host: Host) -> None:
    await host.domains.look(UUID)
    host.stack.refuses = HypervisorError("not now")
    await host.domains.switch("web1", off=True)
    assert host.again == [UUID]
    assert "not now" in host.shown[0].problem


async def test_the_next_daemon_knows_of_the_last_migration(host: Host) -> None:
    """Whoever restarts it can still ask why that was refused."""
    await host.domains.look(UUID)
    one = host.domains.get(UUID)
    assert one is not None
    one.last = shown.LastTry(target="b", ended="now", outcome="refused", message="no tool")
    await host.domains.look(UUID)
    await host.domains.close()
    host.begin()
    await host.domains.look(UUID)
    last = host.shown[0].last
    assert last is not None
    assert last.message == "no tool"
    host.stack.now = Shown.OFF
    await host.domains.look(UUID)
    [told] = host.shown
    assert told.last == last
    assert "not run here any more" in told.problem
    host.stack.now = Shown.ABSENT
    await host.domains.look(UUID)
    assert host.shown == []


async def test_what_has_gone_while_no_daemon_ran_is_not_shown_as_attended(host: Host) -> None:
    await host.domains.look(UUID)
    await host.domains.close()
    host.begin()
    host.stack.now = Shown.ABSENT
    host.stack.changed.put_nowait("")
    assert await anext(aiter(host.domains.follow())) == ""
    assert host.shown == []


async def test_all_are_looked_at_whenever_their_toolstack_is_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first attempt fails: the toolstack had just come back."""
    monkeypatch.setattr("entourage.attend.domains._SOON", 0.001)
    fails = [HypervisorError("not yet")]

    async def owner() -> int:
        if fails:
            raise fails.pop()
        return -1

    monkeypatch.setattr(host.stack, "owner", owner)
    host.stack.changed.put_nowait("")
    following = aiter(host.domains.follow())
    assert await anext(following) == ""
    assert host.domains.get(UUID) is not None
