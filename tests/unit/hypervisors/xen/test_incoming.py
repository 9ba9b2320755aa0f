"""Who may run a domain that another agent was building: what is there says whether it ever ran."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError, Refused
from entourage.handover.values import Guest
from entourage.hosts.allowed import Allowed
from entourage.hosts.beneath import NotAllowed
from entourage.hosts.parts import HostPart
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.base import DataPlane
from entourage.hypervisors.xen import header
from entourage.hypervisors.xen import incoming as module
from entourage.hypervisors.xen.checks import too_long
from entourage.hypervisors.xen.incoming import XenIncoming
from entourage.hypervisors.xen.libxl import Life
from entourage.hypervisors.xen.plan import Parameters, XenPlan
from entourage.settings.model import AgentSettings, PathSettings, Settings
from entourage.steps import Refusal
from tests.unit.hosts.making import make

UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 27)
NEVER_RAN = Life(paused=True, cpu_time=0)
RUNS = Life(paused=False, cpu_time=5)
PAUSED_SINCE = Life(paused=True, cpu_time=5)


class Xen:
    """What xl is told, and what it has."""

    def __init__(self) -> None:
        self.life: Life | None = None
        self.name = "web1--incoming"
        self.told: list[tuple[str, ...]] = []

    async def xl(self, *arguments: str) -> str:
        self.told.append(arguments)
        if arguments[0] == "destroy":
            self.life = None
        return ""

    async def domain_ids(self, uuid: str) -> list[int]:
        assert uuid == UUID
        return [] if self.life is None else [7]


class Store:
    """Stands for xenstore."""

    def __init__(self, xen: Xen) -> None:
        self._xen = xen

    async def domain_ids(self, uuid: str) -> list[int]:
        return await self._xen.domain_ids(uuid)

    async def name(self, domid: int) -> str:
        assert domid == 7
        return self._xen.name

    async def close(self) -> None:
        pass


@pytest.fixture
def xen(monkeypatch: pytest.MonkeyPatch) -> Xen:
    xen = Xen()

    async def opened() -> Store:
        return Store(xen)

    def life(domid: int) -> Life | None:
        assert domid == 7
        return xen.life

    monkeypatch.setattr(module, "life", life)
    monkeypatch.setattr(module, "xl", xen.xl)
    monkeypatch.setattr(module.XenStore, "open", opened)
    return xen


@pytest.fixture
def short(tmp_path: Path) -> Generator[Path]:
    """The same directory, by a name that leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="x.") as made:
        (Path(made) / "t").symlink_to(tmp_path)
        yield Path(made) / "t"


@pytest.fixture
def arriving(short: Path) -> XenIncoming:
    paths = PathSettings(run=str(short / "run"), log=str(short / "log"))
    settings = msgspec.structs.replace(Settings(), paths=paths)
    return XenIncoming(settings, DOMAIN, MemoryLedger())


def directory(tmp_path: Path, *, given: bool) -> None:
    place = tmp_path / "run" / f"xen-{UUID}.incoming"
    place.mkdir(parents=True)
    if given:
        (place / "given").touch()


@pytest.mark.parametrize(
    ("life", "guest"),
    [(NEVER_RAN, Guest.STOPPED), (RUNS, Guest.RUNNING), (PAUSED_SINCE, Guest.RUNNING)],
)
async def test_a_domain_that_is_there_says_itself_whether_it_ran(
    xen: Xen, arriving: XenIncoming, life: Life, guest: Guest
) -> None:
    xen.life = life
    assert await arriving.attach() is guest


async def test_one_that_is_gone_without_go_never_ran(
    xen: Xen, arriving: XenIncoming, tmp_path: Path
) -> None:
    directory(tmp_path, given=False)
    assert await arriving.attach() is Guest.STOPPED
    with pytest.raises(HypervisorError, match="never ran"):
        await arriving.run(paused=False)


async def test_one_that_is_gone_after_go_may_have_run(
    xen: Xen, arriving: XenIncoming, tmp_path: Path
) -> None:
    directory(tmp_path, given=True)
    assert await arriving.attach() is Guest.DEAD
    await arriving.run(paused=False)  # as if it had: it is this host's


async def test_after_a_power_cut_nobody_knows_whether_go_was_given(
    xen: Xen, arriving: XenIncoming
) -> None:
    assert await arriving.attach() is Guest.DEAD


async def test_what_a_killed_receiver_has_left_is_let_run_in_its_place(
    xen: Xen, arriving: XenIncoming, tmp_path: Path
) -> None:
    directory(tmp_path, given=True)
    xen.life = NEVER_RAN
    await arriving.run(paused=False)
    assert xen.told == [("rename", "7", "web1"), ("unpause", "7")]


async def test_one_that_ran_and_was_paused_since_is_left_alone(
    xen: Xen, arriving: XenIncoming, tmp_path: Path
) -> None:
    directory(tmp_path, given=True)
    xen.life, xen.name = PAUSED_SINCE, "web1"
    await arriving.run(paused=False)
    assert xen.told == []


async def test_a_copy_that_never_ran_is_destroyed(xen: Xen, arriving: XenIncoming) -> None:
    xen.life = NEVER_RAN
    await arriving.kill()
    assert xen.told == [("destroy", "7")]
    xen.told.clear()
    await arriving.kill()  # twice, as after a crash
    assert xen.told == []


async def arrives(arriving: XenIncoming, config: dict[str, Any]) -> None:
    """It is built, and the stream of its memory has come to xl or was refused."""
    plan = msgspec.Raw(msgspec.msgpack.encode(XenPlan()))
    await arriving.build(DOMAIN, DataPlane(address="", ports=(1, 2), secret=None), plan)
    ticket = await arriving.listen()
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX) as agent:
        agent.connect(ticket.uri)
        ours.sendall(ticket.cookie + header.header_of(config))
        socket.send_fds(agent, [b"memory\n"], [theirs.fileno(), theirs.fileno()])
        await asyncio.wait_for(arriving.landed(), 20)


async def test_what_xl_is_to_build_is_asked_of_this_hosts_rules(
    xen: Xen, arriving: XenIncoming
) -> None:
    assert xen.life is None
    asked: list[HostPart] = []

    async def check(parts: Sequence[HostPart]) -> None:
        asked.extend(parts)
        refusal = Refusal("domain", "b", "/root/x is not allowed", "name it")
        raise Refused([refusal])

    arriving.check_with(check)
    config = {"c_info": {"name": "web1", "uuid": UUID}, "b_info": {"bootloader": "/root/x"}}
    with pytest.raises(HypervisorError, match="/root/x is not allowed") as caught:
        await arrives(arriving, config)
    assert caught.value.remedy == "name it"
    assert [part.name for part in asked] == ["program:/root/x", "xen:b_info/bootloader_restrict"]
    await arriving.kill()


async def test_where_nobody_is_there_to_ask_nothing_is_allowed(
    xen: Xen, arriving: XenIncoming
) -> None:
    assert xen.life is None
    config = {"c_info": {"name": "web1", "uuid": UUID}, "b_info": {"bootloader": "/root/x"}}
    with pytest.raises(HypervisorError, match="nobody here says"):
        await arrives(arriving, config)
    await arriving.kill()


async def test_another_domain_than_the_one_that_was_asked_for(
    xen: Xen, arriving: XenIncoming
) -> None:
    assert xen.life is None
    config = {"c_info": {"name": "web2", "uuid": UUID}}
    with pytest.raises(HypervisorError, match="not that of web1"):
        await arrives(arriving, config)
    await arriving.kill()


def copies(arriving: XenIncoming, disk: Block) -> Coroutine[Any, Any, None]:
    """It is built, with a disk that the source says it will copy."""
    plan = XenPlan(parameters=Parameters(disks=[disk.id]))
    domain = msgspec.structs.replace(DOMAIN, block=(disk,))
    plane = DataPlane(address="", ports=(1, 2), secret=None)
    return arriving.build(domain, plane, msgspec.Raw(msgspec.msgpack.encode(plan)))


async def test_the_source_copies_only_onto_what_was_made_for_that(
    xen: Xen, tmp_path: Path, short: Path
) -> None:
    assert xen.life is None
    agent = AgentSettings(image_directories=(str(tmp_path),))
    paths = PathSettings(run=str(short / "run"), log=str(short / "log"))
    settings = msgspec.structs.replace(Settings(), paths=paths, agent=agent)
    image, other, aside = tmp_path / "a.raw", tmp_path / "b.raw", tmp_path / "c.raw"
    image.write_text("a CD that everyone knows")
    other.write_text("another")
    disk = Block(id="xvda", path=str(image))
    allowed = Allowed(agent)

    async def check(parts: Sequence[HostPart]) -> None:
        if found := allowed.not_allowed(DOMAIN, "b", built=True, parts=parts):
            raise Refused(found)

    async def swapped(parts: Sequence[HostPart]) -> None:
        await check(parts)
        other.rename(image)

    async def swapped_back(parts: Sequence[HostPart]) -> None:
        """What was made is at its path only while that is asked about."""
        image.rename(other)
        aside.rename(image)
        try:
            await check(parts)
        finally:
            image.rename(aside)
            other.rename(image)

    allowed.prove_content(str(image))
    arriving = XenIncoming(settings, DOMAIN, MemoryLedger())
    with pytest.raises(HypervisorError, match="nobody here says"):
        await copies(arriving, disk)
    arriving.check_with(check)
    with pytest.raises(Refused, match="was not made by this migration"):
        await copies(arriving, disk)
    make(allowed, str(image))
    await copies(arriving, disk)
    await arriving.kill()
    image.rename(aside)
    other.rename(image)
    arriving = XenIncoming(settings, DOMAIN, MemoryLedger())
    arriving.check_with(swapped_back)
    with pytest.raises(Refused, match="was not made by this migration"):
        await copies(arriving, disk)
    image.rename(other)
    aside.rename(image)
    arriving.check_with(swapped)
    with pytest.raises(HypervisorError, match="has become another file meanwhile"):
        await copies(arriving, disk)
    await arriving.kill()
    outside = msgspec.structs.replace(disk, path="/etc/passwd")
    with pytest.raises(NotAllowed, match="in none of the directories"):
        await copies(arriving, outside)


@pytest.mark.parametrize("names", [True, False])
async def test_what_is_open_as_a_device_must_be_named_whatever_its_path_was_before(
    xen: Xen,
    tmp_path: Path,
    short: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    names: bool,
) -> None:
    """A plain file stands for the device: what is asked of the path, and what of the handle."""
    assert xen.life is None
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(512))
    named = (str(image),) if names else ()
    agent = AgentSettings(image_directories=(str(tmp_path),), devices=named)
    paths = PathSettings(run=str(short / "run"), log=str(short / "log"))
    settings = msgspec.structs.replace(Settings(), paths=paths, agent=agent)
    allowed = Allowed(agent)
    make(allowed, str(image))  # the path is that of a file which was made here

    def is_device(disk: str | int) -> bool:
        return isinstance(disk, int)

    async def check(parts: Sequence[HostPart]) -> None:
        if found := allowed.not_allowed(DOMAIN, "b", built=True, parts=parts):
            raise Refused(found)

    monkeypatch.setattr(module, "_is_device", is_device)
    arriving = XenIncoming(settings, DOMAIN, MemoryLedger())
    arriving.check_with(check)
    copying = copies(arriving, Block(id="xvda", path=str(image)))
    if names:
        await copying
    else:
        with pytest.raises(Refused, match="not among the devices"):
            await copying
    await arriving.kill()


async def test_a_device_is_written_by_the_handle_that_was_asked_about(
    xen: Xen, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert xen.life is None
    device, other = tmp_path / "vg-web1", tmp_path / "other"
    device.write_bytes(b"device")
    other.write_bytes(b"other")
    asked: list[Sequence[HostPart]] = []
    agent = AgentSettings(image_directories=(), devices=(str(device),))
    paths = PathSettings(run=str(short / "run"), log=str(short / "log"))
    settings = msgspec.structs.replace(Settings(), paths=paths, agent=agent)
    allowed = Allowed(agent)

    def is_device(_disk: str | int) -> bool:
        return True

    async def check(parts: Sequence[HostPart]) -> None:
        asked.append(parts)
        if found := allowed.not_allowed(DOMAIN, "b", built=True, parts=parts):
            raise Refused(found)

    monkeypatch.setattr(module, "_is_device", is_device)
    arriving = XenIncoming(settings, DOMAIN, MemoryLedger())
    arriving.check_with(check)
    elsewhere = Block(id="xvda", path=str(other))
    with pytest.raises(Refused, match="not among the devices"):
        await copies(arriving, elsewhere)
    assert len(asked) == 1  # it was refused before it was opened
    await copies(arriving, Block(id="xvda", path=str(device)))
    path = arriving._arrivals._disks["xvda"]  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]
    other.rename(device)
    assert Path(path).read_bytes() == b"device"
    await arriving.kill()


async def test_no_two_arrivals_have_the_same_secret(xen: Xen, arriving: XenIncoming) -> None:
    assert xen.life is None
    cookies: set[bytes] = set()
    for _ in range(2):
        plan = msgspec.Raw(msgspec.msgpack.encode(XenPlan()))
        await arriving.build(DOMAIN, DataPlane(address="", ports=(1, 2), secret=None), plan)
        ticket = await arriving.listen()
        assert ticket.cookie.hex() not in ticket.uri
        cookies.add(ticket.cookie)
        await arriving.kill()
    assert [len(cookie) for cookie in cookies] == [32, 32]


async def test_the_socket_for_streams_has_room_in_the_longest_path_that_test_lets_pass(
    xen: Xen,
) -> None:
    assert xen.life is None
    with tempfile.TemporaryDirectory(prefix="x.") as made:
        longest = Path(made, "r" * (49 - len(made) - 1))
        assert too_long(str(longest), UUID) == []
        [(reason, remedy)] = too_long(f"{longest}r", UUID)
        assert f"{longest}r is too long a path for sockets" in reason
        assert "paths.run" in remedy
        paths = PathSettings(run=str(longest), log=made)
        settings = msgspec.structs.replace(Settings(), paths=paths)
        arriving = XenIncoming(settings, DOMAIN, MemoryLedger())
        plan = msgspec.Raw(msgspec.msgpack.encode(XenPlan()))
        await arriving.build(DOMAIN, DataPlane(address="", ports=(1, 2), secret=None), plan)
        assert len((await arriving.listen()).uri) == 107
        await arriving.kill()
