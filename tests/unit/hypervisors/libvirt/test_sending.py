"""A libvirt domain whose memory is sent into a save: what libvirt is told, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from xml.etree import ElementTree as ET

import msgspec
import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hosts.filters import Filter
from entourage.hypervisors.base import DataPlane, Ticket
from entourage.hypervisors.libvirt import attending, looks, sending
from entourage.hypervisors.libvirt import handle as handles
from entourage.hypervisors.libvirt.autostart import Autostart
from entourage.hypervisors.libvirt.connection import LostError, RefusedError
from entourage.hypervisors.libvirt.constants import Flag, Parameter, State
from entourage.hypervisors.libvirt.events import Known
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.machine import LibvirtMachine
from entourage.hypervisors.libvirt.plan import LibvirtPlan
from entourage.hypervisors.libvirt.saving import LibvirtSaving
from entourage.hypervisors.libvirt.sending import LibvirtSending, answer
from entourage.hypervisors.values import KEEPS, LocalData, SavePlan
from entourage.steps import Refusal
from tests.unit.hypervisors.libvirt.fakes import FakeDomain, handle_of, use_fakes

UUID = "5b6e6d0e-0000-4000-8000-000000000001"
DISK = Block(id="vda", path="/d/a.qcow2", format="qcow2")
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 28, block=(DISK,))
XML = (
    f"<domain type='kvm'><name>web1</name><uuid>{UUID}</uuid><memory unit='b'>268435456</memory>"
    "<os><type machine='q35'>hvm</type></os><devices><disk type='file'>"
    "<driver name='qemu' type='qcow2'/><source file='/d/a.qcow2'/><target dev='vda'/>"
    "</disk></devices></domain>"
)


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, "survey", "lookups", "checkpoints")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(attending, "withdraw", AsyncMock())  # tests/e2e/attend has it


class Heard:
    """A fake of a feed."""

    def __init__(self) -> None:
        self.known = Known()

    async def until(self, check: Any) -> Any:
        while (found := check(self.known)) is None:  # noqa: ASYNC110 - as tests change it
            await asyncio.sleep(0.001)
        return found

    async def close(self) -> None:
        """Nothing is open."""


class Phases:
    """A fake of libvirt's phases: Perform connects, sends, and waits for its end.

    Args:
        sends: What it sends; None: it is refused.
    """

    def __init__(self, sends: bytes | None = b"memory") -> None:
        self.sends = sends
        self.told: list[Any] = []

    def begin(self, _raw: Any, parameters: Any, flags: Flag) -> tuple[str, bytes]:
        self.told.append(("begin", dict(parameters), flags))
        return XML, b"<cookie/>"

    def perform(self, _raw: Any, parameters: Any, cookie: bytes, flags: Flag) -> bytes:
        self.told.append(("perform", cookie, flags))
        uri = str(parameters[Parameter.URI])
        if self.sends is None:
            raise RefusedError("libvirt: paused due to previous migration", 1)
        with socket.socket(socket.AF_UNIX) as out:
            out.connect(uri.removeprefix("unix://"))
            out.settimeout(5)
            try:
                out.sendall(self.sends)
            except OSError as error:
                raise RefusedError(f"libvirt: {error}", 1) from error
        return b"<done/>"

    def confirm(self, *_: Any, cancelled: bool) -> None:
        self.told.append(("confirm", cancelled))


def machine(
    tmp_path: Path, raw: Any = None, *, filters: tuple[str, ...] = (), copies: bool = False
) -> Any:
    """A domain that is to be sent into a save, perhaps with its disk."""
    handle = handle_of(raw or FakeDomain(XML, XML), DOMAIN)
    handle.was_running = True
    handle.connection.raw.getLibVersion = lambda: 9_000_000
    handle.connection.uri = "qemu:///system"
    handle.autostart = Autostart(None)
    one: Any = LibvirtSending(handle, Path("/x.log"), "a")
    one._job.feed = Heard()
    local = LocalData(
        socket=str(tmp_path / "m.sock"),
        generation=1,
        paused=False,
        filters=tuple(Filter(name) for name in filters),
        far=not filters,
        copies={"vda": DISK.path} if copies else {},
    )
    one._plane = DataPlane(address="", ports=(1, 2), secret=None, host="b:/x", local=local)
    return one


@contextlib.contextmanager
def a_save(tmp_path: Path) -> Any:
    """Listen as a save does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "m.sock"))
        server.listen(1)
        server.settimeout(5)
        yield server


def test_memory_that_is_passed_on_is_sent() -> None:
    moving = LibvirtMachine(handle_of(FakeDomain(), DOMAIN), Path("/x.log"))
    assert moving.sending is None
    assert isinstance(moving.saving, LibvirtSaving)
    assert isinstance(moving.saving.sending, LibvirtSending)
    assert moving.saving.sending.sending is None


async def test_a_checkpoints_guest_starts_with_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else ever runs it."""
    phases, raw = Phases(), FakeDomain(XML, XML)
    monkeypatch.setattr("entourage.hypervisors.libvirt.job.phases", lambda: phases)
    one = machine(tmp_path, raw)
    local = msgspec.structs.replace(one._plane.local, checkpoint=True)
    one._plane = msgspec.structs.replace(one._plane, local=local)
    plan = msgspec.msgpack.decode(await one.plan(DOMAIN), type=SavePlan)
    assert msgspec.msgpack.decode(plan.kept, type=LibvirtPlan).autostart
    assert raw.told == []


async def test_what_begin_says_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain is not undefined, and nothing of it is written down on a target.

    It does not start with its host any more before libvirt has a job, during which it refuses that.
    """
    phases, raw = Phases(), FakeDomain(XML, XML)
    begin = phases.begin

    def begun(*arguments: Any) -> Any:
        assert raw.told == [("autostart", 0)]
        return begin(*arguments)

    monkeypatch.setattr(phases, "begin", begun)
    monkeypatch.setattr("entourage.hypervisors.libvirt.job.phases", lambda: phases)
    plan = msgspec.msgpack.decode(await machine(tmp_path, raw).plan(DOMAIN), type=SavePlan)
    assert (plan.hypervisor, plan.sends) == ("qemu:///system", True)
    kept = msgspec.msgpack.decode(plan.kept, type=LibvirtPlan)
    assert kept.cookie == b"<cookie/>"
    assert kept.parameters == {Parameter.DEST_XML: XML, Parameter.PERSIST_XML: XML}
    assert (kept.flags, kept.autostart, kept.transient) == (0, True, False)
    [(_, _, flags)] = phases.told
    assert not flags & (Flag.UNDEFINE_SOURCE | Flag.PERSIST_DEST)
    assert flags & Flag.CHANGE_PROTECTION


async def test_a_domain_with_snapshots_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt does not move it; it is not asked for other reasons then."""

    async def asked(_handle: Any, _doing: str) -> tuple[Refusal, ...]:
        return ()

    monkeypatch.setattr(looks, "asked", asked)
    assert await machine(tmp_path).blockers() == []
    [refusal] = await machine(tmp_path, FakeDomain(XML, XML, snapshots=["s1"])).blockers()
    assert "s1" in refusal.reason


async def test_a_libvirt_that_is_too_old_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At TEST: nothing was begun by then."""
    monkeypatch.setattr(looks, "asked", AsyncMock(return_value=()))
    one = machine(tmp_path)
    one._handle.connection.raw.getLibVersion = lambda: 6_007_000
    [refusal] = await one.blockers()
    assert "too old to send" in refusal.reason
    assert "6.8.0" in refusal.remedy


async def test_an_agent_that_is_too_old_is_refused(tmp_path: Path) -> None:
    one = machine(tmp_path)
    with pytest.raises(HypervisorError, match="too old to keep") as told:
        await one.arm(one._plane, offers={})
    assert told.value.remedy
    one = machine(tmp_path, copies=True)  # it would not wait for what is said later
    with pytest.raises(HypervisorError, match="too old to take"):
        await one.arm(one._plane, offers={KEEPS: "yes"})


@pytest.mark.parametrize("resumed", [False, True])
async def test_memory_follows_once_its_disks_are_copied(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resumed: bool,  # noqa: FBT001 - a case's
) -> None:
    """libvirt is asked for nothing before; the guest stands still, or there is no save."""
    phases, loop = Phases(), asyncio.get_running_loop()
    for module in ("job", "machine"):
        monkeypatch.setattr(f"entourage.hypervisors.libvirt.{module}.phases", lambda: phases)
    raw = FakeDomain(XML, XML, state=State.PAUSED)
    one = machine(tmp_path, raw, copies=True)
    handle = one._handle
    handle.suspend, handle.state = AsyncMock(), AsyncMock(return_value=State.PAUSED)
    plan = msgspec.msgpack.decode(await one.plan(DOMAIN), type=SavePlan)
    assert (plan.sends, plan.later, plan.kept, phases.told) == (True, True, b"", [])
    with a_save(tmp_path) as server:
        await one.start(Ticket(uri=f"unix:{tmp_path}/m.sock"), live=True)
        handle.suspend.assert_awaited_once()
        assert 0 < await one.stopped() <= time.monotonic_ns()
        assert (phases.told, one.before_memory) == ([], b"")
        if resumed:
            one._job.feed.known.first_resumed_at = time.monotonic_ns()
            with pytest.raises(HypervisorError, match="let the guest run on"):
                await one.continue_switchover()
            one._rollback._handle = handle
            handle.run_again, handle.busy = AsyncMock(), AsyncMock(return_value=False)
            one._mirrors.end_changes = one._mirrors.cancel = AsyncMock()
            await one.abort()
            assert [said[0] for said in phases.told] == ["begin", "confirm"]
            assert phases.told[-1] == ("confirm", True)
            handle.run_again.assert_awaited_once()
            return
        taking = loop.run_in_executor(None, lambda: read_all(server))
        await one.continue_switchover()
        assert await one.landed() == b""
        assert (await taking).startswith(b"memorywhole:")
    (_, _, held), (_, _, flags) = phases.told
    assert held & Flag.CHANGE_PROTECTION
    assert not flags & Flag.LIVE
    kept = msgspec.msgpack.decode(one.before_memory, type=LibvirtPlan)
    assert (kept.cookie, kept.autostart) == (b"<cookie/>", True)
    await one._end_way()


@pytest.mark.parametrize("live", [True, False])
async def test_memory_goes_into_the_save(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    live: bool,  # noqa: FBT001 - a case's
) -> None:
    """With how much it was at its end, as to another host; the socket for libvirt is gone."""
    phases, loop = Phases(), asyncio.get_running_loop()
    monkeypatch.setattr("entourage.hypervisors.libvirt.machine.phases", lambda: phases)
    one = machine(tmp_path)
    one._job.flags = Flag.LIVE | Flag.UNSAFE
    with a_save(tmp_path) as server:
        taking = loop.run_in_executor(None, lambda: read_all(server))
        await one.start(Ticket(uri=f"unix:{tmp_path}/m.sock"), live=live)
        assert await one.landed() == b""
        assert (await taking).startswith(b"memorywhole:")
    [(_, cookie, flags)] = phases.told
    root = ET.fromstring(cookie.removesuffix(b"\0"))  # noqa: S314 - our own
    assert (root.findtext("name"), root.findtext("uuid")) == ("web1", UUID)
    assert bool(flags & Flag.LIVE) == live
    assert [path.name for path in tmp_path.iterdir()] == ["m.sock"]
    await one._end_way()


def read_all(server: socket.socket) -> bytes:
    connection, _ = server.accept()
    with connection:
        connection.settimeout(5)
        said = b""
        while more := connection.recv(1 << 16):
            said += more
        return said


async def test_a_perform_that_does_not_begin_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entourage.hypervisors.libvirt.machine.phases", lambda: Phases(None))
    one = machine(tmp_path)
    with a_save(tmp_path), pytest.raises(HypervisorError, match="cannot save it") as told:
        await one.start(Ticket(uri=f"unix:{tmp_path}/m.sock"), live=False)
    assert "virsh resume web1" in told.value.remedy


async def test_what_it_is_passed_on_to_is_what_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not libvirt, which only finds the connection broken."""
    one = machine(tmp_path)
    loop = asyncio.get_running_loop()
    one._job.performing, one._passing = loop.create_future(), loop.create_future()
    one._stream = SimpleNamespace(has_ended=False, silent_for=0.0)
    one._job.performing.set_exception(RefusedError("libvirt: Unable to write to socket", 1))
    loop.call_later(0.01, one._passing.set_exception, OSError(28, "No space left on device"))
    with pytest.raises(HypervisorError, match=r"(?i)no space left"):
        await one.landed()
    one._passing = loop.create_future()
    monkeypatch.setattr(sending, "_ENDS_WITHIN", 0.01)
    with pytest.raises(HypervisorError, match="cannot save it: Unable to write"):
        await one.landed()


async def test_memory_goes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entourage.hypervisors.libvirt.machine.phases", Phases)
    one = machine(tmp_path)
    with pytest.raises(HypervisorError, match="memory is to go to"):
        await one.start(Ticket(uri="unix:/run/other.sock"), live=False)
    one._cut()
    with contextlib.suppress(RefusedError):
        await one._job.performing
    await one._end_way()


async def test_it_is_cut_off_from_who_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU, which waits, hears of it at once."""
    phases = Phases(b"x" * (64 << 20))
    monkeypatch.setattr("entourage.hypervisors.libvirt.machine.phases", lambda: phases)
    one = machine(tmp_path)
    one._job.feed.known.migration = "active"
    with a_save(tmp_path):
        starting = asyncio.create_task(one.start(Ticket(uri=f"unix:{tmp_path}/m.sock"), live=True))
        while one._stream is None:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)
        one._job.heard().known.migration = "active"
        await starting
        assert not one._job.performing.done()
        assert one._rollback._cut_off()
        with pytest.raises(RefusedError):
            await asyncio.wait_for(asyncio.shield(one._job.performing), 2)
        await one._end_way()


@pytest.mark.parametrize(
    "error", [None, RefusedError("libvirt: no such job", 1), LostError("gone")]
)
async def test_the_definition_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HypervisorError | None
) -> None:
    """Confirm ends it here; where libvirtd has forgotten of it, it is ended by hand."""
    told: list[str] = []

    class Raw(FakeDomain):
        def destroy(self) -> None:
            told.append("destroy")

        def state(self, _flags: int) -> tuple[int, int]:
            return State.SHUT_OFF, 0

        def undefineFlags(self, flags: int) -> None:  # noqa: N802 - libvirt's
            raise AssertionError(flags)

    async def ended(_name: str, _uuid: str) -> None:
        told.append("looked")

    async def confirm(_handle: Any, *, cancelled: bool) -> None:
        told.append(f"confirm {cancelled}")
        if error is not None:
            raise error

    monkeypatch.setattr(handles, "check_ended", ended)
    monkeypatch.setattr("entourage.hypervisors.libvirt.autostart.sync_definitions", lambda: None)
    raw = Raw(XML, XML)
    one = machine(tmp_path)
    connection: Any = SimpleNamespace(raw=None, uri="qemu:///system")
    one._handle = Handle(connection, raw, DOMAIN, was_running=True, transient=False)
    one._job.beginning = asyncio.get_running_loop().create_future()
    one._job.confirm = confirm
    await one.release()
    assert told == ["confirm False", "destroy", "looked"]
    assert ("autostart", 0) in raw.told


def test_the_answer_is_another_hosts() -> None:
    """It names this domain, and no capability that QEMU would want an answer of."""
    said = answer(DOMAIN)
    root = ET.fromstring(said.removesuffix(b"\0"))  # noqa: S314 - our own
    assert (root.findtext("name"), root.findtext("uuid")) == ("web1", UUID)
    assert root.findtext("hostuuid") != ET.fromstring(  # noqa: S314 - our own
        answer(DOMAIN).removesuffix(b"\0")
    ).findtext("hostuuid")
    assert [each.get("name") for each in root.iterfind("capabilities/*")] == ["events"]


@pytest.mark.parametrize("ends", [True, False])
async def test_a_stream_without_an_end_is_given_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: bool,  # noqa: FBT001 - a case's
) -> None:
    """Its guest would stand still for ever; not where all has come, and libvirt takes its time."""
    monkeypatch.setattr(sending, "_ENDLESS_AFTER", 0.01)
    monkeypatch.setattr(sending, "_LOOK_EVERY", 0.01)
    one = machine(tmp_path)
    loop = asyncio.get_running_loop()
    one._job.performing, one._passing = loop.create_future(), loop.create_future()
    one._stream = SimpleNamespace(has_ended=ends, silent_for=1.0)
    if ends:
        loop.call_later(0.05, one._job.performing.set_result, b"")
        loop.call_later(0.05, one._passing.set_result, None)
        assert await one.landed() == b""
        return
    with pytest.raises(HypervisorError, match="does not say that this is the end") as told:
        await one.landed()
    assert "without --compress" in told.value.remedy


@pytest.mark.parametrize("was_running", [True, False])
async def test_a_paused_guest_whose_qemu_shows_no_end_is_given_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    was_running: bool,  # noqa: FBT001 - a case's
) -> None:
    """Nothing tells of its stop but the end itself; of one that runs, silence is no sign."""
    monkeypatch.setattr(sending, "_ENDLESS_AFTER", 0.01)
    monkeypatch.setattr(sending, "_LOOK_EVERY", 0.01)
    one = machine(tmp_path)
    one._handle.was_running = was_running
    loop = asyncio.get_running_loop()
    one._job.performing, one._passing = loop.create_future(), loop.create_future()
    one._stream = SimpleNamespace(has_ended=False, silent_for=1.0)
    if was_running:
        loop.call_later(0.05, setattr, one._job.feed.known, "stopped_at", 7)
        assert await one.stopped() == 7
        return
    with pytest.raises(HypervisorError, match="does not say that this is the end"):
        await asyncio.wait_for(one.stopped(), 5)


async def test_a_paused_guest_has_stopped_once_all_is_sent(tmp_path: Path) -> None:
    one = machine(tmp_path)
    one._handle.was_running = False
    loop = asyncio.get_running_loop()
    one._job.performing, one._passing = loop.create_future(), loop.create_future()
    one._stream = SimpleNamespace(has_ended=True, silent_for=1.0)
    one._job.performing.set_result(b"")
    one._passing.set_result(None)
    assert await one.stopped() > 0
